"""A model on disk and in memory: a backbone, a head, the labels, and the probe it is compared with."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION
from regraft.errors import TrainingError
from regraft.files import read_json, write_json

if TYPE_CHECKING:
    from regraft.backbones.extractor import Extractor

HEAD = "head"
_WEIGHTS = "model.weights.h5"
_CARD = "model.json"
_PROBE = "probe.npz"


@dataclass(frozen=True)
class Classifier:
    """What ships.

    Attributes:
        extractor: Prepares raw input; its model shares the backbone's (tuned) weights with `model`.
        model: Prepared input to outputs, float32, shape (B, K): logits; for regression values in the targets' units.
        labels: Class names; position i is class i. For other tasks the names of labels or targets.
        kernel: The probe's, float32, shape (D, K), for features of the *untuned* backbone.
        bias: The probe's, float32, shape (K,).
        shipped: "probe" or the strategy whose weights `model` holds.
        task: "classification", "multilabel" or "regression".
    """

    extractor: "Extractor"
    model: keras.Model
    labels: tuple[str, ...]
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    shipped: str
    task: str = CLASSIFICATION


def graft(backbone: keras.Model, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> keras.Model:
    """Return `backbone` (inputs to features (B, D)) with a dense head of logits on it; the two share their weights.

    Args:
        backbone: A functional model.
        kernel: The head's, shape (D, K).
        bias: The head's, shape (K,).
    """
    head = keras.layers.Dense(kernel.shape[1], dtype="float32", name=HEAD)
    model = keras.Model(backbone.input, head(backbone.outputs[0]), name="classifier")
    set_head(model, kernel, bias)
    return model


def set_head(model: keras.Model, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Overwrite the head of a model that `graft` made."""
    model.get_layer(HEAD).set_weights([kernel, bias])


def get_head(model: keras.Model) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel (D, K) and bias (K,) of a model that `graft` made."""
    kernel, bias = model.get_layer(HEAD).get_weights()
    return kernel, bias


def save_classifier(directory: Path, classifier: Classifier) -> None:
    """Write weights, card and probe into the existing folder `directory`; the same classifier gives the same bytes."""
    classifier.model.save_weights(directory / _WEIGHTS)
    size, tokens = classifier.extractor.image_size_px, classifier.extractor.max_tokens
    view = classifier.extractor.view
    write_json(
        directory / _CARD,
        {
            "kind": classifier.extractor.kind,
            "backbone": classifier.extractor.card.name,
            "image_size_px": size,
            "max_tokens": tokens,
            "view": view and asdict(view),
            "pair": list(classifier.extractor.pair) or None,
            "feature_size": int(classifier.kernel.shape[0]),
            "labels": list(classifier.labels),
            "shipped": classifier.shipped,
            "task": classifier.task,
        },
    )
    np.savez(directory / _PROBE, kernel=classifier.kernel, bias=classifier.bias)


def load_classifier(directory: Path, backbones: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote to `directory`, on the preset in `backbones`.

    Raises:
        TrainingError: If `directory` holds no model.
    """
    from regraft.backbones.extractor import extractor_as

    if not (directory / _CARD).exists():
        raise TrainingError(
            f"{directory} holds no model ({_CARD} is missing). Run `regraft run` (or `python -m tasks finetune`) first."
        )
    card = read_json(directory / _CARD)
    with np.load(directory / _PROBE, allow_pickle=False) as probe:
        kernel, bias = probe["kernel"], probe["bias"]
    extractor = extractor_as(backbones, card)
    model = graft(extractor.model, kernel, bias)
    model.load_weights(directory / _WEIGHTS)
    return Classifier(extractor, model, tuple(card["labels"]), kernel, bias, card["shipped"], card["task"])
