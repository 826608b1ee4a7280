"""How much each part of an input bears on a model's answer to it.

Parts are the cells of a grid over an image (of recordings, over their log-mel picture), or the words of a text.
"""

import math
import re
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy import special

from regraft.backbones.folding import folded_normalization
from regraft.data.pairs import SEPARATOR
from regraft.data.targets import MULTILABEL, REGRESSION
from regraft.tuning.classifier import Classifier

GRID = 8  # cells a side
PATCHES = 5  # about so many a side are hidden or kept together
MASKS = 192  # pictures with patches hidden that a picture is judged by
MOST_WORDS = 64  # longer texts are taken apart into so many runs of neighbouring words
BATCH_SIZE = 32
GRADIENT_STEPS = 32
HIDING, GRAD_CAM, INTEGRATED_GRADIENTS = "hiding patches", "Grad-CAM", "integrated gradients"
LEAVE_ONE_OUT = "leaving words out"


@dataclass(frozen=True)
class Attribution:
    """One input taken apart.

    Attributes:
        method: How the weights were found.
        weights: Of each part, float64, shape (parts,): the larger, the more it speaks for the answer. For pictures the
            cells row by row, of one window after another.
        parts: The words, for texts; empty for pictures.
        heat: For pictures the weights in full detail, float32 (windows, height, width) in [0, 1]; None for texts.
    """

    method: str
    weights: NDArray[np.float64]
    parts: tuple[str, ...] = ()
    heat: NDArray[np.float32] | None = None

    def words(self) -> list[dict[str, Any]]:
        """Return for each word of a text {"text", "weight", "share": of the largest weight, in [-1, 1]}."""
        strongest = float(np.abs(self.weights).max()) or 1.0
        return [
            {"text": word, "weight": float(weight), "share": float(weight) / strongest}
            for word, weight in zip(self.parts, self.weights, strict=True)
        ]


class PictureExplainer:
    """Explains answers to images, or recordings as pictures, by hiding patches of them and by gradients.

    For values, what lowers the answer counts as much as what raises it; for classes and labels it counts as nothing.

    Args:
        classifier: Of images or recordings.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._model = classifier.model
        self._prepare = classifier.extractor.prepare
        self.task = classifier.task

        # A graph: eager calls of a network are several times slower.
        @partial(tf.function, input_signature=[tf.TensorSpec(self._model.input_shape, tf.float32)], autograph=False)
        def forward(pictures: tf.Tensor) -> tf.Tensor:
            with folded_normalization(self._model):
                return self._model(pictures, training=False)

        self._forward = forward
        pool = next((layer for layer in self._model.layers if layer.name == "pool"), None)
        seen = pool.input if pool is not None else None
        # Networks that give a sequence of patches (transformers) have no map to look at.
        self._with_map = (
            keras.Model(self._model.input, [seen, self._model.output])
            if seen is not None and len(seen.shape) == 4
            else None
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this network allows, the one to show first."""
        return (HIDING, GRAD_CAM, INTEGRATED_GRADIENTS) if self._with_map else (HIDING, INTEGRATED_GRADIENTS)

    def prepared(self, content: bytes) -> NDArray[np.float32]:
        """Return an encoded image or recording as the model sees it: float32 (windows, side, side, 3) in [0, 255]."""
        picture = self._prepare(tf.constant(content)).numpy()
        return picture if picture.ndim == 4 else picture[None]

    def outputs(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the model's outputs, float32 (N, K), for pictures (N, windows, side, side, 3)."""
        parts = [pictures[start : start + BATCH_SIZE] for start in range(0, len(pictures), BATCH_SIZE)]
        return np.concatenate([self._forward(self._shaped(part)).numpy() for part in parts])

    def outputs_of_parts(self, content: bytes, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the outputs for what is left of a picture, see `hidden`."""
        return self.outputs(self.hidden(content, keep))

    def attribute(self, method: str, content: bytes, target: int) -> Attribution:
        """Return what in the image or recording `content` speaks for output `target`."""
        picture = self.prepared(content)
        if method == HIDING:
            return self._hiding(content, target, picture.shape)
        if method == GRAD_CAM and self._with_map is not None:
            heat = self._grad_cam(self._with_map, picture, target)
        else:
            heat = self._integrated_gradients(picture, target)
        cells = tf.image.resize(heat[..., None], (GRID, GRID), method="area")[..., 0].numpy()
        return Attribution(method, cells.astype(np.float64).ravel(), heat=_to_one(heat))

    def hidden(self, content: bytes, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return versions of a picture in which cells that are not kept are blurred beyond recognition.

        Args:
            content: The encoded image or recording.
            keep: Shape (N, parts), see `Attribution.weights`.

        Returns:
            Pictures, float32 (N, windows, side, side, 3).
        """
        picture = self.prepared(content)
        windows, height, width, _ = picture.shape
        masks = keep.reshape(-1, windows, GRID, GRID).astype(np.float32)
        masks = tf.image.resize(masks.reshape(-1, GRID, GRID, 1), (height, width), method="nearest").numpy()
        masks = masks.reshape(len(keep), windows, height, width, 1)
        return masks * picture + (1.0 - masks) * _blurred(picture)

    def _shaped(self, pictures: NDArray[np.float32] | tf.Tensor) -> NDArray[np.float32] | tf.Tensor:
        return pictures if len(self._model.input_shape) == 5 else pictures[:, 0]

    def _matters(self, mass: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.abs(mass) if self.task == REGRESSION else np.maximum(mass, 0.0)

    def _hiding(self, content: bytes, target: int, shape: tuple[int, ...]) -> Attribution:
        """Weigh a cell by how much more the pictures that keep it say the answer, on average, than those that hide it.

        RISE (Petsiuk et al., 2018, section 3, arXiv:1806.07421), with masks that hide any share.
        """
        keep = masks(shape[0])
        says = evidence(self.task, self.outputs_of_parts(content, keep), target)
        weights = says @ keep / keep.sum(axis=0) - says @ ~keep / (~keep).sum(axis=0)
        if self.task == REGRESSION:
            weights = np.abs(weights)
        cells = np.maximum(weights, 0.0).reshape(-1, GRID, GRID, 1)
        heat = tf.image.resize(cells, shape[1:3], method="bilinear")[..., 0].numpy()
        return Attribution(HIDING, weights, heat=_to_one(heat))

    def _grad_cam(self, with_map: keras.Model, picture: NDArray[np.float32], target: int) -> NDArray[np.floating]:
        """Weigh the channels of the last feature map by mean gradients (Selvaraju et al., 2017, arXiv:1610.02391)."""
        with tf.GradientTape() as tape:
            seen, outputs = with_map(self._shaped(picture[None]), training=False)
            answer = outputs[:, target]
        gradient = tape.gradient(answer, seen)
        importance = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        coarse = self._matters(tf.reduce_sum(importance * seen, axis=-1, keepdims=True).numpy())
        heat: NDArray[np.floating] = tf.image.resize(coarse, picture.shape[1:3], method="bilinear")[..., 0].numpy()
        return heat

    def _integrated_gradients(self, picture: NDArray[np.float32], target: int) -> NDArray[np.floating]:
        """Sum gradients on the way from a blurred picture to it (Sundararajan et al., 2017, arXiv:1703.01365)."""
        start = _blurred(picture)
        # Midpoints of equal steps.
        shares = (np.arange(GRADIENT_STEPS, dtype=np.float32) + 0.5) / GRADIENT_STEPS
        total = np.zeros_like(picture)
        for first in range(0, GRADIENT_STEPS, BATCH_SIZE // 2):
            some = shares[first : first + BATCH_SIZE // 2, None, None, None, None]
            between = tf.constant(start + some * (picture - start))
            with tf.GradientTape() as tape:
                tape.watch(between)
                answer = self._model(self._shaped(between), training=False)[:, target]
            total += tape.gradient(answer, between).numpy().sum(axis=0)
        return self._matters(((picture - start) * total / GRADIENT_STEPS).sum(axis=-1))


class TextExplainer:
    """Explains answers to texts, or pairs of them, by leaving words out.

    Args:
        classifier: Of texts.
    """

    methods = (LEAVE_ONE_OUT,)

    def __init__(self, classifier: Classifier) -> None:
        self._model = classifier.model
        self._prepare = classifier.extractor.prepare
        self.task = classifier.task
        self._matters = np.abs if self.task == REGRESSION else np.asarray

    def outputs(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the model's outputs, float32 (N, K)."""
        parts = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
        return np.concatenate(
            [np.asarray(self._model(self._prepare(tf.constant(part)), training=False)) for part in parts]
        )

    def outputs_of_parts(self, content: str, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the outputs for what is left of a text, see `hidden`."""
        return self.outputs(self.hidden(content, keep))

    def attribute(self, method: str, content: str, target: int) -> Attribution:
        """Return by how much output `target` falls when a word is left out (Li et al., 2016, arXiv:1612.08220).

        For values, by how much it changes.
        """
        words = split_words(content)
        without = self.hidden(content, ~np.eye(len(words), dtype=bool))
        outputs = self.outputs([content, *without])[:, target].astype(np.float64)
        return Attribution(method, self._matters(outputs[0] - outputs[1:]), tuple(words))

    def hidden(self, content: str, keep: NDArray[np.bool_]) -> list[str]:
        """Return versions of a text without the words that are not kept; `keep` has the shape (N, words).

        The separator of a pair stays in any case.
        """
        words = split_words(content)
        return [
            "".join(word for word, kept in zip(words, row, strict=True) if kept or word == SEPARATOR) for row in keep
        ]


def split_words(text: str) -> list[str]:
    """Return the words of a text with the spaces after them, so that together they make the text.

    In a pair the separator is a part of its own; see `TextExplainer.hidden`. Of long texts neighbours are taken
    together, so that there are at most `MOST_WORDS`.
    """
    sides = text.split(SEPARATOR, 1)
    parts: list[str] = []
    for side in sides:
        words = re.findall(r"\S+\s*|\s+", side) or [side]
        at_once = math.ceil(len(words) * len(sides) / MOST_WORDS)
        parts += ["".join(words[start : start + at_once]) for start in range(0, len(words), at_once)]
        parts.append(SEPARATOR)
    return parts[:-1]


Explainer = PictureExplainer | TextExplainer


def explainer_of(classifier: Classifier) -> Explainer:
    """Return what explains answers of `classifier`."""
    return TextExplainer(classifier) if classifier.extractor.kind == "text" else PictureExplainer(classifier)


@cache
def masks(windows: int) -> NDArray[np.bool_]:
    """Return which cells to keep in each of `MASKS` pictures of as many windows, shape (MASKS, parts).

    Patches of neighbouring cells at random, in all shares of the picture from next to nothing to nearly all; for each
    mask there is its opposite.
    """
    count = MASKS // 2
    noise = np.random.default_rng(0).normal(size=(count * windows, PATCHES, PATCHES, 1)).astype(np.float32)
    smooth = tf.image.resize(noise, (GRID, GRID), method="bicubic").numpy().reshape(count, -1)
    rank = smooth.argsort(axis=1).argsort(axis=1)
    shares = (np.arange(count) + 0.5) / count
    keep = rank < shares[:, None] * rank.shape[1]
    return np.concatenate([keep, ~keep])


def evidence(task: str, outputs: NDArray[np.float32], target: int) -> NDArray[np.float64]:
    """Return by row of `outputs` (N, K) what it says of `target`: the probability of a class or label, or the value."""
    wide = outputs.astype(np.float64)
    if task == REGRESSION:
        return wide[:, target]
    return special.expit(wide[:, target]) if task == MULTILABEL else special.softmax(wide, axis=1)[:, target]


def _to_one(heat: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return `heat`, which is not negative, with 1 for its largest value."""
    largest = float(heat.max())
    return (heat / largest if largest > 0.0 else heat).astype(np.float32)


def _blurred(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pictures (windows, side, side, 3) with nothing but their broad colours left."""
    few = tf.image.resize(picture, (2, 2), method="area")
    return tf.image.resize(few, picture.shape[1:3], method="bicubic").numpy().clip(0.0, 255.0)
