"""Doubt: areas and lines worked out by hand, and a line that holds on new examples."""

from typing import Any

import numpy as np
import pytest

from regraft.evaluation.doubt import area_under_risk, draw_line, how_sure, is_right, measure_doubt

CHANCE: Any = {"samples": 200, "interval": 0.95, "seed": 5}


def test_the_area_is_the_mean_risk_over_numbers_of_answers():
    sure, right = np.array([0.9, 0.5, 0.8, 0.7]), np.array([True, True, False, True])
    # the surest first: right, wrong, right, right
    assert area_under_risk(np.ones((1, 4)), sure, right)[0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    weights = np.array([[2.0, 1.0, 0.0, 3.0]])
    repeated = [0, 0, 1, 3, 3, 3]
    again = area_under_risk(np.ones((1, 6)), sure[repeated], right[repeated])[0]
    assert area_under_risk(weights, sure, right)[0] == pytest.approx(again)


def test_the_line_is_the_lowest_that_keeps_mistakes_and_one_more_within_the_risk():
    sure = np.linspace(1.0, 0.51, 50)
    right = np.ones(50, bool)
    right[[29, 40, 41, 42, 43]] = False
    # after 40 answers (1 + 1) / 41 = 0.049, after 41 (2 + 1) / 42 = 0.071; after 39 and 1 mistake 2 / 40 = 0.05
    assert draw_line(sure, right, 0.05).least == pytest.approx(sure[39])
    assert draw_line(sure, right, 0.5).least == pytest.approx(sure[49])
    nothing = draw_line(sure[:10], right[:10], 0.05)
    assert nothing.least is None
    assert nothing.facts() == {}
    assert "no line leaves 10 validation examples" in nothing.why
    assert draw_line(sure, right, None).facts() == {}


def test_equally_sure_answers_are_given_together():
    sure = np.array([0.9] * 30 + [0.8] * 30)
    right = np.array([True] * 59 + [False])
    assert draw_line(sure, right, 0.05).least == 0.8
    right[30:40] = False
    assert draw_line(sure, right, 0.05).least == 0.9


def test_a_line_holds_on_average_on_new_examples():
    random = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        sure = random.random(600)
        right = random.random(600) < 0.5 + sure / 2
        line = draw_line(sure[:300], right[:300], 0.1)
        if line.least is None:
            continue
        found = measure_doubt(line, sure[300:], right[300:], **{**CHANCE, "samples": 10})
        errors.append(found["error"]["value"])
    assert np.mean(errors) == pytest.approx(0.1, abs=0.012)


def test_what_is_measured_agrees_with_itself():
    random = np.random.default_rng(1)
    sure = random.random(400)
    right = random.random(400) < sure
    found = measure_doubt(draw_line(sure, right, 0.2), sure, right, **CHANCE)
    assert found["curve"][-1]["error"] == pytest.approx((~right).mean())
    assert found["curve"][0]["error"] < found["curve"][-1]["error"]
    assert found["area_under_risk"]["low"] < found["area_under_risk"]["value"] < found["area_under_risk"]["high"]
    assert 0.15 < found["error"]["value"] <= 0.2


def test_a_set_of_labels_is_as_sure_as_all_of_them_together():
    probabilities = np.array([[0.9, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(how_sure("multilabel", probabilities), [0.72, 0.25])
    np.testing.assert_allclose(how_sure("classification", probabilities), [0.9, 0.5])
    assert is_right("multilabel", probabilities, np.array([[1, 0], [1, 0]])).tolist() == [True, False]
    assert is_right("classification", probabilities, np.array([0, 1])).tolist() == [True, False]
