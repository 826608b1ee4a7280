"""When a model had better not answer: how wrong it is among the answers it is surest of, and where to draw the line.

How sure it is of a class is the class's probability; of a set of labels, the probability that all are right if they are
independent of each other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION
from regraft.evaluation.resampling import Array, central, draw_weights, share_with_interval

_CURVE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def how_sure(task: str, probabilities: NDArray[Any]) -> Array:
    """Return how sure each answer is, in [0, 1], shape (N,), of `probabilities` (N, K) as they ship."""
    wide = probabilities.astype(np.float64)
    result: Array = wide.max(axis=1) if task == CLASSIFICATION else np.maximum(wide, 1.0 - wide).prod(axis=1)
    return result


def is_right(task: str, probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each answer is right: the class, or all labels, shape (N,)."""
    if task == CLASSIFICATION:
        return np.asarray(probabilities.argmax(axis=1) == labels)
    return np.asarray(((probabilities >= 0.5) == (labels > 0.5)).all(axis=1))


@dataclass(frozen=True)
class Line:
    """Where answers stop being sure enough.

    Attributes:
        risk: What share of the answers that are left may be wrong; None if nobody asked.
        least: Answers that are less sure than this are doubtful; None where there is no such line.
        why: How it was drawn, or why it was not, a sentence.
    """

    risk: float | None
    least: float | None
    why: str

    def facts(self) -> dict[str, Any]:
        """Return what travels with the exported model; nothing without a line."""
        return {} if self.least is None else {"doubt": {"risk": self.risk, "least_sure": self.least}}


def draw_line(sure: Array, right: NDArray[np.bool_], risk: float | None) -> Line:
    """Return the lowest line above which validation examples are wrong no more often than `risk`.

    One mistake is added to those that were made: without it, a line chosen to fit is passed by new examples half of the
    time (Angelopoulos et al., Conformal Risk Control, 2022, arXiv:2208.02814).

    Args:
        sure: Of validation examples, see `how_sure`, shape (N,).
        right: Whether the answers are right, shape (N,).
        risk: In (0, 1); None for no line.
    """
    if risk is None:
        return Line(None, None, "evaluate.risk is not set, so every answer is given")
    order = np.argsort(-sure, kind="stable")
    left = np.arange(1, len(sure) + 1)
    risks = (np.cumsum(~right[order]) + 1) / (left + 1)
    # Equally sure answers are given or not together.
    is_last = np.append(np.diff(sure[order]) < 0.0, True)
    fitting = np.flatnonzero((risks <= risk) & is_last)
    if not len(fitting):
        return Line(
            risk, None, f"no line leaves {len(sure)} validation examples with {risk:.1%} wrong, so none is drawn"
        )
    chosen = int(fitting[-1])
    mistakes = int((~right[order[: chosen + 1]]).sum())
    why = f"{mistakes} of the {chosen + 1} surest of {len(sure)} validation examples are wrong"
    return Line(risk, float(sure[order[chosen]]), why)


def area_under_risk(weights: Array, sure: Array, right: NDArray[np.bool_]) -> Array:
    """Return the mean risk over all numbers of answers given, the surest first, shape (S,), for weights (S, N).

    Source: Geifman, Uziel & El-Yaniv, Bias-Reduced Uncertainty Estimation, 2019 (arXiv:1805.08206).
    """
    order = np.argsort(-sure, kind="stable")
    drawn = weights[:, order]
    given = np.cumsum(drawn, axis=1)
    risks = np.divide(np.cumsum(drawn * ~right[order], axis=1), given, out=np.zeros(given.shape), where=given > 0)
    area: Array = (drawn * risks).sum(axis=1) / given[:, -1]
    return area


def measure_doubt(
    line: Line, sure: Array, right: NDArray[np.bool_], *, samples: int, interval: float, seed: int
) -> dict[str, Any]:
    """Return what doubt is worth on other examples.

    Args:
        line: As drawn on validation examples.
        sure: Shape (N,).
        right: Shape (N,).
        samples: Bootstrap samples.
        interval: Coverage of the intervals.
        seed: Makes them repeatable.

    Returns:
        {"area_under_risk": {"value", "low", "high"}, "curve": for shares of answers given the error among them}; with a
        line also "answered", the share of answers that are sure enough, and "error", the share of those that is wrong
        (None if there are none); both with value, low and high.
    """
    area = area_under_risk(np.ones((1, len(sure))), sure, right)[0]
    draws = draw_weights(len(sure), samples=samples, seed=seed)
    resampled = np.concatenate([area_under_risk(weights, sure, right) for weights in draws])
    order = np.argsort(-sure, kind="stable")
    wrong = np.cumsum(~right[order])
    counts = [max(1, round(share * len(sure))) for share in _CURVE]
    found: dict[str, Any] = {
        "area_under_risk": {"value": float(area), **central(resampled, interval)},
        "curve": [
            {"answered": share, "error": float(wrong[count - 1] / count)}
            for share, count in zip(_CURVE, counts, strict=True)
        ],
    }
    if line.least is not None:
        given = sure >= line.least
        mistakes, answers = int((given & ~right).sum()), int(given.sum())
        found["answered"] = share_with_interval(answers, len(sure), interval)
        found["error"] = share_with_interval(mistakes, answers, interval) if answers else None
    return found
