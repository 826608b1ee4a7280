"""Classification metrics with bootstrap intervals: arrays of class numbers in, plain dictionaries out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef, precision_recall_fscore_support

from regraft.evaluation.resampling import central, draw_weights, share_with_interval

METRICS = ("accuracy", "precision", "recall", "f1", "balanced_accuracy", "mcc")
_VALUES_AT_ONCE = 4_000_000


def classification_metrics(
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    *,
    samples: int,
    interval: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return accuracy, macro precision, recall and F1 with intervals, the same per class, and the confusion matrix.

    Macro averages run over the classes that have an example in `labels`; a class never predicted has precision 0.
    Balanced accuracy is the macro recall by the name that people look for; `mcc` is Matthews' correlation of what is
    true and what is answered, in [-1, 1], and 0 where one of them is always the same (Gorodkin, 2004).

    Args:
        labels: True classes, int64 in [0, classes), shape (N,), N >= 1.
        predicted: Predicted classes, the same shape and range.
        class_names: Name of each class.
        samples: Bootstrap samples.
        interval: Coverage of the intervals, in (0, 1), e.g. 0.95.
        seed: Makes the intervals repeatable.
        groups: Whose each example is, see `resampling.draw_weights`.

    Returns:
        {"accuracy": {"value", "low", "high"}, "precision": ..., "recall": ..., "f1": ...,
        "balanced_accuracy": ..., "mcc": ..., "per_class": {name: {"precision", "recall", "f1", "examples"}},
        "confusion": rows are true classes, "examples": N}. When all answers are right (or all wrong) resampling cannot
        tell how sure that is; the exact binomial bound of the accuracy then stands in for the missing end of all
        intervals.

    Raises:
        ValueError: If there is no example.
    """
    classes = len(class_names)
    if len(labels) == 0:
        raise ValueError("cannot score: there are no examples (is the split empty?)")
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), average=None, zero_division=0.0
    )
    present = support > 0
    values = {
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision[present].mean(),
        "recall": recall[present].mean(),
        "f1": f1[present].mean(),
        "balanced_accuracy": recall[present].mean(),
        "mcc": matthews_corrcoef(labels, predicted),
    }
    resampled = _resample((labels, predicted), classes=classes, samples=samples, seed=seed, groups=groups)[0]
    ends = {name: central(scores, interval) for name, scores in resampled.items()}
    if values["accuracy"] in (0.0, 1.0):
        bounds = share_with_interval(round(values["accuracy"] * len(labels)), len(labels), interval)
        ends = {name: {"low": bounds["low"], "high": bounds["high"]} for name in METRICS}
    return {
        **{name: {"value": float(values[name]), **ends[name]} for name in METRICS},
        "per_class": {
            name: {
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "examples": int(support[index]),
            }
            for index, name in enumerate(class_names)
        },
        "confusion": confusion_matrix(labels, predicted, labels=range(classes)).tolist(),
        "examples": len(labels),
    }


def paired_gain(
    labels: np.ndarray,
    predicted: np.ndarray,
    baseline: np.ndarray,
    *,
    classes: int,
    samples: int,
    interval: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Return how much better `predicted` scores than `baseline` on the same examples, with paired bootstrap intervals.

    Each bootstrap sample draws examples together with both answers, so what is hard for both models cancels out.

    Args:
        labels: True classes, int64 in [0, classes), shape (N,).
        predicted: Classes predicted by the model, the same shape and range.
        baseline: Classes predicted by the model it is compared with.
        classes: Number of classes.
        samples: Bootstrap samples.
        interval: Coverage of the intervals, in (0, 1).
        seed: Makes the intervals repeatable.
        groups: Whose each example is, see `resampling.draw_weights`.

    Returns:
        {metric: {"value", "low", "high"}}, value being the metric of `predicted` minus that of `baseline`.
    """
    once = np.ones((1, len(labels)), np.int64)
    ours, theirs = (_scores(once, labels, answers, classes) for answers in (predicted, baseline))
    ours_resampled, theirs_resampled = _resample(
        (labels, predicted, baseline), classes=classes, samples=samples, seed=seed, groups=groups
    )
    gains = {}
    for name in METRICS:
        difference = ours_resampled[name] - theirs_resampled[name]
        gains[name] = {"value": float(ours[name][0] - theirs[name][0]), **central(difference, interval)}
    return gains


def most_frequent_confusions(confusion: Sequence[Sequence[int]], *, limit: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, count) of at most `limit` kinds of mistakes, most frequent first."""
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = (np.unravel_index(place, counts.shape) for place in order)
    return [(int(true), int(guess), int(counts[true, guess])) for true, guess in pairs if counts[true, guess] > 0]


def _resample(
    answers: tuple[np.ndarray, ...], *, classes: int, samples: int, seed: int, groups: np.ndarray | None
) -> list[Mapping[str, np.ndarray]]:
    """Score every column of `answers` but the first against the first, on `samples` bootstrap samples of the rows.

    Rows with equal answers are interchangeable if they are in no groups, so instead of drawing N row numbers a sample
    then draws how often each distinct combination occurs (multinomial): the same distribution, and far less work on a
    large test set.
    """
    if groups is None:
        cells, counts = np.unique(np.stack(answers, axis=1), axis=0, return_counts=True)
        weights = _draw_counts(counts, samples=samples, seed=seed)
    else:
        cells = np.stack(answers, axis=1)
        weights = draw_weights(len(cells), samples=samples, seed=seed, groups=groups)
    parts = [
        [_scores(drawn, cells[:, 0], cells[:, column], classes) for column in range(1, cells.shape[1])]
        for drawn in weights
    ]
    return [
        {name: np.concatenate([part[column][name] for part in parts]) for name in METRICS}
        for column in range(cells.shape[1] - 1)
    ]


def _draw_counts(counts: np.ndarray, *, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of `samples` bootstrap samples holds each cell of which there are `counts`, (S, cells)."""
    total = int(counts.sum())
    random = np.random.default_rng(seed)
    at_once = max(1, _VALUES_AT_ONCE // len(counts))
    for start in range(0, samples, at_once):
        yield random.multinomial(total, counts / total, size=min(at_once, samples - start))


def _scores(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Mapping[str, np.ndarray]:
    """Return each metric, shape (S,), for S weightings (S, C) of C cells with true and predicted classes (C,)."""
    support, chosen = _sum_by_class(weights, labels, classes), _sum_by_class(weights, predicted, classes)
    right = _sum_by_class(weights * (labels == predicted), labels, classes)
    present = support > 0
    there = present.sum(axis=1)
    precision = np.divide(right, chosen, out=np.zeros(right.shape), where=chosen > 0)
    recall = np.divide(right, support, out=np.zeros(right.shape), where=present)
    f1 = np.divide(2 * right, support + chosen, out=np.zeros(right.shape), where=present)
    return {
        "accuracy": right.sum(axis=1) / weights.sum(axis=1),
        "precision": (precision * present).sum(axis=1) / there,
        "recall": recall.sum(axis=1) / there,
        "f1": f1.sum(axis=1) / there,
        "balanced_accuracy": recall.sum(axis=1) / there,
        "mcc": _matthews(right.sum(axis=1), support, chosen),
    }


def _matthews(right: np.ndarray, support: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation, shape (S,), of right answers (S,), and of classes true and given, (S, classes)."""
    total = support.sum(axis=1).astype(np.float64)
    shared = right * total - (support * chosen).sum(axis=1)
    spread = (total**2 - (support**2).sum(axis=1)) * (total**2 - (chosen**2).sum(axis=1))
    return np.divide(shared, np.sqrt(spread), out=np.zeros(len(total)), where=spread > 0)


def _sum_by_class(weights: np.ndarray, classes_of_cells: np.ndarray, classes: int) -> np.ndarray:
    """Return (S, classes): the sum of `weights` (S, C) over the cells of each class."""
    cells = len(classes_of_cells)
    membership = sparse.csr_array(
        (np.ones(cells, np.int64), (classes_of_cells, np.arange(cells))), shape=(classes, cells)
    )
    return np.asarray((membership @ weights.T).T)
