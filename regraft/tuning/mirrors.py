"""Whether mirror images of the training images may be trained on: asked of the images themselves."""

import logging
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.tuning.batches import Batches
from regraft.tuning.probe import assign_folds
from regraft.tuning.recipes import Data, Recipe
from regraft.tuning.solvers import Features, Labels

log = logging.getLogger(__name__)

CHIRALITY_SAMPLE = 512
CHIRALITY_FOLDS = 4
# Measured with EfficientNet-Lite0: trash 0.50, groceries 0.61, MNIST digits 0.83, hand signs 0.87.
CHIRALITY_LIMIT = 0.70


@dataclass(frozen=True)
class Flip:
    """Whether mirror images are shown in training, and the evidence (None if nothing was measured)."""

    safe: bool
    chirality: float | None


def flip_is_safe(backbone: keras.Model, data: Data, recipe: Recipe) -> Flip:
    """Decide from the training images whether mirroring keeps them what they are.

    Mirrored photos of things are as likely as the photos themselves; mirrored digits, letters and arrows are not, and
    may belong to another class. Where originals can be told from their mirror images (`chirality` above
    `CHIRALITY_LIMIT`), images are not flipped. Costs one frozen forward pass over at most `CHIRALITY_SAMPLE` images.

    Source: the question is that of Lin, Sun, Davis & Snavely, Visual Chirality, 2020 (arXiv:2006.09512).
    """
    rows = np.arange(
        min(CHIRALITY_SAMPLE, len(data.train.labels))
    )  # rows are in the order of content hashes: a random sample
    forward = tf.function(lambda images: backbone(tf.reverse(images, [2]), training=False), reduce_retracing=True)
    images = Batches(data.train, rows, data.prepare, recipe.batch_size, recipe.seed).in_order()
    mirrored = np.concatenate([forward(batch).numpy() for batch, _ in images])
    differences = data.train_features[rows] - mirrored
    # Mirroring must keep every target what it is.
    groups = data.groups if data.groups is None else data.groups[rows]
    value = max(chirality(differences, held, groups) for held in data.objective.groupings(data.train.labels[rows]))
    safe = value <= CHIRALITY_LIMIT
    log.info(
        "images are told from their mirror images %.0f%% of the time (limit %.0f%%): training %s mirror images",
        100 * value, 100 * CHIRALITY_LIMIT, "uses" if safe else "does not use",
    )  # fmt: skip
    return Flip(safe, value)


def chirality(differences: Features, labels: Labels, groups: NDArray[Any] | None = None) -> float:
    """Return how often the original of a pair (image, mirror image) is recognised, in [0, 1]; 0.5 is guessing.

    Each pair is judged by the mean difference of the other folds' pairs of its class: by class, because arrows to the
    left and arrows to the right make up a symmetric set in which no arrow may be mirrored.

    Args:
        differences: Features of the image minus features of its mirror image, float32, shape (N, D).
        labels: Shape (N,).
        groups: What is to stay together in folds, shape (N,), see `probe.assign_folds`.
    """
    deviations = differences.std(axis=0)
    scaled = differences / np.where(deviations > 1e-6, deviations, 1.0)
    fold_of = assign_folds(labels, CHIRALITY_FOLDS, groups)
    votes: list[NDArray[np.bool_]] = []
    for label in np.unique(labels):
        for fold in range(CHIRALITY_FOLDS):
            judged = (labels == label) & (fold_of == fold)
            others = (labels == label) & (fold_of != fold)
            if judged.any() and others.any():
                votes.append(scaled[judged] @ scaled[others].mean(axis=0) > 0.0)
    return float(np.concatenate(votes).mean()) if votes else 1.0
