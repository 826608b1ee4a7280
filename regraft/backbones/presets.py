"""KerasHub preset folders: read without running what a stranger wrote into them, and stored alike every time."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_hub

from regraft.backbones import small  # also makes its classes known to Keras
from regraft.backbones.architectures import architectures
from regraft.backbones.arithmetic import operations
from regraft.backbones.card import Card, read_card, weights_digest
from regraft.backbones.catalogue import Entry, Kind
from regraft.backbones.weights import CARD, CONFIG, METADATA, TOKENIZER, WEIGHTS
from regraft.errors import BackboneError
from regraft.files import read_object, write_json
from regraft.pretraining.seen import SEEN

log = logging.getLogger(__name__)

DEFAULT_SIZE_PX = 224
MOST_TOKENS = 512
IMAGE_CONVERTER = "image_converter.json"
# Weights that are too large for one file are in several, of which the second name lists the names.
WEIGHT_FILES = (WEIGHTS, "model.weights.json")
OWN_MODULES = ("keras_hub.", small.__name__)
# What a configuration may ask for besides backbones: they compute nothing but numbers that weights replace.
HARMLESS = ("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies")
# Tables of words are often made a little longer than the vocabulary, up to the next multiple of 128; tables of a small
# vocabulary by less.
ROUND_ROWS, ROUND_SHARE = 128, 0.1
# Numbers of the normalisation that differ by less than this share mean the same.
SAME_SHARE = 0.01
UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
# What a card in a preset is believed; all else is counted.
BELIEVED = ("source_dataset", "licence", "pooling", "origin", "pretraining", "offset", "divisor", "input_tokens")


def load_backbone(folder: Path) -> keras_hub.models.Backbone:
    """Load the backbone of a KerasHub preset folder; its configuration may name classes of KerasHub and no others.

    Raises:
        BackboneError: If its configuration or weights cannot be read, or it asks for anything but a backbone.
    """
    _require_harmless(folder / CONFIG, keras_hub.models.Backbone)
    if not any((folder / file).is_file() for file in WEIGHT_FILES):
        raise BackboneError(f"{folder} has no {WEIGHTS}: the weights are missing. Copy the whole preset folder.")
    try:
        with warnings.catch_warnings():
            # Keras also looks for weights in its own list of operations, finds none there, and warns that they will
            # stay as initialised. They were read from the list of layers; `weights_digest` proves it.
            warnings.filterwarnings("ignore", "Skipping nested container at '_operations_by_depth")
            backbone = keras_hub.models.Backbone.from_preset(str(folder))
    except UNREADABLE as error:
        raise BackboneError(f"{folder} cannot be loaded as a KerasHub preset: {str(error)[:500]}") from error
    others = sorted({weight.dtype for weight in backbone.weights} - {"float32"})
    if others:
        raise BackboneError(
            f"the weights in {folder} are {', '.join(others)}, not float32. Save it again from "
            "`keras_hub.models.Backbone.from_preset(..., dtype='float32')`."
        )
    return backbone


def load_tokenizer(folder: Path) -> keras_hub.tokenizers.Tokenizer:
    """Load the tokenizer of a KerasHub preset folder, with the same caution.

    Raises:
        BackboneError: If there is none, or it cannot be read.
    """
    if not (folder / TOKENIZER).is_file():
        raise BackboneError(
            f"{folder} has no {TOKENIZER}, and texts need one: write it with `tokenizer.save_to_preset(DIR)`."
        )
    _require_harmless(folder / TOKENIZER, keras_hub.tokenizers.Tokenizer)
    try:
        return keras_hub.tokenizers.Tokenizer.from_preset(str(folder))
    except UNREADABLE as error:
        raise BackboneError(f"the tokenizer in {folder} cannot be loaded: {str(error)[:500]}") from error


def store(source: Path, folder: Path, name: str, *, entry: Entry | None = None, origin: str | None = None) -> Card:
    """Store the KerasHub preset `source` in `folder`, verified and with a card.

    Args:
        source: The preset; a card in it is believed, else one is made from its configuration.
        folder: Empty, or not there yet.
        name: What the card says.
        entry: The row of the catalogue that it must be; None for a preset of the user's own.
        origin: What the card says of where it came from; None for what the card in `source` says, or its folder's name.

    Raises:
        BackboneError: If it cannot be read, is no backbone for images or texts, is not what `entry` says, its weights
            are not those on its card, or the tokenizer does not fit it.
    """
    keras.utils.clear_session(free_memory=False)  # or names of layers would hang on what was made before
    backbone = load_backbone(source)
    kind = _kind(backbone, source)
    digest = weights_digest(backbone)
    written = read_card(source) if (source / CARD).is_file() else None
    if written is not None and written.weights_sha256 != digest:
        raise BackboneError(
            f"the weights in {source} are not what its card says (sha256 {written.weights_sha256}, found {digest}): "
            "the copy is not whole, or they were changed. Copy the folder again."
        )
    if entry is not None:
        _require_entry(backbone, kind, entry, written, source)
    tokenizer = None
    if kind == "text":
        tokenizer = load_tokenizer(source)
        _require_same_vocabulary(backbone, tokenizer, source)
    save(backbone, tokenizer, folder)
    facts = _facts_of(entry, source) if entry else _facts(source, backbone, kind, written)
    if origin is not None:
        facts["origin"] = origin
    card = Card(
        **{"origin": f"preset folder {source.name}", **facts},
        name=name,
        kind=kind,
        parameters=backbone.count_params(),
        weights_sha256=digest,
    )
    card.write(folder)
    if (source / SEEN).is_file():
        shutil.copyfile(source / SEEN, folder / SEEN)
    return card


def save(backbone: keras_hub.models.Backbone, tokenizer: Any, folder: Path) -> None:
    """Write a preset whose bytes depend on nothing but the weights: KerasHub notes the time of saving, we drop it."""
    backbone.save_to_preset(str(folder), max_shard_size=None)
    if tokenizer is not None:
        tokenizer.save_to_preset(str(folder))
    metadata = json.loads((folder / METADATA).read_text("utf-8"))
    metadata.pop("date_saved", None)
    write_json(folder / METADATA, metadata)


def _require_harmless(path: Path, wanted: type) -> None:
    """Check that a configuration makes an object of KerasHub's (or ours) of the type `wanted`, and of no other kind.

    Keras makes whatever object a configuration names. It does refuse Python's lambdas, and modules that are not its
    own, but among its own are layers that do more than arithmetic, and any package that is installed may have
    registered classes; weights need none of them.

    Raises:
        BackboneError: If it does not, or is no configuration of KerasHub's.
    """
    if not path.is_file():
        raise BackboneError(
            f"{path.parent} has no {path.name}, so it is not a KerasHub preset. "
            "Write one with `backbone.save_to_preset(DIR)`, for text also `tokenizer.save_to_preset(DIR)`."
        )
    try:
        config = json.loads(path.read_text("utf-8"))
        objects = [inner for part in config.values() for inner in _objects(part)]
        outer = _registered(config)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BackboneError(f"{path} is not a KerasHub configuration: {error!r}.") from None
    if outer is None or not issubclass(outer, wanted):
        raise BackboneError(
            f"{path} describes {_called(config)}, which is no {wanted.__name__} of KerasHub's. It was not loaded. "
            "A folder of another library becomes a KerasHub preset by `from_preset` and `save_to_preset` there."
        )
    for inner in objects:
        found = _registered(inner)
        if not _is_harmless(inner) and not (found and issubclass(found, keras_hub.models.Backbone)):
            raise BackboneError(
                f"{path} asks for {_called(inner)}, which no backbone has need of. It was not loaded: make sure that "
                "it comes from where you think."
            )


def _is_harmless(inner: dict[str, Any]) -> bool:
    """Return whether an object is one that computes nothing; Keras prefers a registered class to the one named."""
    is_policy = (inner.get("module"), inner.get("class_name")) == ("keras", "DTypePolicy")
    return inner.get("registered_name") is None and (is_policy or inner.get("module") in HARMLESS)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object inside a configuration, however deep."""
    if isinstance(value, dict):
        if value.keys() & {"class_name", "registered_name", "module"}:
            yield value
        for part in value.values():
            yield from _objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _registered(config: dict[str, Any]) -> type | None:
    """Return the class of KerasHub's, or ours, that `registered_name` names: Keras looks there first."""
    found = keras.saving.get_registered_object(str(config.get("registered_name")))
    return found if isinstance(found, type) and found.__module__.startswith(OWN_MODULES) else None


def _called(config: dict[str, Any]) -> str:
    return str(config.get("registered_name") or f"{config.get('module')}.{config.get('class_name')}")


def _kind(backbone: keras_hub.models.Backbone, source: Path) -> Kind:
    """Return what a backbone takes, "text" or "image".

    Raises:
        BackboneError: If it takes or gives something else.
    """
    inputs, outputs = backbone.input, backbone.output
    if isinstance(inputs, dict):
        if set(inputs) <= {"token_ids", "padding_mask", "segment_ids"} and "token_ids" in inputs:
            return "text"
        what = f"takes {', '.join(sorted(inputs))}"
    elif isinstance(inputs, list) or len(inputs.shape) != 4 or inputs.shape[-1] != 3:
        what = f"takes {inputs}"
    elif isinstance(outputs, dict | list) or len(outputs.shape) not in (3, 4):
        what = f"gives {outputs}"
    else:
        return "image"
    raise BackboneError(
        f"the {type(backbone).__name__} in {source} {what[:200]}: only backbones that turn pictures into a map or a "
        "sequence of features, or texts into a sequence of them, can be used here."
    )


def _require_entry(
    backbone: keras_hub.models.Backbone, kind: str, entry: Entry, written: Card | None, source: Path
) -> None:
    made_as, parameters = architectures()[entry.name].class_name, backbone.count_params()
    found = (kind, type(backbone).__name__, parameters)
    if found != (entry.kind, made_as, entry.parameters):
        raise BackboneError(
            f"{source} is not {entry.name}: it holds a {found[1]} for {kind} with {parameters:,} parameters, where the "
            f"catalogue has a {made_as} for {entry.kind} with {entry.parameters:,}. Give it a name of its own."
        )
    if written is not None and written.source_dataset != entry.source_dataset:
        raise BackboneError(
            f"{source} is not {entry.name}: its card says that it was trained on {written.source_dataset}, where the "
            f"catalogue has {entry.source_dataset}. Give it a name of its own."
        )


def _require_same_vocabulary(backbone: keras_hub.models.Backbone, tokenizer: Any, source: Path) -> None:
    rows, words = backbone.vocabulary_size, tokenizer.vocabulary_size()
    if not words <= rows < words + min(ROUND_ROWS, 1 + ROUND_SHARE * words):
        raise BackboneError(
            f"tokenizer and weights in {source} do not belong together: the tokenizer has {words:,} tokens, the table "
            f"of the {type(backbone).__name__} has {rows:,} rows. Save the tokenizer that it was trained with."
        )


def _facts_of(entry: Entry, source: Path) -> dict[str, Any]:
    """Return what a card says of a preset that the catalogue knows; how pixels are scaled, the preset knows best."""
    facts = {
        key: getattr(entry, key)
        for key in (
            "feature_size", "pooling", "source_dataset", "licence", "input_size_px", "input_tokens", "is_fixed_size",
            "flops", "offset", "divisor",
        )
    }  # fmt: skip
    own = _normalisation(source) if entry.kind == "image" else None
    for key, found in (own or {}).items():
        expected = facts[key]
        if any(abs(a - b) > SAME_SHARE * max(abs(a), 1.0) for a, b in zip(expected, found, strict=True)):
            log.warning(
                "the catalogue has %s %s for %s, its preset %s: the preset's is used", key, expected, entry.name, found
            )
    return {**facts, **(own or {})}


def _facts(source: Path, backbone: keras_hub.models.Backbone, kind: str, written: Card | None) -> dict[str, Any]:
    """Return what a card says of a preset of the user's own."""
    facts: dict[str, Any] = {"pooling": _pooling(backbone, kind), "source_dataset": "unknown", "licence": "unknown"}
    output = backbone.output
    sequence = output["sequence_output"] if isinstance(output, dict) else output
    facts["feature_size"] = sequence.shape[-1]
    if kind == "text":
        facts["input_tokens"] = min(getattr(backbone, "max_sequence_length", None) or MOST_TOKENS, MOST_TOKENS)
    else:
        height, width = backbone.input.shape[1:3]
        if height != width:
            raise BackboneError(f"{source} takes pictures of {height} x {width}; only squares can be used here.")
        facts["is_fixed_size"] = height is not None
        facts["input_size_px"] = height or (written.input_size_px if written else None) or DEFAULT_SIZE_PX
        scaling = _normalisation(source)
        if scaling is None and written is None:
            log.warning("%s does not say how pixels were scaled in pretraining; scaling them to [-1, 1]", source.name)
        facts |= scaling or {"offset": (127.5,) * 3, "divisor": (127.5,) * 3}
    facts["flops"] = operations(backbone, side_px=facts.get("input_size_px"))
    return facts | ({key: getattr(written, key) for key in BELIEVED} if written else {})


def _pooling(backbone: keras_hub.models.Backbone, kind: str) -> str:
    """Return how the features of a backbone become one vector, where nothing says so.

    Of a text that is read from left to right only the last token has seen all; a picture in patches has a token for
    the purpose, unless it is made without.
    """
    if kind == "text":
        causal = {task.backbone_cls for task in keras_hub.models.CausalLM.__subclasses__()}
        return "last" if type(backbone) in causal else "average"
    in_patches = len(backbone.output.shape) == 3
    return "class" if in_patches and getattr(backbone, "use_class_token", True) else "average"


def _normalisation(source: Path) -> dict[str, tuple[float, ...]] | None:
    """Return offset and divisor, `(pixel - offset) / divisor`, as the preset's image converter has them; None for none.

    Raises:
        BackboneError: If it cannot be read.
    """
    path = source / IMAGE_CONVERTER
    if not path.is_file():
        return None
    try:
        config = read_object(path)["config"]
        # Older presets have mean and variance, which KerasHub turns into scale and offset.
        known = ("scale", "offset", "mean", "variance")
        converter = keras_hub.layers.ImageConverter(**{key: config[key] for key in known if key in config})
        if converter.scale is None:
            return None
        scale, shift = _per_channel(converter.scale), _per_channel(converter.offset or 0.0)
        return {
            "offset": tuple(-term / factor for factor, term in zip(scale, shift, strict=True)),
            "divisor": tuple(1.0 / factor for factor in scale),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BackboneError(f"{path} does not say how pixels are scaled: {error!r}.") from None


def _per_channel(value: float | list[float]) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)] * 3
