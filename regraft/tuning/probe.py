"""The probe: a logistic regression on frozen features, solved exactly, its penalty chosen on held-out data."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from regraft.tuning.scores import Score, log_losses, score

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Vector = NDArray[np.float64]

# Half decades, strongest first, so that each solution starts the next one from nearby. The unit is the objective of
# `solve`: features have unit variance and the log loss is a mean, so the range holds whatever the number of examples.
PENALTIES = tuple(float(f"{10.0**power:.3g}") for power in np.arange(0.0, -5.01, -0.5))
FOLDS = 4
# Held-out log loss that has risen this often in a row is past its minimum: the weaker penalties, slowest to solve,
# are skipped.
RISES_TO_STOP = 2
# With this many validation examples the standard error of an accuracy near 0.9 is 1.3%; with fewer, folds of the
# training data help to choose.
ENOUGH_VALIDATION_EXAMPLES = 500


@dataclass(frozen=True)
class Probe:
    """A solved head: `features @ kernel + bias` are logits, for features as the backbone gives them (not standardised).

    Attributes:
        kernel: float32, shape (D, K).
        bias: float32, shape (K,).
        penalty: The chosen L2 penalty, see `solve`.
        validation: Score of the probe on the validation split.
        path: Held-out log loss of every penalty that was tried, in the order tried.
        folds: Folds of the training data that helped to choose; 0 when validation alone decided.
    """

    kernel: Features
    bias: Features
    penalty: float
    validation: Score
    path: tuple[tuple[float, float], ...]
    folds: int

    def logits(self, features: Features) -> Features:
        """Return logits, float32, shape (N, K), of `features`, shape (N, D)."""
        return features @ self.kernel + self.bias

    def summary(self) -> dict[str, Any]:
        """Return what a report says about the probe, ready for JSON."""
        return {
            "penalty": self.penalty,
            "penalties_tried": [{"penalty": penalty, "held_out_log_loss": loss} for penalty, loss in self.path],
            "cross_validation_folds": self.folds,
            "validation": {"log_loss": self.validation.log_loss, "accuracy": self.validation.accuracy},
        }


def fit_probe(
    train_features: Features,
    train_labels: Labels,
    validation_features: Features,
    validation_labels: Labels,
    *,
    classes: int,
    penalties: tuple[float, ...] = PENALTIES,
) -> Probe:
    """Solve the head on the training features with the penalty that predicts held-out examples best.

    Held-out examples are the validation split and, when that is small (fewer than `ENOUGH_VALIDATION_EXAMPLES`), each
    training example too, predicted by a head that was solved on the other folds. The final head is solved on the
    training split alone, so that the validation split can still judge it.

    Args:
        train_features: float32, shape (N, D).
        train_labels: Shape (N,), in [0, classes).
        validation_features: float32, shape (M, D); M may be 0 only if the folds can decide alone.
        validation_labels: Shape (M,).
        classes: K, the number of labels, which may exceed the number seen in a fold.
        penalties: Candidates, strongest first.

    Raises:
        ValueError: If there are no validation examples, or features hold a value that is not finite.
    """
    if len(validation_labels) == 0:
        raise ValueError("cannot choose a penalty: the validation split is empty")
    for name, features in (("training", train_features), ("validation", validation_features)):
        if not np.isfinite(features).all():
            raise ValueError(f"the {name} features hold values that are not finite numbers")
    scale = _Scale.of(train_features)
    train, validation = scale.apply(train_features), scale.apply(validation_features)
    parts = [_Part(train, train_labels, validation, validation_labels)]
    folds = FOLDS if len(validation_labels) < ENOUGH_VALIDATION_EXAMPLES else 0
    if folds:
        fold_of = assign_folds(train_labels, folds)
        for fold in range(folds):
            inside, outside = fold_of == fold, fold_of != fold
            if inside.any():
                parts.append(_Part(train[outside], train_labels[outside], train[inside], train_labels[inside]))
    solutions = [np.zeros((train.shape[1] + 1, classes)) for _ in parts]
    path: list[tuple[float, float]] = []
    best = solutions[0]
    for penalty in penalties:
        losses = []
        for number, part in enumerate(parts):
            solutions[number] = solve(part.features, part.labels, penalty=penalty, start=solutions[number])
            weights = solutions[number].astype(np.float32)
            losses.append(log_losses(part.held_out_features @ weights[:-1] + weights[-1], part.held_out_labels))
        # The two kinds of evidence have one voice each: folds are many, but copies and near copies of one thing in
        # several folds flatter weak penalties; the validation split is few, but resembles what will be met.
        means = [float(losses[0].mean())] + ([float(np.concatenate(losses[1:]).mean())] if folds else [])
        path.append((penalty, sum(means) / len(means)))
        if path[-1][1] == min(loss for _, loss in path):
            best = solutions[0]
        if _rises(path) >= RISES_TO_STOP:
            break
    penalty = min(path, key=lambda tried: tried[1])[0]
    kernel, bias = scale.fold_into(best)
    return Probe(
        kernel, bias, penalty, score(validation_features @ kernel + bias, validation_labels), tuple(path), folds
    )


def refit_probe(features: Features, labels: Labels, *, classes: int, penalty: float) -> tuple[Features, Features]:
    """Return kernel (D, K) and bias (K,), float32, solved on `features` (N, D) with a `penalty` chosen before."""
    scale = _Scale.of(features)
    start = np.zeros((features.shape[1] + 1, classes))
    return scale.fold_into(solve(scale.apply(features), labels, penalty=penalty, start=start))


def solve(features: Features, labels: Labels, *, penalty: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise mean log loss + penalty / 2 * sum(kernel ** 2) by L-BFGS.

    Args:
        features: Standardised, float32, shape (N, D).
        labels: Shape (N,), in [0, K).
        penalty: Weight of the squared kernel; the bias is free.
        start: Where to begin, float64, shape (D + 1, K).

    Returns:
        Kernel and, as its last row, bias: float64, shape (D + 1, K).
    """
    rows = np.arange(len(labels))

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(start.shape)
        logits = features @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        totals = probabilities.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0], dtype=np.float64) - logits[rows, labels]).mean())
        probabilities /= totals
        probabilities[rows, labels] -= 1.0
        probabilities /= len(labels)
        gradient = np.empty_like(weights)
        gradient[:-1] = features.T @ probabilities + penalty * weights[:-1]
        gradient[-1] = probabilities.sum(axis=0)
        return loss + 0.5 * penalty * float((weights[:-1] ** 2).sum()), gradient.ravel()

    # One thread: sums then do not depend on the number of cores, and on cores that other work shares, BLAS threads
    # that wait for each other at every small product are far slower than one alone.
    with threadpool_limits(1, user_api="blas"):
        return minimise(loss_and_gradient, start.ravel()).reshape(start.shape)


def minimise(
    loss_and_gradient: Callable[[Vector], tuple[float, Vector]],
    start: Vector,
    *,
    iterations: int = 300,
    gradient_tolerance: float = 1e-5,
    loss_tolerance: float = 1e-7,
    memory: int = 10,
) -> Vector:
    """Return a minimum of a smooth convex function by L-BFGS with a backtracking line search.

    SciPy's L-BFGS-B finds the same minima, but version 1.17 spends 90 ms an iteration on its own bookkeeping for
    12,810 unknowns (20 times what the function costs), because it is written for bounds that there are none of here.

    Args:
        loss_and_gradient: At a point of shape (n,): the value, and the gradient of shape (n,).
        start: Shape (n,), float64.
        iterations: Stop after so many.
        gradient_tolerance: Stop when no component of the gradient is larger. The function's float32 products leave
            about 1e-6 of
            noise: asking for less would only spend iterations on it.
        loss_tolerance: Stop when a step lowers the loss by less than this fraction of it (of 1, if the loss is
            smaller).
        memory: Pairs of steps and gradient changes kept.

    Source: Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithms 7.4 and 3.1.
    """
    point = start.copy()
    loss, gradient = loss_and_gradient(point)
    pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=memory)
    for _ in range(iterations):
        if np.abs(gradient).max() <= gradient_tolerance:
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = float(direction @ gradient)
        if slope >= 0.0:
            break  # rounding has used up the curvature information: this is as low as float32 gets
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(20):
            candidate = point + length * direction
            new_loss, new_gradient = loss_and_gradient(candidate)
            if new_loss <= loss + 1e-4 * length * slope:
                break
            length *= 0.5
        else:
            break
        step, change = candidate - point, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-12 * float(step @ step):
            pairs.append((step, change, curvature))
        fell = loss - new_loss
        point, loss, gradient = candidate, new_loss, new_gradient
        if fell <= loss_tolerance * max(1.0, abs(loss)):
            break
    return point


def _inverse_hessian_times(vector: Vector, pairs: Sequence[tuple[Vector, Vector, float]]) -> Vector:
    """Return the L-BFGS approximation of the inverse Hessian times `vector`, shape (n,)."""
    result = vector.copy()
    shares = []
    for step, change, curvature in reversed(pairs):
        share = float(step @ result) / curvature
        result -= share * change
        shares.append(share)
    if pairs:
        _, change, curvature = pairs[-1]
        result *= curvature / float(change @ change)
    for (step, change, curvature), share in zip(pairs, reversed(shares), strict=True):
        result += step * (share - float(change @ result) / curvature)
    return result


def _rises(path: list[tuple[float, float]]) -> int:
    """Return how many times in a row, up to the end of `path`, the held-out loss has risen."""
    rises = 0
    for (_, before), (_, after) in pairwise(path):
        rises = rises + 1 if after > before else 0
    return rises


def assign_folds(labels: Labels, folds: int) -> NDArray[np.int64]:
    """Return the fold of each example, stratified: every class is dealt round, in row order.

    A class with a single example gets fold -1: it is never held out, because nothing could have been learned about it.
    """
    fold_of = np.empty(len(labels), np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            fold_of[rows] = -1
            continue
        fold_of[rows] = (dealt + np.arange(len(rows))) % folds  # going on where the last class stopped keeps folds even
        dealt += len(rows)
    return fold_of


@dataclass(frozen=True)
class _Part:
    """What to solve on, and what to judge the solution by."""

    features: Features
    labels: Labels
    held_out_features: Features
    held_out_labels: Labels


@dataclass(frozen=True)
class _Scale:
    """Mean and standard deviation of each feature; a constant feature is left as it is."""

    mean: Features
    deviation: Features

    @classmethod
    def of(cls, features: Features) -> "_Scale":
        deviation = features.std(axis=0, dtype=np.float64)
        deviation[deviation < 1e-8] = 1.0
        return cls(features.mean(axis=0, dtype=np.float64).astype(np.float32), deviation.astype(np.float32))

    def apply(self, features: Features) -> Features:
        return (features - self.mean) / self.deviation

    def fold_into(self, weights: NDArray[np.float64]) -> tuple[Features, Features]:
        """Return kernel and bias that give on raw features what `weights` give on standardised ones."""
        kernel = weights[:-1] / self.deviation.astype(np.float64)[:, None]
        bias = weights[-1] - self.mean.astype(np.float64) @ kernel
        return kernel.astype(np.float32), bias.astype(np.float32)
