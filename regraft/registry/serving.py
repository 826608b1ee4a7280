"""The exported model: a TensorFlow SavedModel from raw input (images, WAV files or strings) to probabilities or values.

Everything between a file and an answer is inside the graph, so a consumer needs `tensorflow` (for text mostly also
`tensorflow_text`) and none of this project:

    tf.saved_model.load("models/serving/saved_model").serve(tf.constant([encoded_image]))["probabilities"]
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from regraft.backbones.folding import folded_normalization
from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.data.waveform import ENCODINGS, decode_wav
from regraft.errors import DataError, RegistryError
from regraft.files import read_json, write_json
from regraft.measures import task_of

if TYPE_CHECKING:
    from regraft.evaluation.unusual import Familiar
    from regraft.tuning.classifier import Classifier

log = logging.getLogger(__name__)

SAVED_MODEL = "saved_model"
LABELS = "labels.json"
UNUSUAL = "unusual"
PIXELS = "pixels"  # what `answer` of an exported model calls pictures
# What an answer is called, and how it follows from the model's outputs.
ANSWERS = {CLASSIFICATION: "probabilities", MULTILABEL: "probabilities", REGRESSION: "values"}
LINKS = {CLASSIFICATION: tf.nn.softmax, MULTILABEL: tf.nn.sigmoid, REGRESSION: tf.identity}
INPUT_EXAMPLES = {"image": "input_example.bin", "text": "input_example.txt", "audio": "input_example.wav"}
_UNREADABLE = {
    "image": "an image that TensorFlow can decode: PNG, JPEG, GIF and BMP are",
    "audio": f"a WAV file that can be decoded: {ENCODINGS} is",
}


@dataclass(frozen=True)
class ServedModel:
    """An exported model read back from disk, used the way a consumer uses it.

    Attributes:
        kind: "image", "text" or "audio".
        labels: Class names; column i of the probabilities is class i. For other tasks the names of labels or targets.
        loaded: What `tf.saved_model.load` returned.
        task: "classification", "multilabel" or "regression".
    """

    kind: str
    labels: tuple[str, ...]
    loaded: Any
    task: str = CLASSIFICATION

    def answers(self, inputs: Sequence[bytes | str]) -> np.ndarray:
        """Return the probability of each class or label, or real values in their own units: float32, (inputs, K).

        Args:
            inputs: Encoded images (PNG, JPEG, GIF or BMP), WAV files or texts; one call of the graph whatever their
                number.

        Raises:
            DataError: If an image or a recording cannot be decoded; the message names its position.
        """
        return self.with_unusual(inputs)[:, : len(self.labels)]

    def with_unusual(self, inputs: Sequence[bytes | str]) -> np.ndarray:
        """Return `answers`, and in one column more how unusual each input is, for a model that says so."""
        if not inputs:
            return np.zeros((0, len(self.labels)), np.float32)
        try:
            reply = self.loaded.serve(tf.constant(list(inputs), tf.string))
            return np.column_stack([reply[name] for name in (ANSWERS[self.task], UNUSUAL) if name in reply])
        except tf.errors.InvalidArgumentError as error:
            row = self._first_unreadable(inputs)
            if row is None:
                raise
            raise DataError(
                f"Input {row} of {len(inputs)} (counted from 0, {len(inputs[row])} bytes) is not "
                f"{_UNREADABLE[self.kind]}. Convert it, or leave it out."
            ) from error

    def probabilities(self, inputs: Sequence[bytes | str]) -> np.ndarray:
        """Return `answers` of a model of classes or labels, in [0, 1]."""
        return self.answers(inputs)

    def _first_unreadable(self, inputs: Sequence[bytes | str]) -> int | None:
        """Return the position of the first image or recording that does not decode; None if all do."""
        if self.kind != "text":
            for row, encoded in enumerate(inputs):
                try:
                    if self.kind == "audio":
                        decode_wav(tf.constant(encoded))
                    else:
                        tf.io.decode_image(encoded, channels=3, expand_animations=False)
                except tf.errors.InvalidArgumentError:
                    return row
        return None


def compile_features(classifier: "Classifier") -> Callable[[Sequence[bytes | str]], np.ndarray]:
    """Return a function of raw inputs to what the model's head is given, float32 (inputs, D)."""
    prepare, network = _prepare_all(classifier, classifier.extractor.prepare), _network(classifier)

    def features(raw: tf.Tensor) -> tf.Tensor:
        return network(prepare(raw))[1]

    compiled = tf.function(features, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    return lambda inputs: np.asarray(compiled(tf.constant(list(inputs), tf.string)))


def _prepare_all(classifier: "Classifier", prepare: Callable[[tf.Tensor], Any]) -> Callable[[tf.Tensor], Any]:
    """Return the function of raw strings (B,) to what the network takes: texts at once, all else one by one."""
    if classifier.extractor.kind == "text":
        return prepare
    pixels = tf.TensorSpec(classifier.model.input_shape[1:], tf.float32)
    return lambda raw: tf.map_fn(prepare, raw, fn_output_signature=pixels)


def _network(classifier: "Classifier") -> Callable[[Any], tuple[tf.Tensor, tf.Tensor]]:
    """Return the function of prepared inputs to outputs (B, K) and features (B, D), float32, for use in a graph."""
    from regraft.tuning.classifier import HEAD

    model = classifier.model
    both = keras.Model(model.input, [model.output, model.get_layer(HEAD).input])

    def outputs(prepared: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with folded_normalization(both):
            answered, features = both(prepared, training=False)
            return tf.cast(answered, tf.float32), tf.cast(features, tf.float32)

    return outputs


def _unusual(familiar: "Familiar", features: tf.Tensor) -> tf.Tensor:
    """Return the distance of `features` (B, D) from what is known over the limit, as `unusual.distances`, (B,)."""
    alike = tf.matmul(tf.math.l2_normalize(features, axis=1), tf.cast(familiar.known.T, tf.float32))
    least = tf.math.top_k(alike, familiar.neighbours).values[:, -1]
    return (1.0 - least) / familiar.limit


def export_saved_model(
    classifier: "Classifier",
    directory: Path,
    *,
    example: bytes | str,
    temperature: float = 1.0,
    familiar: "Familiar | None" = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write `classifier` with its preprocessing as a SavedModel that takes raw input.

    The endpoint `serve` (also the signature `serving_default`) maps strings of shape (B,), encoded images, WAV files or
    texts (both of a pair, ` ||| ` between them), to {"probabilities": float32 (B, K)}, for regression {"values":
    float32 (B, K)}, for any B >= 1. It is made of two parts that are there besides: `prepare`, from raw strings to what
    the network takes, float32 (B, side, side, 3) in [0, 255] (or (B, windows, ...)), or int32 `token_ids` and
    `padding_mask` (B, tokens) (pairs: (B, 2, tokens)); and `answer`, from that, as keyword arguments, to the same
    answers. Written with `tf.saved_model.save` rather than `keras.export.ExportArchive`, which
    lists variables in the order of a set and so gives other bytes each time.

    Args:
        classifier: The trained model, its feature extractor and its class names.
        directory: An empty folder; gets `saved_model/`, `labels.json` and the input example.
        example: One raw input, kept beside the model so that a consumer can try it.
        temperature: What logits are divided by inside the graph.
        familiar: Lets `serve` answer "unusual" as well, float32 (B,): how far an input is from what training knew, 1
            where 95% of validation examples are no further.
        facts: What `labels.json` says besides kind, task and labels.
    """
    extractor, model = classifier.extractor, classifier.model
    kind, prepare = extractor.kind, extractor.prepare
    module = tf.Module()
    if kind == "text":
        prepare, module.tables = extractor.prepare_texts_anew()
    network, link, named = _network(classifier), LINKS[classifier.task], ANSWERS[classifier.task]

    # A function of its own, so that the network is stored once for both that call it.
    @partial(tf.function, autograph=False)
    def reply(**prepared: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs, features = network(prepared if kind == "text" else prepared[PIXELS])
        return link(outputs / temperature if temperature != 1.0 else outputs), features

    def answer(**prepared: tf.Tensor) -> dict[str, tf.Tensor]:
        return {named: reply(**prepared)[0]}

    def serve(raw: tf.Tensor) -> dict[str, tf.Tensor]:
        prepared = module.prepare(raw)
        answers, features = reply(**(prepared if kind == "text" else {PIXELS: prepared}))
        return {named: answers} | ({} if familiar is None else {UNUSUAL: _unusual(familiar, features)})

    signature = [tf.TensorSpec((None,), tf.string, name=kind)]
    inputs = model.input if kind == "text" else {PIXELS: model.input}
    taken = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in inputs.items()}
    module.model_variables = [variable.value for variable in model.variables]
    module.prepare = tf.function(_prepare_all(classifier, prepare), input_signature=signature, autograph=False)
    module.answer = tf.function(answer, autograph=False)
    module.answer.get_concrete_function(**taken)
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    saved_model = directory / SAVED_MODEL
    with _quiet():
        tf.saved_model.save(module, str(saved_model), signatures={"serving_default": module.serve})
    # It holds a random identifier and nothing that loading needs; without it the same model gives the same files.
    (saved_model / "fingerprint.pb").unlink(missing_ok=True)

    about: dict[str, Any] = {"kind": kind, "labels": list(classifier.labels), "task": classifier.task, **(facts or {})}
    if extractor.pair:
        about["pair"] = list(extractor.pair)
    if kind == "text" and not extractor.needs_tensorflow_text:
        about["tensorflow_text"] = False
    write_json(directory / LABELS, about)
    raw = example.encode() if isinstance(example, str) else example
    (directory / INPUT_EXAMPLES[kind]).write_bytes(raw)
    nouns = {"image": "images", "text": "texts", "audio": "WAV files"}
    log.info(
        "exported the model for %s with %d outputs, taking raw %s", classifier.task, len(classifier.labels), nouns[kind]
    )


def load_served(directory: Path) -> ServedModel:
    """Read what `export_saved_model` wrote to `directory`.

    Raises:
        RegistryError: If there is no exported model.
    """
    try:
        facts = read_json(directory / LABELS)
    except FileNotFoundError:
        raise RegistryError(
            f"{directory} holds no exported model ({LABELS} is missing). Run `regraft run` to make one."
        ) from None
    if facts.get("tensorflow_text", facts["kind"] == "text"):
        import tensorflow_text  # noqa: F401  (registers the tokenizer's operations)
    with _quiet():
        loaded = tf.saved_model.load(str(directory / SAVED_MODEL))
    return ServedModel(facts["kind"], tuple(facts["labels"]), loaded, task_of(facts))


def largest_difference(
    classifier: "Classifier",
    served: ServedModel,
    inputs: Sequence[bytes | str],
    *,
    temperature: float = 1.0,
    units: "np.ndarray | float" = 1.0,
) -> float:
    """Return the largest difference between an answer of the Keras model and of its export, over all `inputs`.

    Each output counts in its unit of `units`, shape (K,) or one for all.
    """
    raw = tf.constant(list(inputs), tf.string)
    extractor = classifier.extractor
    prepare = tf.function(extractor.prepare, autograph=False)  # outside a graph a tokenizer returns lists
    prepared = tf.stack([prepare(one) for one in raw]) if extractor.kind != "text" else prepare(raw)
    outputs = tf.cast(classifier.model.predict_on_batch(prepared), tf.float32) / temperature
    return float((np.abs(LINKS[classifier.task](outputs).numpy() - served.answers(inputs)) / units).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what TensorFlow says of every such export: inputs renamed, no assets, no fingerprint."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
