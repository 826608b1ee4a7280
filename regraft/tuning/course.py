"""What fine-tuning learns from and is judged by, in batches, and the folds that judge besides."""

from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from regraft.data.targets import REGRESSION
from regraft.tuning.augment import Augment
from regraft.tuning.batches import Batches, Source, text_lengths
from regraft.tuning.devices import Devices
from regraft.tuning.objective import SOFT_CLASSES
from regraft.tuning.probe import Probe, assign_folds, start_penalty
from regraft.tuning.recipes import CHOOSING_FOLD, JUDGING_FOLDS, Data, Recipe, Way, folds_to_judge
from regraft.tuning.soft_labels import mix, smooth
from regraft.tuning.solvers import Labels


class Course:
    """What all ways learn from and are judged by.

    Attributes:
        data, probe, recipe, vary, devices: As given; the recipe is cut to what there is time for.
        objective: That of training batches, whose labels may be soft.
        everything: All training data, in batches.
        judged: The validation split, in batches.
        judged_labels: Its labels, in the order of `judged`.
        folds: Of the training data, those that help to decide where validation examples are too few to.
    """

    def __init__(
        self,
        data: Data,
        probe: Probe,
        recipe: Recipe,
        *,
        vary: Augment | None,
        devices: Devices,
    ) -> None:
        self.devices = devices
        self.data, self.probe, self.recipe, self.vary = data, probe, recipe, vary
        is_text = data.train.kind == "text"
        self._lengths = text_lengths(data.train) if is_text else None
        # Like lengths side by side waste no time on padding; the order changes no mean.
        by_length = (
            np.argsort(text_lengths(data.validation), kind="stable")
            if is_text
            else np.arange(len(data.validation.labels))
        )
        self.objective = SOFT_CLASSES if recipe.softens and data.objective.labels_are_indices else data.objective
        self.everything = self._batches(data.train, np.arange(len(data.train.labels)), self._lengths)
        self.judged = self._batches(data.validation, by_length, None)
        self.judged_labels = data.validation.labels[by_length]
        self._fold_of = assign_folds(data.objective.groupings(data.train.labels)[0], JUDGING_FOLDS, data.groups)
        asked = folds_to_judge(len(data.train.labels), len(data.validation.labels))
        self.folds = [
            fold for fold in range(CHOOSING_FOLD + 1, CHOOSING_FOLD + 1 + asked) if (self._fold_of == fold).any()
        ]

    @cached_property
    def start_penalty(self) -> float:
        """Return the L2 penalty of the solved head from which fine-tuning starts."""
        data = self.data
        return start_penalty(
            self.probe, data.train_features, data.train.labels, classes=data.classes, objective=data.objective
        )

    def parted(self, fold: int) -> tuple[Labels, Labels]:
        """Return the training rows outside of a fold, and those in it."""
        held_out = np.flatnonzero(self._fold_of == fold)
        if self._lengths is not None:
            held_out = held_out[np.argsort(self._lengths[held_out], kind="stable")]
        return np.flatnonzero(self._fold_of != fold), held_out

    def rates(self, way: Way) -> tuple[float, ...]:
        """Return the rates worth trying: those of the way, or the one that is set."""
        return way.rates if isinstance(self.recipe.learning_rate, str) else (self.recipe.learning_rate,)

    def _batches(self, source: Source, rows: Labels, lengths: Labels | None) -> Batches:
        recipe = self.recipe
        vary_batch = self._soften if recipe.softens else None
        return Batches(
            source, rows, self.data.prepare, recipe.batch_size, recipe.seed, self.vary, lengths, vary_batch=vary_batch
        )

    def _soften(self, inputs: Any, labels: tf.Tensor, seed: tf.Tensor) -> tuple[Any, tf.Tensor]:
        recipe, data = self.recipe, self.data
        if data.objective.task != REGRESSION:
            labels = smooth(labels, data.classes, recipe.label_smoothing)
        return mix(inputs, labels, seed, recipe.mixup) if recipe.mixup else (inputs, labels)
