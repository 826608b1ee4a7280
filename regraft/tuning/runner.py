"""A model set up to be fine-tuned in one way, again and again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from regraft.tuning.batches import Batches
from regraft.tuning.classifier import get_head, set_head
from regraft.tuning.course import Course
from regraft.tuning.layers import GROUPS, LEVELS, decayed_multipliers, gradual_multipliers, levels
from regraft.tuning.loop import Trainer, freeze_statistics_and_tables
from regraft.tuning.lora import enable_lora
from regraft.tuning.objective import LIKENESS
from regraft.tuning.probe import refit_probe
from regraft.tuning.recipes import Way
from regraft.tuning.scores import Score
from regraft.tuning.solvers import Features, Labels


class Runner:
    """A model set up for one way, which can begin again and again."""

    def __init__(self, way: Way, model: keras.Model, backbone: keras.Model, course: Course) -> None:
        self.way, self.model = way, model
        self._course = course
        self._rows = np.arange(len(course.data.train.labels))
        if way.lora_rank:
            enable_lora(model, way.lora_rank)
        learner = backbone if way.contrastive else model
        if not way.everything_learns:
            freeze_statistics_and_tables(learner)
        multipliers = None
        if way.gradual:
            multipliers = np.ones(len(learner.trainable_variables), np.float32)  # `unfreezing` sets them at every step
        elif course.recipe.layer_decay < 1.0 and not way.lora_rank:
            multipliers = decayed_multipliers(levels(learner, LEVELS), course.recipe.layer_decay)
        objective = LIKENESS if way.contrastive else course.objective
        self.trainer = Trainer(
            learner,
            objective,
            l2_sp=course.recipe.l2_sp,
            multipliers=multipliers,
            devices=course.devices,
            accumulate=course.recipe.accumulate,
            everything_learns=way.everything_learns,
        )
        self._untouched = self.state()

    def state(self) -> tuple[Any, tuple[Features, Features]]:
        """Return all that training changes, for `restore`."""
        return self.trainer.state(), get_head(self.model)

    def restore(self, state: tuple[Any, tuple[Features, Features]]) -> None:
        """Set everything back to `state`."""
        self.trainer.restore(state[0])
        set_head(self.model, *state[1])

    def reset(self) -> None:
        """Set everything back to the untouched backbone with the probe's head."""
        self.restore(self._untouched)

    def begin(self, rows: Labels) -> None:
        """Set everything back, with the head that learning from `rows` of the training data starts from."""
        self.reset()
        self._rows = rows
        if self.way.head == "zero":
            set_head(self.model, *(np.zeros_like(part) for part in get_head(self.model)))
        elif not self.way.contrastive:
            self._solve_head(self._course.data.train_features[rows], self._course.start_penalty)

    def batches(self, everything: Batches) -> Batches:
        """Return the batches this way learns from."""
        return replace(everything, in_pairs=True, vary_batch=None) if self.way.contrastive else everything

    def finish_head(self) -> None:
        """Solve the head on the features as they are now, if it did not learn with them."""
        if self.way.contrastive:
            batches = self._course.everything.of(self._rows)
            self._solve_head(self.trainer.logits(batches.in_order()), self._course.probe.penalty)

    def logits(self, batches: Batches) -> NDArray[np.float32]:
        """Return the outputs of backbone and head for all rows of `batches`, float32, shape (N, K)."""
        outputs = self.trainer.logits(batches.in_order())
        if not self.way.contrastive:
            return outputs
        kernel, bias = get_head(self.model)
        return outputs @ kernel + bias

    def score(self, batches: Batches, labels: Labels) -> Score:
        """Return the score of the model as it is now."""
        self.finish_head()
        return self._course.data.objective.score(self.logits(batches), labels)

    def _solve_head(self, features: Features, penalty: float) -> None:
        data = self._course.data
        labels = data.train.labels[self._rows]
        head = refit_probe(features, labels, classes=data.classes, penalty=penalty, objective=data.objective)
        set_head(self.model, *head)

    def unfreezing(self, total_steps: int) -> Callable[[int], NDArray[np.float32]] | None:
        """Return which weights learn when, in a run of `total_steps`; None if all do at any time."""
        return gradual_multipliers(levels(self.trainer.model, GROUPS), total_steps) if self.way.gradual else None


class Turns:
    """Runners one at a time: several at once, with their optimizers, would not fit into a small GPU's memory."""

    def __init__(self, course: Course, models: Iterator[tuple[keras.Model, keras.Model]]) -> None:
        self._course, self._models = course, models
        self._runner: Runner | None = None

    @property
    def way(self) -> Way | None:
        """The way whose turn it is."""
        return self._runner.way if self._runner else None

    def of(self, way: Way) -> Runner:
        """Return a runner for `way`, made anew unless it is the one whose turn it is."""
        if self._runner is None or self._runner.way is not way:
            self._runner = None
            self._runner = Runner(way, *next(self._models), self._course)
        return self._runner
