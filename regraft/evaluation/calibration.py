"""Whether a model is right as often as it says: one temperature fitted on validation data, and what it brings on test.

Only none or a temperature: both leave every answer what it was, so calibration can change how sure a model says it is,
never what it answers. A scale and an offset for each class (vector scaling) or isotonic steps can turn an answer over,
and have more numbers to fit than small validation splits can tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.evaluation.resampling import Array, central, draw_weights
from regraft.tuning.scores import inverse_temperature, label_inverse_temperature, label_losses, log_losses

BINS = 15
_FEWEST_IN_A_BIN = 10
_FEWEST_EXAMPLES = 20
_FOLDS = 5
# To make answers surer takes more: what rare mistakes cost then is hardly seen in a small and lucky validation split,
# nor in the standard error. (Of 20 random splits of photos of groceries, 101 to fit on, one was right in 98% where 90%
# are, and more than doubled the calibration error.) Less sure answers cost little where they are wrong.
_FEWEST_FOR_SURER = 200
_CLEARLY = {"surer": 2.33, "less sure": 1.0}  # standard errors
_LOSSES: dict[str, Callable[..., Array]] = {CLASSIFICATION: log_losses, MULTILABEL: label_losses}
_INVERSE_TEMPERATURES: dict[str, Callable[..., float]] = {
    CLASSIFICATION: inverse_temperature,
    MULTILABEL: label_inverse_temperature,
}


@dataclass(frozen=True)
class Calibration:
    """What a model's outputs are divided by before they become probabilities.

    Attributes:
        temperature: The divisor, 1 for none.
        why: How that was decided, a sentence.
    """

    temperature: float
    why: str

    @property
    def method(self) -> str:
        """Its name: "none" or "temperature"."""
        return "none" if self.temperature == 1.0 else "temperature"


def fit_calibration(
    task: str, outputs: NDArray[Any], labels: NDArray[Any], *, weights: Array | None = None, seed: int
) -> Calibration:
    """Choose between no calibration and a temperature, by what validation data says of a temperature it has not seen.

    A temperature fitted on four folds is judged on the fifth by log loss. It is used if its mean gain over all five is
    more than one standard error; if it makes answers surer, more than 2.33, of 200 examples or more. Else the simpler
    model stays. Source of temperature scaling: Guo et al., On Calibration of Modern Neural Networks, 2017
    (arXiv:1706.04599).

    Args:
        task: "classification", "multilabel" or "regression", which has no probabilities to calibrate.
        outputs: Logits, shape (N, K).
        labels: Shape (N,), of several labels (N, K).
        weights: What each example counts, shape (N,); None for all alike.
        seed: Divides the folds.
    """
    if task == REGRESSION:
        return Calibration(1.0, "real values have no probabilities; their intervals take the place of calibration")
    rows = len(labels)
    if rows < _FEWEST_EXAMPLES:
        return Calibration(1.0, f"{rows} validation examples are too few to fit a temperature ({_FEWEST_EXAMPLES})")
    counts = np.ones(rows) if weights is None else weights
    losses, wide = _LOSSES[task], outputs.astype(np.float64)

    def best(chosen: NDArray[np.bool_]) -> float:
        return 1.0 / _INVERSE_TEMPERATURES[task](wide[chosen], labels[chosen], counts[chosen])

    fold = np.random.default_rng(seed).permutation(rows) % _FOLDS
    after = np.empty(rows)
    for number in range(_FOLDS):
        held_out = fold == number
        after[held_out] = losses(wide[held_out] / best(~held_out), labels[held_out])
    gains = counts * (losses(wide, labels) - after) / counts.mean()
    gain, error = float(gains.mean()), float(gains.std() / np.sqrt(rows))
    said = f"changes the log loss of held-out validation examples by {-gain:+.4f} (standard error {error:.4f}, {rows})"
    temperature = best(np.ones(rows, bool))
    is_surer = temperature < 1.0
    if gain <= _CLEARLY["surer" if is_surer else "less sure"] * error:
        return Calibration(1.0, f"a temperature of {temperature:.2f} {said}, which is no clear gain")
    if is_surer and rows < _FEWEST_FOR_SURER:
        few = f"too few to make answers surer ({_FEWEST_FOR_SURER})"
        return Calibration(1.0, f"a temperature of {temperature:.2f} {said}, but examples are {few}")
    return Calibration(temperature, f"that {said}")


def without_temperature(task: str, probabilities: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return what `probabilities` (N, K) were before their logits were divided by `temperature`."""
    wide = probabilities.astype(np.float64)
    powers = wide**temperature
    if task == MULTILABEL:
        return powers / (powers + (1.0 - wide) ** temperature)
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class Binned:
    """Predictions sorted into bins of equal numbers by how sure they are.

    A prediction is the class that is answered, with its probability; of several labels, each label with its own.

    Attributes:
        gaps: For each example and bin the sum of probability minus truth over its predictions, shape (N, B).
        chance: The expected calibration error of answers that are right exactly as often as they say, on so many
            examples: less cannot be told from nothing.
        rows: For each bin mean probability, share that is right, and number of predictions.
    """

    gaps: Array
    chance: float
    rows: list[dict[str, Any]]


def sort_into_bins(task: str, probabilities: NDArray[Any], labels: NDArray[Any], weights: Array) -> Binned:
    """Return the bins of `probabilities` (N, K): as many as `BINS`, fewer where they would hold less than ten.

    Args:
        task: "classification" or "multilabel".
        probabilities: Shape (N, K).
        labels: Shape (N,), of several labels (N, K).
        weights: What each example counts, shape (N,).
    """
    if task == CLASSIFICATION:
        sure = probabilities.max(axis=1, keepdims=True).astype(np.float64)
        right = (probabilities.argmax(axis=1) == labels)[:, None].astype(np.float64)
    else:
        sure, right = probabilities.astype(np.float64), labels.astype(np.float64)
    rows, each = sure.shape
    flat, hits = sure.ravel(), right.ravel()
    counts = np.repeat(weights, each)
    bins = min(BINS, max(1, len(flat) // _FEWEST_IN_A_BIN))
    place = np.empty(len(flat), np.int64)
    place[np.argsort(flat, kind="stable")] = np.arange(len(flat)) * bins // len(flat)
    cell = np.repeat(np.arange(rows), each) * bins + place
    gaps: Array = np.bincount(cell, flat - hits, rows * bins).reshape(rows, bins).astype(np.float64)
    # The mean size of a sum of independent errors, which is near to a normal one.
    spread = np.bincount(place, weights=counts**2 * flat * (1.0 - flat), minlength=bins)
    total = np.bincount(place, weights=counts, minlength=bins)
    return Binned(
        gaps,
        float(np.sqrt(2.0 / np.pi * spread).sum() / counts.sum()),
        [
            {
                "probability": float(np.average(flat[place == number], weights=counts[place == number])),
                "right": float(np.average(hits[place == number], weights=counts[place == number])),
                "predictions": int((place == number).sum()),
            }
            for number in range(bins)
            if total[number] > 0.0
        ],
    )


def measure_calibration(
    task: str,
    before: NDArray[Any],
    after: NDArray[Any],
    labels: NDArray[Any],
    *,
    weights: Array | None = None,
    samples: int,
    interval: float,
    seed: int,
) -> dict[str, Any]:
    """Return the expected calibration error of probabilities before and after calibration, and of what it changed.

    The error is the mean distance between how sure predictions are and how often they are right, over `BINS` bins of
    equal numbers of predictions; those are less biased than bins of equal width (Roelofs et al., Mitigating Bias in
    Calibration Error Estimation, 2022, arXiv:2012.08668). Resampling adds a noise of its own to such a sum of
    distances, so the interval is the spread of resamples around the value.

    Args:
        task: "classification" or "multilabel".
        before: Probabilities at temperature 1, shape (N, K).
        after: Probabilities as they ship, shape (N, K).
        labels: Shape (N,), of several labels (N, K).
        weights: What each example counts, shape (N,); None for all alike.
        samples: Bootstrap samples.
        interval: Coverage of the intervals, in (0, 1).
        seed: Makes the intervals repeatable.

    Returns:
        {"bins", "binning", "before": {"value", "low", "high", "by_chance", "reliability"}, "after": the same,
        "change": {"value", "low", "high"}}.
    """
    counts = np.ones(len(labels)) if weights is None else weights
    binned = [sort_into_bins(task, probabilities, labels, counts) for probabilities in (before, after)]
    each = 1 if task == CLASSIFICATION else before.shape[1]

    def errors(draws: Array, gaps: Array) -> Array:
        drawn = draws * counts
        distances: Array = np.abs(drawn @ gaps).sum(axis=1) / (drawn.sum(axis=1) * each)
        return distances

    once = np.ones((1, len(labels)))
    values = [float(errors(once, part.gaps)[0]) for part in binned]
    draws = draw_weights(len(labels), samples=samples, seed=seed)
    resampled = np.concatenate([[errors(drawn, part.gaps) for part in binned] for drawn in draws], axis=1)

    def around(value: float, scores: Array) -> dict[str, float]:
        return {"value": value, **central(scores - scores.mean() + value, interval)}

    error_before, error_after = (
        {**(spread := around(value, scores)), "low": max(0.0, spread["low"]), "by_chance": part.chance}
        for value, scores, part in zip(values, resampled, binned, strict=True)
    )
    return {
        "bins": len(binned[1].rows),
        "binning": "equal numbers of predictions",
        "before": {**error_before, "reliability": binned[0].rows},
        "after": {**error_after, "reliability": binned[1].rows},
        "change": around(values[1] - values[0], resampled[1] - resampled[0]),
    }
