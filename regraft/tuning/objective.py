"""What training aims at, for each task: the head's solver, the loss of a step, the loss of an example, and its words.

Everything else in this package (penalty, pilots, early stopping, probe against fine-tuned) works on losses of single
examples and so is the same for every task. Real values are standardised before they come here: see `target_scale`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.tuning.scores import (
    Score,
    inverse_temperature,
    label_inverse_temperature,
    label_losses,
    log_losses,
    score,
    score_labels,
    score_values,
    squared_errors,
)
from regraft.tuning.solvers import Features, Ridge, Vector, solve, solve_labels

Solver = Callable[[float, Vector], Vector]

# Half decades, strongest first, so that each solution starts the next one from nearby. The unit is the objective of
# `solve`: features have unit variance and the log loss is a mean, so the range holds whatever the number of examples.
PENALTIES = tuple(float(f"{10.0**power:.3g}") for power in np.arange(0.0, -5.01, -0.5))
# Squared error has curvature where log loss has gone flat, so ridge asks for stronger penalties.
RIDGE_PENALTIES = tuple(float(f"{10.0**power:.3g}") for power in np.arange(2.0, -4.01, -0.5))
_BINS = 4


class Aim(ABC):
    """What a step of training lowers: all that the loop has to know.

    Attributes:
        labels_are_indices: Whether a label in training is an integer, the number of a class; else it is K floats.
        loss_name: What the loss is called in words.
        measure_name: What `Score.accuracy` is called in words.
        compares_examples: Whether the loss of a step is of pairs of examples, not a mean over examples: then a batch
            cannot be divided.
    """

    labels_are_indices = False
    loss_name: str
    measure_name: str
    compares_examples = False

    @abstractmethod
    def training_loss(self) -> Callable[[Any, Any], Any]:
        """Return the loss of a step, a function of labels and outputs (tensors) to a scalar."""


class Objective(Aim):
    """A task as training sees it. N examples, K outputs.

    Attributes:
        task: "classification", "multilabel" or "regression".
        penalties: Candidates for the head, strongest first.
        names: `Score`'s words "log_loss" and "accuracy", as reports call them.
        gains: How the numbers of examples gained and lost are said; filled with gained, lost and examples.
    """

    task: str
    penalties: tuple[float, ...]
    names: tuple[str, str]
    gains: str

    @abstractmethod
    def solver(self, features: Features, labels: NDArray[Any]) -> Solver:
        """Return a function of penalty and start (D + 1, K) to the head solved on standardised `features` (N, D)."""

    @abstractmethod
    def losses(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return the loss of each example, shape (N,), of `outputs` (N, K)."""

    @abstractmethod
    def score(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> Score:
        """Return the score of `outputs` (N, K)."""

    def temperature(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> float:
        """Return what logits (N, K) must be divided by to be as sure as they are right; 1 where there are none."""
        return 1.0

    @abstractmethod
    def groupings(self, labels: NDArray[Any]) -> list[NDArray[np.int64]]:
        """Return one or more ways to put examples into groups of like targets, each of shape (N,).

        The first divides the training data into folds; in each of them mirror images are looked for.
        """

    @abstractmethod
    def gained_and_lost(
        self, before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[Any]
    ) -> tuple[int, int]:
        """Return how many examples `after` answers better than `before`, and how many worse, in plain answers."""

    def reported(self, facts: Any) -> Any:
        """Return `facts` (JSON) with the words "log_loss" and "accuracy" in keys as this task calls them."""
        if isinstance(facts, dict):
            loss, measure = self.names
            return {
                key.replace("log_loss", loss).replace("accuracy", measure): self.reported(value)
                for key, value in facts.items()
            }
        return [self.reported(value) for value in facts] if isinstance(facts, list | tuple) else facts


class Classes(Objective):
    """One class of K: labels are int64 (N,), outputs are logits, the loss is the log loss of softmax."""

    task = CLASSIFICATION
    labels_are_indices = True
    penalties = PENALTIES
    loss_name = "log loss"
    measure_name = "accuracy"
    names = ("log_loss", "accuracy")
    gains = "{gained} answers gained and {lost} lost on {examples} validation examples"

    def solver(self, features: Features, labels: NDArray[Any]) -> Solver:
        return lambda penalty, start: solve(features, labels, penalty=penalty, start=start)

    def losses(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.float64]:
        return log_losses(outputs, labels)

    def score(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> Score:
        return score(outputs, labels)

    def training_loss(self) -> Callable[[Any, Any], Any]:
        import keras

        return _mean_of(keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none"))

    def temperature(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> float:
        return 1.0 / inverse_temperature(outputs, labels)

    def groupings(self, labels: NDArray[Any]) -> list[NDArray[np.int64]]:
        return [labels]

    def gained_and_lost(
        self, before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[Any]
    ) -> tuple[int, int]:
        was_right, is_right = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
        return int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())


class SoftClasses(Classes):
    """Classes whose labels in training are shares, float32 (N, K), each row summing to 1: see `soft_labels`."""

    labels_are_indices = False

    def training_loss(self) -> Callable[[Any, Any], Any]:
        import keras

        return _mean_of(keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"))


class Likeness(Classes):
    """Classes, learned from pairs: outputs of a step are features, and those of one class are to point the same way.

    The loss is SetFit's squared error of the cosine of two texts, 1 for the same class and 0 for two, over all pairs of
    a batch; both kinds of pairs weigh the same, however many there are. Source: Tunstall et al., 2022, section 3
    (arXiv:2209.11055).
    """

    compares_examples = True

    def training_loss(self) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        def loss(labels: Any, features: Any) -> Any:
            directions = tf.math.l2_normalize(tf.cast(features, tf.float32), axis=1)
            cosines = tf.matmul(directions, directions, transpose_b=True)
            same = tf.cast(labels[:, None] == labels[None, :], tf.float32)
            other, pair = 1.0 - same, 1.0 - tf.eye(tf.shape(labels)[0])
            alike = tf.math.divide_no_nan(tf.reduce_sum(same * pair * (1.0 - cosines) ** 2), tf.reduce_sum(same * pair))
            apart = tf.math.divide_no_nan(tf.reduce_sum(other * cosines**2), tf.reduce_sum(other))
            return 0.5 * (alike + apart)

        return loss


class LabelSets(Objective):
    """Any of K labels at once: labels are 0 or 1, float32 (N, K), outputs are logits of each, the loss its log loss."""

    task = MULTILABEL
    penalties = PENALTIES
    loss_name = "log loss (a label)"
    measure_name = "micro F1"
    names = ("log_loss", "micro_f1")
    gains = "more labels right on {gained} and fewer on {lost} of {examples} validation examples"

    def solver(self, features: Features, labels: NDArray[Any]) -> Solver:
        return lambda penalty, start: solve_labels(features, labels, penalty=penalty, start=start)

    def losses(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.float64]:
        return label_losses(outputs, labels)

    def score(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> Score:
        return score_labels(outputs, labels)

    def training_loss(self) -> Callable[[Any, Any], Any]:
        import keras

        return _mean_of(keras.losses.BinaryCrossentropy(from_logits=True, reduction="none"))

    def temperature(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> float:
        return 1.0 / label_inverse_temperature(outputs, labels)

    def groupings(self, labels: NDArray[Any]) -> list[NDArray[np.int64]]:
        # By the rarest of an example's labels, so that every fold has some of each.
        by_frequency = np.argsort(labels.sum(axis=0), kind="stable")
        held = labels[:, by_frequency] > 0.5
        rarest = np.where(held.any(axis=1), held.argmax(axis=1), labels.shape[1])
        return [rarest.astype(np.int64), *labels.T.astype(np.int64)]

    def gained_and_lost(
        self, before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[Any]
    ) -> tuple[int, int]:
        held = labels > 0.5
        change = ((after > 0.0) == held).sum(axis=1) - ((before > 0.0) == held).sum(axis=1)
        return int((change > 0).sum()), int((change < 0).sum())


class RealValues(Objective):
    """K real values: labels are standardised, float32 (N, K), outputs are answers, the loss is the squared error."""

    task = REGRESSION
    penalties = RIDGE_PENALTIES
    loss_name = "squared error (in variances of the target)"
    measure_name = "R2"
    names = ("squared_error", "r2")
    gains = "nearer on {gained} and further off on {lost} of {examples} validation examples"

    def solver(self, features: Features, labels: NDArray[Any]) -> Solver:
        ridge = Ridge(features, labels)
        return lambda penalty, start: ridge.solve(penalty)

    def losses(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> NDArray[np.float64]:
        return squared_errors(outputs, labels)

    def score(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> Score:
        return score_values(outputs, labels)

    def training_loss(self) -> Callable[[Any, Any], Any]:
        import keras

        return _mean_of(keras.losses.MeanSquaredError(reduction="none"))

    def groupings(self, labels: NDArray[Any]) -> list[NDArray[np.int64]]:
        # Quarters of each target. A target such as the place of a thing is symmetric as a whole, and its mirror image
        # is wrong all the same: in quarters that shows.
        places = np.argsort(np.argsort(labels, axis=0, kind="stable"), axis=0, kind="stable")
        return list((places * _BINS // max(1, len(labels))).T.astype(np.int64))

    def gained_and_lost(
        self, before: NDArray[np.floating], after: NDArray[np.floating], labels: NDArray[Any]
    ) -> tuple[int, int]:
        change = squared_errors(after, labels) - squared_errors(before, labels)
        return int((change < 0.0).sum()), int((change > 0.0).sum())


def _mean_of(losses: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the function to the mean of `losses`; Keras' own mean is one over replicas, in parts, as well."""
    import tensorflow as tf

    def loss(labels: Any, outputs: Any) -> Any:
        values = losses(labels, outputs)
        return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))

    return loss


CLASSES = Classes()
SOFT_CLASSES = SoftClasses()
LIKENESS = Likeness()
OBJECTIVES: dict[str, Objective] = {objective.task: objective for objective in (CLASSES, LabelSets(), RealValues())}
