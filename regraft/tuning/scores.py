"""How well outputs fit targets, example by example: logits and classes, logits and labels, values and real values."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Score:
    """What outputs are worth on held-out examples. Names are those of classes; see `objective` for the other tasks.

    Attributes:
        log_loss: Nats an example (of several labels: nats a label). For real values the mean squared error of
            standardised targets.
        refined_log_loss: The same at the best temperature, see `refined_log_losses`; what decides between models. For
            real values, which have no temperature, the same as `log_loss`.
        accuracy: In [0, 1]. For several labels micro F1, for real values R2, at most 1.
        refined_log_losses: Of each example, float64, shape (N,), so that two scores of the same examples can be paired.
    """

    log_loss: float
    refined_log_loss: float
    accuracy: float
    refined_log_losses: NDArray[np.float64]

    def is_clearly_worse_than(self, other: "Score") -> bool:
        """Return whether the refined log loss is higher than `other`'s by more than chance explains.

        That is, by more than one standard error of the mean difference over the same examples.
        """
        differences = self.refined_log_losses - other.refined_log_losses
        return bool(differences.mean() > differences.std() / math.sqrt(len(differences)))


def score(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Score:
    """Return the score of `logits` (N, K) for `labels` (N,).

    Raises:
        ValueError: If there are no examples.
    """
    if len(labels) == 0:
        raise ValueError("cannot score: there are no examples (is the split empty?)")
    losses = log_losses(logits, labels)
    refined = refined_log_losses(logits, labels) if np.isfinite(losses).all() else losses
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Score(float(losses.mean()), float(refined.mean()), accuracy, refined)


def log_losses(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the negative log likelihood of each label, in nats, float64, shape (N,).

    Args:
        logits: Shape (N, K), any scale; not probabilities.
        labels: Shape (N,), in [0, K).
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return log_total - wide[np.arange(len(labels)), labels]


def refined_log_losses(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return `log_losses` of the logits divided by the temperature that makes their mean lowest.

    Fine-tuning makes a model surer long after it has stopped making it wronger: on 101 photos of groceries the log
    loss rose from 0.30 to 0.35 while accuracy rose from 0.88 to 0.93. Being too sure is mended by one number; being
    wrong is not. So models and epochs are compared by what is left once that number is at its best.

    Args:
        logits: Shape (N, K), finite.
        labels: Shape (N,), in [0, K).

    Source: Berta, Holzmueller, Jordan & Bach, Rethinking Early Stopping: Refine, Then Calibrate, 2025
        (arXiv:2501.19195).
    """
    return log_losses(logits.astype(np.float64) * inverse_temperature(logits, labels), labels)


def inverse_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer], weights: NDArray[np.floating] | None = None
) -> float:
    """Return what to multiply `logits` by for the lowest mean log loss, within 1 / `TEMPERATURES`.

    Args:
        logits: Shape (N, K), finite.
        labels: Shape (N,), in [0, K).
        weights: What each example counts, shape (N,); None for all alike.

    Source: Guo et al., 2017 (arXiv:1706.04599).
    """
    wide = logits.astype(np.float64)
    # The mean log loss is convex in 1/temperature, so its slope has one root: halve the interval that holds it.
    low, high = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    right = wide[np.arange(len(labels)), labels]
    for _ in range(40):
        middle = math.sqrt(low * high)
        scaled = wide * middle
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        expected = (shares * wide).sum(axis=1) / shares.sum(axis=1)
        if np.average(expected - right, weights=weights) > 0.0:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


def score_labels(logits: NDArray[np.floating], labels: NDArray[np.floating]) -> Score:
    """Return the score of `logits` (N, K) for `labels` (N, K) of 0 and 1: log loss a label, and micro F1.

    Raises:
        ValueError: If there are no examples.
    """
    if len(labels) == 0:
        raise ValueError("cannot score: there are no examples (is the split empty?)")
    losses = label_losses(logits, labels)
    refined = losses
    if np.isfinite(losses).all():
        refined = refined_log_losses(*_as_pairs(logits, labels)).reshape(labels.shape).mean(axis=1)
    given, held = logits > 0.0, labels > 0.5
    hits, guesses = int((given & held).sum()), int(given.sum() + held.sum())
    return Score(float(losses.mean()), float(refined.mean()), 2 * hits / guesses if guesses else 1.0, refined)


def label_losses(logits: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the negative log likelihood of each example's labels, in nats a label, float64, shape (N,)."""
    return log_losses(*_as_pairs(logits, labels)).reshape(labels.shape).mean(axis=1)


def label_inverse_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.floating], weights: NDArray[np.floating] | None = None
) -> float:
    """Return what to multiply `logits` (N, K) of `labels` (N, K) by for the lowest mean log loss of a label.

    `weights` (N,) are what each example counts; None for all alike.
    """
    each = None if weights is None else np.repeat(weights, labels.shape[1])
    return inverse_temperature(*_as_pairs(logits, labels), each)


def _as_pairs(
    logits: NDArray[np.floating], labels: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Return every label as a choice of two classes: logits (N * K, 2) and classes (N * K,)."""
    flat = logits.reshape(-1)
    return np.stack([np.zeros_like(flat), flat], axis=1), labels.reshape(-1).astype(np.int64)


def score_values(answers: NDArray[np.floating], values: NDArray[np.floating]) -> Score:
    """Return the score of `answers` (N, K) to standardised `values` (N, K): squared error, and R2 (mean of K).

    Raises:
        ValueError: If there are no examples.
    """
    if len(values) == 0:
        raise ValueError("cannot score: there are no examples (is the split empty?)")
    losses = squared_errors(answers, values)
    errors = ((answers.astype(np.float64) - values) ** 2).mean(axis=0)
    variances = values.astype(np.float64).var(axis=0)
    explained = np.where(variances > 0.0, 1.0 - errors / np.where(variances > 0.0, variances, 1.0), 0.0)
    return Score(float(losses.mean()), float(losses.mean()), float(explained.mean()), losses)


def squared_errors(answers: NDArray[np.floating], values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the squared error of each example, mean over its K values, float64, shape (N,)."""
    squared: NDArray[np.float64] = ((answers.astype(np.float64) - values.astype(np.float64)) ** 2).mean(axis=1)
    return squared
