"""Metrics of answers that stand in columns: real values, or labels of which any number hold, with bootstrap intervals.

A scorer takes weights (S, N), how often each of S resamples holds each of N examples, and returns every metric, (S,).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.resampling import Array, central, draw_weights, share_with_interval
from regraft.measures import METRICS

Scorer = Callable[[Array, NDArray[Any], NDArray[Any]], Mapping[str, Array]]


def score_values(weights: Array, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, Array]:
    """Return R2, Pearson's r, Spearman's rho, RMSE, MAE and MSE of real values, each the mean over K targets.

    A constant answer is correlated with nothing: r and rho are 0 then. R2 of a constant truth is 1 if every answer is
    right, else 0, as in scikit-learn.

    Args:
        weights: Shape (S, N), whole numbers.
        truth: Shape (N, K).
        answers: Shape (N, K).
    """
    each = [_score_target(weights, truth[:, k], answers[:, k]) for k in range(truth.shape[1])]
    return {metric: np.mean([scores[metric] for scores in each], axis=0) for metric in METRICS["regression"]}


def _score_target(weights: Array, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, Array]:
    wide, given = truth.astype(np.float64), answers.astype(np.float64)
    centre = wide.mean()  # sums of squares around it keep their digits
    wide, given = wide - centre, given - centre
    total = weights.sum(axis=1)
    errors = given - wide
    mse = weights @ errors**2 / total
    variance = weights @ wide**2 / total - (weights @ wide / total) ** 2
    is_constant = variance <= 1e-12 * np.maximum(1e-300, (wide**2).max())
    explained = 1.0 - mse / np.where(is_constant, 1.0, variance)
    return {
        "r2": np.where(is_constant, (mse == 0.0).astype(np.float64), explained),
        "pearson": _correlation(weights, wide[None], given[None]),
        "spearman": _correlation(weights, _ranks(weights, wide), _ranks(weights, given)),
        "rmse": np.sqrt(mse),
        "mae": weights @ np.abs(errors) / total,
        "mse": mse,
    }


def _correlation(weights: Array, one: Array, other: Array) -> Array:
    """Return the weighted correlation of two quantities, each (S or 1, N), in [-1, 1], shape (S,)."""
    total = weights.sum(axis=1, keepdims=True)
    one = one - (weights * one).sum(axis=1, keepdims=True) / total
    other = other - (weights * other).sum(axis=1, keepdims=True) / total
    spread_one, spread_other = (weights * one**2).sum(axis=1), (weights * other**2).sum(axis=1)
    product = (weights * one * other).sum(axis=1)
    bottom = np.sqrt(spread_one * spread_other)
    # What rounding leaves of a constant is no spread.
    scale = np.sqrt((one**2).max(axis=1) * (other**2).max(axis=1)) * total[:, 0]
    return np.clip(np.divide(product, bottom, out=np.zeros(len(weights)), where=bottom > 1e-9 * scale), -1.0, 1.0)


def _ranks(weights: Array, values: Array) -> Array:
    """Return the mean rank of each value within each resample, (S, N), without sorting any of them."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Array = (np.cumsum(counts, axis=1) - counts + (counts + 1.0) / 2.0)[:, place]
    return ranks


def score_labels(weights: Array, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, Array]:
    """Return the metrics of label sets: subset accuracy, Hamming loss, precision, recall and F1 (micro and macro).

    Macro averages run over the labels that hold for an example; whatever would divide by nothing is 0.

    Args:
        weights: Shape (S, N), whole numbers.
        truth: Whether each label holds, bool (or 0 and 1), shape (N, K).
        answers: The same of the answers.
    """
    held, given = truth.astype(bool), answers.astype(bool)
    total = weights.sum(axis=1)
    actual, chosen, hits = weights @ held, weights @ given, weights @ (held & given)
    occurs = actual > 0
    there = np.maximum(1, occurs.sum(axis=1))

    def macro(top: Array, bottom: Array) -> Array:
        mean: Array = (_share(top, bottom) * occurs).sum(axis=1) / there
        return mean

    all_hits, all_actual, all_chosen = (counts.sum(axis=1) for counts in (hits, actual, chosen))
    return {
        "subset_accuracy": weights @ (held == given).all(axis=1) / total,
        "micro_f1": _share(2 * all_hits, all_actual + all_chosen),
        "macro_f1": macro(2 * hits, actual + chosen),
        "micro_precision": _share(all_hits, all_chosen),
        "macro_precision": macro(hits, chosen),
        "micro_recall": _share(all_hits, all_actual),
        "macro_recall": macro(hits, actual),
        "hamming_loss": weights @ (held != given).mean(axis=1) / total,
    }


def _share(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros(np.shape(bottom)), where=bottom > 0)


SCORERS: Mapping[str, Scorer] = {"multilabel": score_labels, "regression": score_values}


def score_once(task: str, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
    """Return every metric of `answers` (N, K) to questions whose right answers are `truth` (N, K).

    Raises:
        ValueError: If there is no example.
    """
    if len(truth) == 0:
        raise ValueError("cannot score: there are no examples (is the split empty?)")
    scores = SCORERS[task](np.ones((1, len(truth))), truth, answers)
    return {metric: float(values[0]) for metric, values in scores.items()}


def measure(
    task: str,
    truth: NDArray[Any],
    answers: NDArray[Any],
    *,
    samples: int,
    interval: float,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Return {metric: {"value", "low", "high"}} with percentile bootstrap intervals (Efron & Tibshirani, 1993, 13.3).

    When all sets of labels are right resampling cannot tell how sure that is; the exact binomial bound of the subset
    accuracy then stands in for the missing end of all intervals, and for its own if none is right.

    Args:
        task: "multilabel" or "regression".
        truth: Shape (N, K).
        answers: Shape (N, K).
        samples: Resamples of the examples.
        interval: Coverage of the intervals, in (0, 1).
        seed: Makes the intervals repeatable.
        groups: See `resampling.draw_weights`.
    """
    values = score_once(task, truth, answers)
    (resampled,) = resample(task, truth, (answers,), samples=samples, seed=seed, groups=groups)
    ends = {metric: central(resampled[metric], interval) for metric in values}
    if (exact := values.get("subset_accuracy")) in (0.0, 1.0):
        bounds = share_with_interval(round(exact * len(truth)), len(truth), interval)
        own = {"low": bounds["low"], "high": bounds["high"]}
        ends["subset_accuracy"] = own
        if exact:
            ends |= {metric: own for metric, value in values.items() if value == 1.0}
            ends["hamming_loss"] = {"low": 0.0, "high": 1.0 - own["low"]}
    return {metric: {"value": value, **ends[metric]} for metric, value in values.items()}


def gain(
    task: str,
    truth: NDArray[Any],
    answers: NDArray[Any],
    other: NDArray[Any],
    *,
    samples: int,
    interval: float,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Return each metric of `answers` minus that of `other`, with paired bootstrap intervals, as `measure` does."""
    ours, theirs = score_once(task, truth, answers), score_once(task, truth, other)
    first, second = resample(task, truth, (answers, other), samples=samples, seed=seed, groups=groups)
    return {
        metric: {"value": value - theirs[metric], **central(first[metric] - second[metric], interval)}
        for metric, value in ours.items()
    }


def resample(
    task: str,
    truth: NDArray[Any],
    answers: Sequence[NDArray[Any]],
    *,
    samples: int,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> list[dict[str, Array]]:
    """Return, for each of `answers` to the same questions, every metric on the same `samples` resamples, (samples,)."""
    parts = [
        [SCORERS[task](weights, truth, given) for given in answers]
        for weights in draw_weights(len(truth), samples=samples, seed=seed, groups=groups)
    ]
    return [
        {metric: np.concatenate([part[place][metric] for part in parts]) for metric in METRICS[task]}
        for place in range(len(answers))
    ]


def by_column(task: str, truth: NDArray[Any], answers: NDArray[Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a table of each target or label on its own, by name, ready for JSON."""
    rows: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        scores = score_once(task, truth[:, place : place + 1], answers[:, place : place + 1])
        if task == "regression":
            rows[name] = scores
        else:
            rows[name] = {
                **{metric: scores[f"micro_{metric}"] for metric in ("precision", "recall", "f1")},
                "examples": int(truth[:, place].sum()),
            }
    return rows
