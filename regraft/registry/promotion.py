"""The rules by which a new model may replace the champion: pure functions of labels and answers."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import RegistryError

METRICS = ("accuracy", "precision", "recall", "f1")
_ROWS_PER_DRAW = 4_000_000  # random row numbers drawn at a time: bounds memory to some 50 MB


@dataclass(frozen=True)
class Answers:
    """A model's answers on a list of examples, in the order of that list.

    Attributes:
        ids: sha256 (hex) of each example; copies share one.
        labels: The right class name of each example.
        predicted: The class name that the model gave.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.predicted):
            raise ValueError(f"got {len(self.ids)} ids, {len(self.labels)} labels, {len(self.predicted)} predictions")
        if not self.ids:
            raise ValueError("a model cannot be judged on no examples")

    def without(self, seen: NDArray[np.uint64]) -> "Answers | None":
        """Return the answers on examples that are not in `seen` (see `compact_ids`); None if that leaves none."""
        rows = [row for row, known in enumerate(np.isin(_compact(self.ids), seen)) if not known]
        if not rows:
            return None
        return Answers(*(tuple(column[row] for row in rows) for column in (self.ids, self.labels, self.predicted)))

    @property
    def test_digest(self) -> str:
        """SHA-256 of the examples and their labels: equal for two models that were asked the same questions."""
        rows = "".join(f"{example}\t{label}\n" for example, label in zip(self.ids, self.labels, strict=True))
        return hashlib.sha256(rows.encode()).hexdigest()


def compact_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each id (sha256, hex), without repetition and sorted: a small set of examples."""
    return np.unique(_compact(ids))


def _compact(ids: Iterable[str]) -> NDArray[np.uint64]:
    return np.array([int(identity[:16], 16) for identity in ids], np.uint64)


@dataclass(frozen=True)
class Gate:
    """One condition on a new model, and how it came out.

    Attributes:
        name: "minimum", "majority" or "champion".
        passed: Whether the condition holds.
        reason: The outcome as a sentence with numbers.
        numbers: What the sentence is made from.
    """

    name: str
    passed: bool
    reason: str
    numbers: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "reason": self.reason, **self.numbers}


def read_answers(path: Path) -> Answers:
    """Read the columns id, label and predicted of a predictions.csv.

    Raises:
        RegistryError: If the file is missing, lacks a column or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise RegistryError(f"{path} holds no predictions. Run `regraft run --force evaluate`.")
        ids, labels, predicted = (tuple(row[name] for row in rows) for name in ("id", "label", "predicted"))
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist. Run `regraft run` to evaluate the model first.") from None
    except KeyError as error:
        raise RegistryError(f"{path} has no column {error}. Run `regraft run --force evaluate`.") from None
    return Answers(ids, labels, predicted)


def score(metric: str, labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Return `metric` of the answers `predicted` to questions whose answers are `labels`, in [0, 1].

    Precision, recall and F1 are means over the classes that occur in `labels`, so that two models which know different
    classes are measured alike; precision is 0 for a class that is never predicted.
    """
    truth, guesses, classes = _encode(labels, predicted)
    return float(_metric(metric, np.ones((1, len(truth)), np.float32), truth, guesses, classes)[0])


def minimum_gate(metric: str, value: float, minimum: float) -> Gate:
    """The new model reaches `minimum` on the test split."""
    passed = value >= minimum
    reason = f"test {metric} {value:.4f} {'reaches' if passed else 'is below'} the minimum {minimum:.4f}"
    return Gate("minimum", passed, reason, {"value": value, "minimum": minimum})


def majority_gate(metric: str, answers: Answers) -> Gate:
    """The new model beats a model that always gives the most frequent class of the test split."""
    names, counts = np.unique(np.array(list(answers.labels)), return_counts=True)
    majority = str(names[counts.argmax()])
    value = score(metric, answers.labels, answers.predicted)
    baseline = score(metric, answers.labels, [majority] * len(answers.labels))
    passed = value > baseline
    verb = "beats" if passed else "does not beat"
    reason = f"test {metric} {value:.4f} {verb} {baseline:.4f}, which always answering {majority!r} gets"
    return Gate("majority", passed, reason, {"value": value, "baseline": baseline})


def champion_gate(
    metric: str,
    challenger: Answers,
    champion: Answers,
    *,
    version: int,
    left_out: int = 0,
    tolerance: float,
    samples: int,
    interval: float,
    seed: int,
) -> Gate:
    """The new model is not worse than the champion on the same test examples, by more than `tolerance`.

    The rule is on the difference itself; its paired bootstrap interval is recorded beside it, so that a person sees how
    much of a refusal (or of an acceptance) is chance.

    Args:
        metric: One of METRICS.
        challenger: The new model's answers.
        champion: The champion's answers to the same examples, in the same order.
        version: The champion's version, for the sentence.
        left_out: Test examples that neither is judged on, because the champion was trained on them; for the sentence.
        tolerance: By how much the new model may be worse, >= 0.
        samples: Resamples of the test examples.
        interval: Coverage of the interval, e.g. 0.95.
        seed: Of the resampling.

    Raises:
        ValueError: If the two models were asked different questions.
    """
    if challenger.test_digest != champion.test_digest:
        raise ValueError("the two models answered different test examples; score one of them again first")
    new = score(metric, challenger.labels, challenger.predicted)
    old = score(metric, champion.labels, champion.predicted)
    difference = new - old
    low, high = paired_interval(
        metric,
        challenger.labels,
        challenger.predicted,
        champion.predicted,
        samples=samples,
        interval=interval,
        seed=seed,
    )
    passed = bool(difference >= -tolerance - 1e-12)  # 0.1 + 0.2 - 0.3 is not 0
    besides = f" ({left_out} more are left out, because it was trained on them)" if left_out else ""
    reason = (
        f"test {metric} {new:.4f} against {old:.4f} of version {version}, the champion, on the same "
        f"{len(challenger.ids)} examples{besides}: difference {difference:+.4f} "
        f"({interval:.0%} interval {low:+.4f} to {high:+.4f}), "
        f"{'not worse' if passed else 'worse'} by the tolerance {tolerance:.4f}"
    )
    numbers = {"value": new, "champion": old, "difference": difference, "low": low, "high": high}
    return Gate("champion", passed, reason, numbers | {"tolerance": tolerance})


def paired_interval(
    metric: str,
    labels: Sequence[str],
    predicted: Sequence[str],
    other: Sequence[str],
    *,
    samples: int,
    interval: float,
    seed: int,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `metric` of `predicted` minus that of `other`.

    Each resample draws examples, and with each example the answers of both models: what the two find equally hard
    cancels, so the interval is narrower than that of two separate ones (Efron & Tibshirani, 1993, section 13.3).
    """
    truth, guesses, classes = _encode(labels, predicted, other)
    first, second = np.split(guesses, 2)
    random = np.random.default_rng(seed)
    rows = len(truth)
    step = max(1, _ROWS_PER_DRAW // rows)
    differences = []
    for start in range(0, samples, step):
        draws = min(step, samples - start)
        picks = random.integers(0, rows, (draws, rows)) + np.arange(draws)[:, None] * rows
        weights = np.bincount(picks.ravel(), minlength=draws * rows).reshape(draws, rows).astype(np.float32)
        differences.append(
            _metric(metric, weights, truth, first, classes) - _metric(metric, weights, truth, second, classes)
        )
    low, high = np.quantile(np.concatenate(differences), [(1 - interval) / 2, (1 + interval) / 2])
    return float(low), float(high)


def _encode(labels: Sequence[str], *predicted: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return class numbers of `labels`, those of all `predicted` one after the other, and the number of classes.

    Classes are those that occur in `labels`; a prediction of another one gets the number after the last.
    """
    names, truth = np.unique(np.array(list(labels)), return_inverse=True)
    number = {str(name): index for index, name in enumerate(names)}
    guesses = np.array([number.get(name, len(names)) for answers in predicted for name in answers])
    return truth, guesses, len(names)


def _metric(metric: str, weights: np.ndarray, truth: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """Return `metric` for each row of `weights`, float64 (B,).

    Args:
        metric: One of METRICS.
        weights: How often each example counts, float32 (B, N), whole numbers.
        truth: Right class, int (N,), in [0, classes).
        guesses: Given class, int (N,), in [0, classes].
        classes: Number of classes.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    correct = (truth == guesses).astype(np.float32)
    if metric == "accuracy":
        return (weights @ correct).astype(np.float64) / weights.sum(axis=1, dtype=np.float64)
    actual = weights @ np.eye(classes, dtype=np.float32)[truth]
    given = weights @ np.eye(classes + 1, dtype=np.float32)[guesses][:, :classes]
    hits = weights @ (np.eye(classes, dtype=np.float32)[truth] * correct[:, None])
    bottom = {"precision": given, "recall": actual, "f1": (given + actual) / 2}[metric].astype(np.float64)
    per_class = np.divide(hits, bottom, out=np.zeros_like(bottom), where=bottom > 0)
    # A resample may miss a class altogether; it then has no say in the mean.
    occurs = actual > 0
    mean: np.ndarray = (per_class * occurs).sum(axis=1) / occurs.sum(axis=1)
    return mean
