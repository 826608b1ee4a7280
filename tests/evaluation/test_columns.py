"""Metrics of real values and of label sets: scikit-learn's and SciPy's numbers, and intervals that hold."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    hamming_loss,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
    root_mean_squared_error,
)

from regraft.evaluation.columns import by_column, gain, measure, resample, score_labels, score_once, score_values

CHANCE: Any = {"samples": 400, "interval": 0.95, "seed": 5}


def values(rows=200, columns=2, *, noise=0.7, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.round(generator.normal(size=(rows, columns)), 1)  # rounded, so that there are ties
    return truth, np.round(truth + noise * generator.normal(size=(rows, columns)), 2)


def test_metrics_of_values_are_those_of_scikit_learn_and_scipy():
    truth, answers = values()
    scores = score_once("regression", truth, answers)
    assert scores["r2"] == pytest.approx(r2_score(truth, answers))
    assert scores["mse"] == pytest.approx(mean_squared_error(truth, answers))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(truth, answers))
    assert scores["mae"] == pytest.approx(mean_absolute_error(truth, answers))
    for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
        each = [correlation(truth[:, k], answers[:, k]).statistic for k in range(2)]
        assert scores[name] == pytest.approx(np.mean(each))


def test_metrics_of_label_sets_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.random((150, 4)) < [0.1, 0.3, 0.5, 0.8]
    answers = truth ^ (generator.random((150, 4)) < 0.2)
    scores = score_once("multilabel", truth, answers)
    assert scores["subset_accuracy"] == pytest.approx(accuracy_score(truth, answers))
    assert scores["hamming_loss"] == pytest.approx(hamming_loss(truth, answers))
    for average in ("micro", "macro"):
        for name, theirs in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            assert scores[f"{average}_{name}"] == pytest.approx(theirs(truth, answers, average=average))


@pytest.mark.parametrize(("task", "scorer"), [("regression", score_values), ("multilabel", score_labels)])
def test_a_weight_of_two_is_an_example_that_stands_there_twice(task, scorer):
    truth, answers = values(30)
    if task == "multilabel":
        truth, answers = truth > 0, answers > 0
    weights = np.random.default_rng(2).integers(0, 4, (1, 30)).astype(float)
    rows = np.repeat(np.arange(30), weights[0].astype(int))
    weighted, repeated = scorer(weights, truth, answers), score_once(task, truth[rows], answers[rows])
    for name, value in repeated.items():
        assert weighted[name][0] == pytest.approx(value, abs=1e-9), name


def test_a_constant_answer_correlates_with_nothing_and_explains_nothing():
    truth, _ = values(columns=1)
    scores = score_once("regression", truth, np.full_like(truth, truth.mean()))
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert scores["r2"] == pytest.approx(0.0, abs=1e-12)


def test_a_large_offset_costs_no_digits():
    truth, answers = values()
    near, far = score_once("regression", truth, answers), score_once("regression", truth + 1e6, answers + 1e6)
    assert far["r2"] == pytest.approx(near["r2"], rel=1e-6)
    assert far["pearson"] == pytest.approx(near["pearson"], rel=1e-6)


def test_intervals_hold_the_value_narrow_with_examples_and_repeat():
    small, large = values(50), values(5000)
    for truth, answers in (small, large):
        for numbers in measure("regression", truth, answers, **CHANCE).values():
            assert numbers["low"] <= numbers["value"] <= numbers["high"]
    widths = [
        (numbers := measure("regression", *data, **CHANCE)["pearson"])["high"] - numbers["low"]
        for data in (small, large)
    ]
    assert widths[1] < 0.2 * widths[0]
    assert measure("regression", *small, **CHANCE) == measure("regression", *small, **CHANCE)


def test_seventeen_right_sets_of_labels_do_not_prove_that_none_is_ever_wrong():
    truth = np.eye(3)[np.arange(17) % 3]
    found = measure("multilabel", truth, truth, **CHANCE)
    low = 0.025 ** (1 / 17)  # of which 17 in a row come out right once in forty times
    assert found["micro_f1"] == pytest.approx({"value": 1.0, "low": low, "high": 1.0})
    assert found["hamming_loss"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 1.0 - low})
    found = measure("multilabel", truth, np.roll(truth, 1, axis=1), **CHANCE)
    assert found["subset_accuracy"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 1.0 - low})
    assert found["hamming_loss"]["high"] == pytest.approx(2 / 3)


def test_the_interval_of_a_correlation_covers_the_truth_as_often_as_it_says():
    covered = 0
    for trial in range(100):
        truth, answers = values(100, 1, noise=1.0, seed=trial)
        numbers = measure("regression", truth, answers, samples=300, interval=0.9, seed=trial)["pearson"]
        covered += numbers["low"] <= np.sqrt(0.5) <= numbers["high"]
    assert 80 <= covered <= 97  # 90 of 100, with a standard error of 3


def test_a_paired_gain_is_surer_than_two_intervals_and_zero_against_itself():
    truth, answers = values(300, 1)
    better = truth + 0.8 * (answers - truth)
    paired = gain("regression", truth, better, answers, **CHANCE)["rmse"]
    single = measure("regression", truth, answers, **CHANCE)["rmse"]
    assert paired["value"] == pytest.approx(-0.2 * single["value"])
    assert paired["high"] - paired["low"] < 0.5 * (single["high"] - single["low"])
    assert gain("regression", truth, answers, answers, **CHANCE)["r2"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_many_examples_are_resampled_in_parts_of_bounded_size(monkeypatch):
    from regraft.evaluation import resampling

    truth, answers = values(40)
    whole = resample("regression", truth, (answers,), samples=30, seed=1)[0]
    monkeypatch.setattr(resampling, "_WEIGHTS_AT_ONCE", 100)
    parts = resample("regression", truth, (answers,), samples=30, seed=1)[0]
    for name, scores in whole.items():
        np.testing.assert_allclose(parts[name], scores)


def test_each_column_has_a_row_of_its_own():
    truth, answers = values()
    rows = by_column("regression", truth, answers, ["x", "y"])
    assert rows["y"]["rmse"] == pytest.approx(root_mean_squared_error(truth[:, 1], answers[:, 1]))
    rows = by_column("multilabel", truth > 0, answers > 0, ["x", "y"])
    assert rows["x"]["f1"] == pytest.approx(f1_score(truth[:, 0] > 0, answers[:, 0] > 0))
    assert rows["x"]["examples"] == (truth[:, 0] > 0).sum()


def test_no_example_cannot_be_scored():
    with pytest.raises(ValueError, match="no examples"):
        score_once("regression", np.zeros((0, 1)), np.zeros((0, 1)))
