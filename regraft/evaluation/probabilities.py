"""Metrics of probabilities rather than of answers: how well they rank, and how much they say, with bootstrap intervals.

Definitions are scikit-learn's. N examples, K classes or labels, S resamples; weights (S, N) say how often each resample
holds each example.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION
from regraft.evaluation.resampling import Array, central, draw_weights

TOP = 5  # of more classes than that
_SMALLEST = float(np.finfo(np.float32).eps)  # a probability of 0 costs so much log loss as this one
# Ranking takes a pass over all examples for each class and resample; beyond so many steps there are fewer resamples.
_RANKED_AT_MOST = 400_000_000
_FEWEST_RESAMPLES = 200


def probability_metrics(
    task: str,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    names: Sequence[str],
    *,
    samples: int,
    interval: float,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return the metrics of `probabilities` with intervals, and what had to be left out of them.

    Args:
        task: "classification" or "multilabel".
        labels: Shape (N,), of several labels (N, K).
        probabilities: Shape (N, K).
        names: Of the classes or labels.
        samples: Bootstrap samples.
        interval: Coverage of the intervals, in (0, 1).
        seed: Makes the intervals repeatable.
        groups: See `resampling.draw_weights`.

    Returns:
        {metric: {"value", "low", "high"}} for `log_loss` in nats (of several labels: a label) and `brier`; for classes
        `top_5_accuracy`, if there are more than five; `roc_auc` (one against the rest) and `pr_auc` (average
        precision), both means over classes or labels. Those two are left out if no class can be ranked. Besides
        "ranking_resamples", how many resamples are behind the intervals of these two, and "not_ranked": classes or
        labels that none, or all, of the examples have, for which they do not exist.
    """
    truth = _one_hot(labels, len(names)) if task == CLASSIFICATION else np.asarray(labels) > 0.5
    wide = np.asarray(probabilities, np.float64)
    values = _of_each(task, truth, wide)
    columns = np.stack(list(values.values()), axis=1)
    resampled = np.concatenate(
        [
            weights @ columns / weights.sum(axis=1, keepdims=True)
            for weights in draw_weights(len(truth), samples=samples, seed=seed, groups=groups)
        ]
    )
    measured: dict[str, Any] = {
        metric: {"value": float(column.mean()), **central(scores, interval)}
        for (metric, column), scores in zip(values.items(), resampled.T, strict=True)
    }
    held = truth.sum(axis=0)
    is_ranked = (held > 0) & (held < len(truth))
    affordable = max(_FEWEST_RESAMPLES, _RANKED_AT_MOST // truth.size)
    resamples = min(samples, affordable)
    if is_ranked.any():
        ranked, given = truth[:, is_ranked], wide[:, is_ranked]
        once = rank_scores(np.ones((1, len(truth))), ranked, given)
        parts = [
            rank_scores(weights, ranked, given)
            for weights in draw_weights(len(truth), samples=resamples, seed=seed, groups=groups)
        ]
        for metric, value in once.items():
            scores = np.concatenate([part[metric] for part in parts])
            measured[metric] = {"value": float(value[0]), **central(scores[np.isfinite(scores)], interval)}
    left_out = [name for name, kept in zip(names, is_ranked, strict=True) if not kept]
    return {**measured, "ranking_resamples": resamples, "not_ranked": left_out}


def _one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.asarray(labels)[:, None] == np.arange(classes)
    return result


def _of_each(task: str, truth: NDArray[np.bool_], wide: Array) -> dict[str, Array]:
    """Return for each metric that is a mean over examples the value of each, shape (N,)."""
    squares = (wide - truth) ** 2
    if task != CLASSIFICATION:
        right = np.where(truth, wide, 1.0 - wide)
        return {"log_loss": -np.log(np.maximum(right, _SMALLEST)).mean(axis=1), "brier": squares.mean(axis=1)}
    of_label = wide[truth]  # one a row
    # Of two classes both errors are the same, and one of them is counted; as scikit-learn has it.
    brier = squares.sum(axis=1) / (2.0 if wide.shape[1] == 2 else 1.0)
    values = {"log_loss": -np.log(np.maximum(of_label, _SMALLEST)), "brier": brier}
    if wide.shape[1] > TOP:
        # Of equal probabilities the earlier class comes last, as scikit-learn has it.
        order = np.argsort(wide, axis=1, kind="stable")[:, -TOP:]
        values[f"top_{TOP}_accuracy"] = np.take_along_axis(truth, order, axis=1).any(axis=1).astype(np.float64)
    return values


def rank_scores(weights: Array, truth: NDArray[np.bool_], scores: Array) -> Mapping[str, Array]:
    """Return `roc_auc` and `pr_auc`, each (S,): means over the columns that a resample can rank, NaN if it can none.

    Each column is sorted once; what a resample changes is how much each place in that order counts.

    Args:
        weights: Shape (S, N).
        truth: Shape (N, K).
        scores: Shape (N, K).
    """
    sums = {"roc_auc": np.zeros(len(weights)), "pr_auc": np.zeros(len(weights))}
    counted = np.zeros(len(weights))
    for held, given in zip(truth.T, scores.T, strict=True):
        order = np.argsort(-given, kind="stable")
        last = np.append(np.flatnonzero(np.diff(given[order])), len(given) - 1)  # of each group of equal scores
        ordered = weights[:, order]
        # Only places with a hit count: how much stands up to the end of their group of equal scores, and before it.
        places = np.flatnonzero(held[order])
        group = np.searchsorted(last, places)
        first = np.append(0, last[:-1] + 1)[group]
        chosen = np.cumsum(ordered, axis=1)
        gain = ordered[:, places]
        hits = np.cumsum(gain, axis=1)
        total = hits[:, -1]
        others = chosen[:, -1] - total
        can_be = (total > 0) & (others > 0)
        final = np.searchsorted(group, group, side="right") - 1  # the last hit of the same group
        earlier = np.searchsorted(group, group)  # as many hits stand in groups before
        above, here = chosen[:, last[group]], hits[:, final]
        before = np.where(first > 0, chosen[:, first - 1], 0.0) - np.where(earlier > 0, hits[:, earlier - 1], 0.0)
        precision = np.divide(here, above, out=np.zeros_like(here), where=above > 0)
        wins = (gain * (others[:, None] - 0.5 * (above - here + before))).sum(axis=1)
        sums["pr_auc"] += np.where(can_be, (gain * precision).sum(axis=1) / np.maximum(total, 1.0), 0.0)
        sums["roc_auc"] += np.where(can_be, wins / np.maximum(total * others, 1.0), 0.0)
        counted += can_be
    return {
        metric: np.divide(sum_, counted, out=np.full(len(weights), np.nan), where=counted > 0)
        for metric, sum_ in sums.items()
    }
