"""How sure a model may be: settled on validation data before it is exported, measured on the test split after that."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.evaluation.calibration import Calibration, fit_calibration, measure_calibration, without_temperature
from regraft.evaluation.conformal import Promise, make_promise, measure_promise
from regraft.evaluation.doubt import Line, draw_line, how_sure, is_right, measure_doubt


@dataclass(frozen=True)
class Certainty:
    """What is done to a model's outputs, and what its answers promise.

    Attributes:
        calibration: What logits are divided by.
        promise: How far sets or intervals reach.
        line: From where on answers are sure enough.
        balance: What an example of each class counts, shape (K,), for a model that answers as if classes were equally
            common; None for one that does not.
        sure: How sure the answers to validation examples are, shape (N,).
        right: Whether they are right, shape (N,); for real values both are zeros.
    """

    calibration: Calibration
    promise: Promise
    line: Line
    balance: NDArray[np.float64] | None
    sure: NDArray[np.float64]
    right: NDArray[np.bool_]

    def facts(self) -> dict[str, Any]:
        """Return what `labels.json` beside the exported model says of it."""
        temperature = {"temperature": self.calibration.temperature} if self.is_calibrated else {}
        return {**temperature, **self.promise.facts(), **self.line.facts()}

    @property
    def is_calibrated(self) -> bool:
        return self.calibration.method != "none"


def settle(
    task: str,
    outputs: NDArray[Any],
    labels: NDArray[Any],
    *,
    balance: NDArray[np.float64] | None,
    coverage: float,
    risk: float | None,
    seed: int,
) -> Certainty:
    """Fit the calibration, then promise and line of calibrated answers, to validation data.

    Args:
        task: "classification", "multilabel" or "regression".
        outputs: The model's, logits or values, shape (N, K).
        labels: Shape (N,), for other tasks (N, K).
        balance: What an example of each class counts, see `Certainty`; for labels that may hold at once any array says
            that they are answered as if they were as often there as not.
        coverage: See `Promise`.
        risk: See `Line`; None for real values.
        seed: Divides folds.
    """
    if balance is not None and task == MULTILABEL:
        why = "labels are answered as if each held for half of the inputs, and validation data is not like that"
        calibration = Calibration(1.0, why)
    else:
        weights = None if balance is None else balance[labels]
        calibration = fit_calibration(task, outputs, labels, weights=weights, seed=seed)
    answers = _answers(task, outputs / calibration.temperature)
    promise = make_promise(task, answers, labels, coverage=coverage)
    if task == REGRESSION:
        line = Line(None, None, "real values do not say how sure they are")
        return Certainty(calibration, promise, line, balance, np.zeros(len(labels)), np.zeros(len(labels), bool))
    sure, right = how_sure(task, answers), is_right(task, answers, labels)
    return Certainty(calibration, promise, draw_line(sure, right, risk), balance, sure, right)


def _answers(task: str, outputs: NDArray[Any]) -> NDArray[np.float32]:
    """Return probabilities or values, as the exported graph computes them."""
    if task == REGRESSION:
        return outputs.astype(np.float32)
    linked = softmax(outputs.astype(np.float64), axis=1) if task == CLASSIFICATION else expit(outputs)
    result: NDArray[np.float32] = linked.astype(np.float32)
    return result


def measure(
    certainty: Certainty, answers: NDArray[Any], labels: NDArray[Any], *, samples: int, interval: float, seed: int
) -> dict[str, Any]:
    """Return what metrics.json says of calibration and promise, from the exported model's answers to test examples.

    Args:
        certainty: What was settled.
        answers: Shape (N, K).
        labels: Shape (N,), for other tasks (N, K).
        samples: Bootstrap samples.
        interval: Coverage of the intervals around figures.
        seed: Makes the intervals repeatable.
    """
    chance: Any = {"samples": samples, "interval": interval, "seed": seed}
    calibration, promise, examples = certainty.calibration, certainty.promise, len(certainty.sure)
    calibrated: dict[str, Any] = {
        "method": calibration.method,
        "temperature": calibration.temperature,
        "why": calibration.why,
        "examples": examples,
    }
    if promise.task != REGRESSION:
        balance = certainty.balance if promise.task == CLASSIFICATION else None
        before = answers
        if certainty.is_calibrated:
            before = without_temperature(promise.task, answers, calibration.temperature)
        calibrated["test"] = measure_calibration(
            promise.task,
            before,
            answers,
            labels,
            weights=None if balance is None else balance[labels],
            **chance,
        )
    promised: dict[str, Any] = {
        "coverage": promise.coverage,
        "why": promise.why,
        "examples": examples,
        **promise.facts().get("conformal", {}),
    }
    if promise.bounds is not None:
        promised["test"] = measure_promise(promise, answers, labels, **chance)
    found = {"calibration": calibrated, "conformal": promised}
    if promise.task != REGRESSION:
        sure, right = how_sure(promise.task, answers), is_right(promise.task, answers, labels)
        line = certainty.line
        drawn = {"risk": line.risk, "least_sure": line.least, "why": line.why, "examples": examples}
        found["doubt"] = {
            **drawn,
            "validation": measure_doubt(line, certainty.sure, certainty.right, **chance),
            "test": measure_doubt(line, sure, right, **chance),
        }
    return found
