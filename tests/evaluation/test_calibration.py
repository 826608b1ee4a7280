"""Temperatures that are found, refused and measured on answers whose true probabilities are known."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from regraft.evaluation.calibration import fit_calibration, measure_calibration, sort_into_bins, without_temperature

CHANCE: Any = {"samples": 300, "interval": 0.95, "seed": 5}


def true_logits(rows: int, classes: int = 4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with just the probabilities that they say."""
    random = np.random.default_rng(seed)
    logits = 2.0 * random.normal(size=(rows, classes))
    labels = (random.random((rows, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_the_temperature_undoes_what_logits_were_multiplied_by(factor):
    logits, labels = true_logits(2000)
    found = fit_calibration("classification", factor * logits, labels, seed=1)
    assert found.method == "temperature"
    assert found.temperature == pytest.approx(factor, rel=0.1)


def test_logits_that_say_what_is_so_stay_as_they_are_and_so_do_those_of_few_examples():
    logits, labels = true_logits(2000)
    assert fit_calibration("classification", logits, labels, seed=1).method == "none"
    few = fit_calibration("classification", 5 * logits[:19], labels[:19], seed=1)
    assert few.temperature == 1.0
    assert "19 validation examples are too few" in few.why


def test_labels_that_hold_at_once_share_a_temperature():
    random = np.random.default_rng(2)
    logits = random.normal(size=(800, 3))
    labels = (random.random((800, 3)) < expit(logits)).astype(np.float32)
    assert fit_calibration("multilabel", 2.5 * logits, labels, seed=1).temperature == pytest.approx(2.5, rel=0.15)


def test_weights_count_as_repetitions_do():
    logits, labels = true_logits(4000)
    weights = np.where(labels == 0, 3.0, 1.0)
    weighted = fit_calibration("classification", 3 * logits, labels, weights=weights, seed=1).temperature
    rows = np.repeat(np.arange(4000), weights.astype(int))
    repeated = fit_calibration("classification", 3 * logits[rows], labels[rows], seed=1).temperature
    assert weighted == pytest.approx(repeated, rel=1e-3)


def test_few_examples_do_not_make_answers_surer_but_less_sure():
    logits, labels = true_logits(150)
    surer = fit_calibration("classification", 0.2 * logits, labels, seed=1)
    assert surer.method == "none"
    assert "too few to make answers surer (200)" in surer.why
    assert fit_calibration("classification", 3 * logits, labels, seed=1).temperature > 2.0


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_temperature_can_be_taken_away_again(task):
    logits, _ = true_logits(50)
    link = (lambda z: softmax(z, axis=1)) if task == "classification" else expit
    np.testing.assert_allclose(without_temperature(task, link(logits / 1.7), 1.7), link(logits), rtol=1e-9)


def test_the_error_worked_out_by_hand():
    # Ten predictions at 0.6 of which 4 are right, ten at 0.9 of which all are: (0.2 + 0.1) / 2
    probabilities = np.repeat([[0.6, 0.4], [0.9, 0.1]], 10, axis=0)
    labels = np.array([0] * 4 + [1] * 6 + [0] * 10)
    measured = measure_calibration("classification", probabilities, probabilities, labels, **CHANCE)
    assert measured["after"]["value"] == pytest.approx(0.15)
    assert measured["bins"] == 2
    assert [row["right"] for row in measured["after"]["reliability"]] == [0.4, 1.0]
    assert measured["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    # Twice the weight on the first ten: (2 * 0.2 + 0.1) / 3
    weights = np.repeat([2.0, 1.0], 10)
    weighted = measure_calibration("classification", probabilities, probabilities, labels, weights=weights, **CHANCE)
    assert weighted["after"]["value"] == pytest.approx(0.5 / 3)


def test_what_is_right_as_often_as_it_says_errs_by_chance_only_and_the_interval_says_so():
    errors, expected = [], []
    for seed in range(30):
        logits, labels = true_logits(600, seed=seed)
        probabilities = softmax(logits, axis=1)
        binned = sort_into_bins("classification", probabilities, labels, np.ones(600))
        errors.append(np.abs(binned.gaps.sum(axis=0)).sum() / 600)
        expected.append(binned.chance)
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.1)
    sure = measure_calibration("classification", softmax(3 * logits, axis=1), probabilities, labels, **CHANCE)
    assert sure["change"]["high"] < 0.0
    assert sure["after"]["low"] <= sure["after"]["value"] <= sure["after"]["high"]
    assert sure["after"]["low"] < sure["after"]["by_chance"] < sure["before"]["low"]


def test_every_label_counts_as_a_prediction():
    probabilities = np.repeat([[0.2, 0.8]], 50, axis=0)
    labels = np.zeros((50, 2))
    labels[:10, 0], labels[:40, 1] = 1.0, 1.0
    measured = measure_calibration("multilabel", probabilities, probabilities, labels, **CHANCE)
    assert sum(row["predictions"] for row in measured["after"]["reliability"]) == 100
    assert np.mean([row["right"] for row in measured["after"]["reliability"]]) == pytest.approx(0.5, abs=0.1)
