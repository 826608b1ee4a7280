"""Answers with a promise: sets of classes, and intervals of values, that hold the truth as often as was asked for.

Split conformal prediction (Vovk et al., 2005; Lei et al., 2018, arXiv:1604.04173): whatever the model, new examples
drawn like the n of validation are covered with the asked probability, if the bound is the ceil((n + 1) coverage)-th
smallest of their n errors. Early stopping and the choice of what ships have looked at the same examples, which the
theory does not allow; how much that matters is measured on the test split.

The error of a class is one minus its probability (Sadinle et al., 2019, arXiv:1609.00451): of all rules with the same
coverage its sets are smallest on average. Adaptive sets (APS) even out coverage between easy and hard inputs, and pay
for it with sets several times as large, which a person who reads them has less of.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.evaluation.resampling import mean_with_interval, share_with_interval

_COVERED = {
    CLASSIFICATION: "the set holds the right class",
    MULTILABEL: "the set holds every label that is right",
    REGRESSION: "each value lies in its interval",
}


@dataclass(frozen=True)
class Promise:
    """How far an answer must reach to hold the truth as often as `coverage` says.

    Attributes:
        task: "classification", "multilabel" or "regression".
        coverage: What was asked for, in (0, 1).
        bounds: For classes and labels one number: the set holds what is at least so probable. For real values one for
            each target: the interval reaches so far to both sides. None where nothing can be promised.
        why: What is promised, or why nothing is, a sentence.
    """

    task: str
    coverage: float
    bounds: tuple[float, ...] | None
    why: str

    def facts(self) -> dict[str, Any]:
        """Return what travels with the exported model; nothing without a promise."""
        if self.bounds is None:
            return {}
        kept: Any = {"half_widths": list(self.bounds)}
        if self.task != REGRESSION:
            kept = {"least_probability": self.bounds[0]}
        return {"conformal": {"coverage": self.coverage, **kept}}


def make_promise(task: str, answers: NDArray[Any], labels: NDArray[Any], *, coverage: float) -> Promise:
    """Return the promise that the model's answers to validation examples support.

    Args:
        task: "classification", "multilabel" or "regression".
        answers: Probabilities as they ship, or real values, shape (N, K).
        labels: Shape (N,), for other tasks (N, K).
        coverage: The share of new examples to be covered, in (0, 1).
    """
    errors = _errors(task, answers, labels)
    examples = len(errors)
    # 10 * 0.9 may be a little more than 9.
    rank = math.ceil((examples + 1) * coverage - 1e-9)
    if rank > examples:
        least = math.ceil(coverage / (1.0 - coverage) - 1e-9)
        why = f"{examples} validation examples cannot support a coverage of {coverage:.1%}; that takes {least}"
        return Promise(task, coverage, None, why)
    reached = np.sort(errors, axis=0)[rank - 1]
    bounds = reached if task == REGRESSION else 1.0 - reached
    why = f"{_COVERED[task]} for {coverage:.1%} of inputs like the {examples} of validation"
    return Promise(task, coverage, tuple(float(bound) for bound in bounds), why)


def _errors(task: str, answers: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far the truth is from what was answered, shape (N, 1), of real values (N, K)."""
    wide = answers.astype(np.float64)
    if task == REGRESSION:
        return np.abs(wide - labels)
    if task == CLASSIFICATION:
        return 1.0 - wide[np.arange(len(labels)), labels][:, None]
    # Of the labels that hold, the least probable one; an example without labels is covered by any set.
    missed: NDArray[np.float64] = np.where(labels > 0.5, 1.0 - wide, 0.0).max(axis=1, keepdims=True)
    return missed


def prediction_sets(task: str, probabilities: NDArray[Any], least: float) -> NDArray[np.bool_]:
    """Return which classes or labels are in the set of each row of `probabilities` (N, K).

    The most probable class is always in it: an empty set would be an answer that is never right. So a model that is
    right more often than the promise asks for covers more.
    """
    held: NDArray[np.bool_] = probabilities >= least
    if task == CLASSIFICATION:
        held |= probabilities == probabilities.max(axis=1, keepdims=True)
    return held


def measure_promise(
    promise: Promise, answers: NDArray[Any], labels: NDArray[Any], *, samples: int, interval: float, seed: int
) -> dict[str, Any]:
    """Return how the promise is kept on other examples.

    Args:
        promise: One with bounds.
        answers: Shape (N, K).
        labels: Shape (N,), for other tasks (N, K).
        samples: Bootstrap samples.
        interval: Coverage of the intervals around what is returned.
        seed: Makes the intervals repeatable.

    Returns:
        For classes and labels {"coverage", "set_size", "alone": the share of sets that hold one class}; for real values
        {"coverage": of all targets together, "by_column": the coverage of each}. Numbers come with value, low and high.
    """
    if promise.bounds is None:
        raise ValueError("there is no promise to measure")
    rows = len(labels)
    if promise.task == REGRESSION:
        inside = _errors(REGRESSION, answers, labels) <= np.array(promise.bounds)
        each = [share_with_interval(int(column.sum()), rows, interval) for column in inside.T]
        covered = mean_with_interval(inside.mean(axis=1), samples=samples, interval=interval, seed=seed)
        return {"coverage": each[0] if len(each) == 1 else covered, "by_column": each}
    held = prediction_sets(promise.task, answers, promise.bounds[0])
    is_class = promise.task == CLASSIFICATION
    hits = held[np.arange(rows), labels] if is_class else (held | (labels < 0.5)).all(axis=1)
    sizes = held.sum(axis=1).astype(np.float64)
    return {
        "coverage": share_with_interval(int(hits.sum()), rows, interval),
        "set_size": mean_with_interval(sizes, samples=samples, interval=interval, seed=seed),
        "alone": float((sizes == 1.0).mean()),
    }
