"""Promises: bounds worked out by hand, and kept on average over many splits."""

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from regraft.evaluation.certainty import measure, settle
from regraft.evaluation.conformal import make_promise, measure_promise, prediction_sets

CHANCE: Any = {"samples": 200, "interval": 0.95, "seed": 5}


def test_the_bound_is_the_tenth_of_ten_errors_and_needs_so_many():
    # ceil((10 + 1) * 0.9) = 10
    values = np.arange(1.0, 11.0)[:, None]
    promise = make_promise("regression", np.zeros((10, 1)), values, coverage=0.9)
    assert promise.bounds == (10.0,)
    assert make_promise("regression", np.zeros((19, 1)), np.arange(19.0)[:, None], coverage=0.9).bounds == (17.0,)
    assert make_promise("regression", np.zeros((9, 1)), values[:9], coverage=0.9).bounds == (9.0,)
    none = make_promise("regression", np.zeros((8, 1)), values[:8], coverage=0.9)
    assert none.bounds is None
    assert "8 validation examples cannot support a coverage of 90.0%; that takes 9" in none.why
    assert none.facts() == {}


def test_sets_hold_what_is_probable_enough_and_are_never_empty():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])
    held = prediction_sets("classification", probabilities, 0.35)
    assert held.tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    assert prediction_sets("multilabel", probabilities[2:], 0.35).tolist() == [[False] * 3]


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_promise_is_kept_on_average(task):
    random = np.random.default_rng(0)
    kept = []
    for _ in range(60):
        logits = random.normal(size=(300, 5))
        answers = softmax(logits, axis=1)
        if task == "classification":
            labels: Any = (random.random((300, 1)) > np.cumsum(answers, axis=1)).sum(axis=1)
        elif task == "multilabel":
            labels = (random.random((300, 5)) < answers).astype(np.float32)
        else:
            labels = answers[:, :1] + random.standard_t(3, size=(300, 1))
            answers = answers[:, :1]
        promise = make_promise(task, answers[:100], labels[:100], coverage=0.8)
        kept.append(measure_promise(promise, answers[100:], labels[100:], **CHANCE)["coverage"]["value"])
    assert np.mean(kept) == pytest.approx(0.8, abs=0.02)


def test_each_target_has_an_interval_of_its_own_width():
    random = np.random.default_rng(1)
    truth = random.normal(size=(400, 2)) * [1.0, 100.0]
    promise = make_promise("regression", np.zeros((400, 2)), truth, coverage=0.9)
    assert promise.bounds is not None
    assert promise.bounds[1] / promise.bounds[0] == pytest.approx(100.0, rel=0.2)
    measured = measure_promise(promise, np.zeros((400, 2)), truth, **CHANCE)
    assert [column["value"] for column in measured["by_column"]] == [0.9025, 0.9025]
    assert measured["coverage"]["value"] == pytest.approx(0.9025)


def test_what_is_settled_on_validation_is_what_is_measured_on_test():
    random = np.random.default_rng(3)
    logits = 2.0 * random.normal(size=(900, 4))
    labels = (random.random((900, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    settled = settle("classification", 4 * logits[:400], labels[:400], balance=None, coverage=0.9, risk=None, seed=7)
    answers = softmax(4 * logits[400:] / settled.calibration.temperature, axis=1).astype(np.float32)
    found = measure(settled, answers, labels[400:], **CHANCE)
    assert found["calibration"]["test"]["change"]["high"] < 0.0
    assert found["conformal"]["test"]["coverage"]["low"] <= 0.9 <= found["conformal"]["test"]["coverage"]["high"]
    assert 1.0 < found["conformal"]["test"]["set_size"]["value"] < 4.0
    areas = [found["doubt"][split]["area_under_risk"]["value"] for split in ("validation", "test")]
    assert areas[0] == pytest.approx(areas[1], abs=0.06)
    assert settled.facts() == {
        "temperature": settled.calibration.temperature,
        "conformal": {"coverage": 0.9, "least_probability": found["conformal"]["least_probability"]},
    }


def test_a_model_of_classes_made_equally_common_is_calibrated_as_if_they_were():
    random = np.random.default_rng(4)
    logits = 2.0 * random.normal(size=(6000, 2)) + [0.0, 2.0]
    labels = (random.random(6000) > softmax(logits, axis=1)[:, 0]).astype(int)
    rows = np.flatnonzero((labels == 0) | (random.random(6000) < 0.1))  # class 1 is rare where the model is judged
    balance = np.array([1.0, 10.0])
    plain = settle("classification", 2 * logits[rows], labels[rows], balance=None, coverage=0.9, risk=None, seed=7)
    balanced = settle(
        "classification", 2 * logits[rows], labels[rows], balance=balance, coverage=0.9, risk=None, seed=7
    )
    assert balanced.calibration.temperature == pytest.approx(2.0, rel=0.1)
    answers = softmax(logits[rows], axis=1)
    errors = [
        measure(way, answers, labels[rows], **CHANCE)["calibration"]["test"]["after"] for way in (balanced, plain)
    ]
    assert errors[0]["value"] < 0.04
    assert errors[1]["value"] > 0.06
