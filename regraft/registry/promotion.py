"""The rules by which a new model may replace the champion: pure functions of labels and answers.

Answers to classes are names. Answers in columns (real values, or labels of which any number hold) are tuples of
numbers, one for each column, and are scored by `regraft.evaluation.columns`.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import RegistryError
from regraft.evaluation import columns
from regraft.measures import LEADING, LOWER_IS_BETTER, METRICS, words

# What comes before a target's name in the columns of predictions.csv.
TRUE, PREDICTED, PROBABILITY = "true ", "predicted ", "probability "
_ROWS_PER_DRAW = 4_000_000  # random row numbers drawn at a time: bounds memory to some 50 MB


Answer = str | tuple[float, ...]


@dataclass(frozen=True)
class Answers:
    """A model's answers on a list of examples, in the order of that list.

    Attributes:
        ids: sha256 (hex) of each example; copies share one.
        labels: The right class name of each example; or its values, one a column.
        predicted: The class name that the model gave; or its values.
        task: "classification", "multilabel" or "regression".
        names: Of the columns; none for classes.
    """

    ids: tuple[str, ...]
    labels: tuple[Answer, ...]
    predicted: tuple[Answer, ...]
    task: str = "classification"
    names: tuple[str, ...] = ()

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
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            predicted=tuple(self.predicted[row] for row in rows),
        )

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
        name: "minimum", "majority" (a constant answer), "champion", or the setting that asks for it: see `conditions`.
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
    """Read a predictions.csv: the columns id, label and predicted; or id and a pair of columns for each target.

    Raises:
        RegistryError: If the file is missing, lacks a column or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
        if not rows:
            raise RegistryError(f"{path} holds no predictions. Run `regraft run --force evaluate`.")
        names = tuple(column.removeprefix(TRUE) for column in header if column.startswith(TRUE))
        if names and "label" not in header:
            truth, given = (
                tuple(tuple(float(row[part + name]) for name in names) for row in rows) for part in (TRUE, PREDICTED)
            )
            task = "multilabel" if PROBABILITY + names[0] in header else "regression"
            return Answers(tuple(row["id"] for row in rows), truth, given, task, names)
        ids, labels, predicted = (tuple(row[name] for row in rows) for name in ("id", "label", "predicted"))
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist. Run `regraft run` to evaluate the model first.") from None
    except KeyError as error:
        raise RegistryError(f"{path} has no column {error}. Run `regraft run --force evaluate`.") from None
    return Answers(ids, labels, predicted)


def choose_metric(task: str, setting: str) -> str:
    """Return the metric that decides for a model of `task`.

    Raises:
        RegistryError: If the setting names one of another task.
    """
    if setting == "auto":
        return LEADING[task]
    if setting not in METRICS[task]:
        raise RegistryError(
            f"promote.metric is {setting!r}, and this is a model for {task}, measured by {', '.join(METRICS[task])}. "
            "Name one of those, or write `metric: auto`; what has been made so far is kept."
        )
    return setting


def score_answers(metric: str, answers: Answers) -> float:
    """Return `metric` of a model's answers."""
    if answers.task == "classification":
        return score(metric, *_class_names(answers.labels, answers.predicted))
    return columns.score_once(answers.task, np.array(answers.labels), np.array(answers.predicted))[metric]


def _class_names(*answers: Sequence[Answer]) -> list[list[str]]:
    return [[str(answer) for answer in given] for given in answers]


def score(metric: str, labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Return `metric` of the answers `predicted` to questions whose answers are `labels`, in [0, 1].

    Precision, recall and F1 are means over the classes that occur in `labels`, so that two models which know different
    classes are measured alike; precision is 0 for a class that is never predicted.
    """
    truth, guesses, classes = _encode(labels, predicted)
    return float(_metric(metric, np.ones((1, len(truth)), np.float32), truth, guesses, classes)[0])


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether `value` beats `other`: less of an error, more of anything else."""
    return value < other if metric in LOWER_IS_BETTER else value > other


def minimum_gate(metric: str, value: float, minimum: float) -> Gate:
    """The new model reaches `minimum` on the test split; of an error, `minimum` is the most that is allowed."""
    if metric in LOWER_IS_BETTER:
        passed, verb = value <= minimum, ("is within", "is above")
    else:
        passed, verb = value >= minimum, ("reaches", "is below")
    limit = "most allowed" if metric in LOWER_IS_BETTER else "minimum"
    reason = f"test {words(metric)} {value:.4f} {verb[0] if passed else verb[1]} the {limit} {minimum:.4f}"
    return Gate("minimum", passed, reason, {"value": value, "minimum": minimum})


def majority_gate(metric: str, answers: Answers, constant: Sequence[float] = ()) -> Gate:
    """The new model beats a model that always gives one answer.

    Of classes that is the most frequent one of the test split; otherwise `constant`, which is learned from training.
    """
    value = score_answers(metric, answers)
    if answers.task == "classification":
        names, counts = np.unique(np.array(list(answers.labels)), return_counts=True)
        same: Answer = str(names[counts.argmax()])
        what = f"always answering {same!r}"
    else:
        same = tuple(constant)
        shown = ", ".join(f"{part:.4g}" for part in same)
        if answers.task == "regression":
            what = f"always answering the mean of training ({shown})"
        else:
            held = ", ".join(name for name, part in zip(answers.names, same, strict=True) if part)
            what = f"always answering {held or 'no label'!r}"
    baseline = score_answers(metric, replace(answers, predicted=(same,) * len(answers.labels)))
    passed = is_better(metric, value, baseline)
    verb = "beats" if passed else "does not beat"
    reason = f"test {words(metric)} {value:.4f} {verb} {baseline:z.4f}, which {what} gets"
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
        metric: One of the task's METRICS; of an error, less is better.
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
    new, old = score_answers(metric, challenger), score_answers(metric, champion)
    difference = new - old
    low, high = _paired_interval(metric, challenger, champion, samples=samples, interval=interval, seed=seed)
    gained = -difference if metric in LOWER_IS_BETTER else difference
    passed = bool(gained >= -tolerance - 1e-12)  # 0.1 + 0.2 - 0.3 is not 0
    besides = f" ({left_out} more are left out, because it was trained on them)" if left_out else ""
    reason = (
        f"test {words(metric)} {new:.4f} against {old:.4f} of version {version}, the champion, on the same "
        f"{len(challenger.ids)} examples{besides}: difference {difference:+.4f} "
        f"({interval:.0%} interval {low:+.4f} to {high:+.4f}), "
        f"{'not worse' if passed else 'worse'} by the tolerance {tolerance:.4f}"
    )
    numbers = {"value": new, "champion": old, "difference": difference, "low": low, "high": high}
    return Gate("champion", passed, reason, numbers | {"tolerance": tolerance})


def _paired_interval(
    metric: str, challenger: Answers, champion: Answers, *, samples: int, interval: float, seed: int
) -> tuple[float, float]:
    if challenger.task == "classification":
        given = _class_names(challenger.labels, challenger.predicted, champion.predicted)
        return paired_interval(metric, *given, samples=samples, interval=interval, seed=seed)
    truth, ours, theirs = (np.array(part) for part in (challenger.labels, challenger.predicted, champion.predicted))
    gains = columns.gain(challenger.task, truth, ours, theirs, samples=samples, interval=interval, seed=seed)
    return gains[metric]["low"], gains[metric]["high"]


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
        metric: One of METRICS["classification"].
        weights: How often each example counts, float32 (B, N), whole numbers.
        truth: Right class, int (N,), in [0, classes).
        guesses: Given class, int (N,), in [0, classes].
        classes: Number of classes.
    """
    if metric not in METRICS["classification"]:
        raise ValueError(f"metric must be one of {METRICS['classification']}, got {metric!r}")
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
