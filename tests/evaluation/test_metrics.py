"""Metrics with intervals: values worked out by hand, intervals against brute force and against theory."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from regraft.evaluation.metrics import classification_metrics, most_frequent_confusions, paired_gain
from regraft.evaluation.resampling import share_with_interval

SETTINGS: Any = {"samples": 1000, "interval": 0.95, "seed": 7}


def test_values_worked_out_by_hand():
    # true a a a b b c, predicted a a b b c c: precision a 2/2, b 1/2, c 1/2; recall a 2/3, b 1/2, c 1/1
    metrics = classification_metrics(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2]), "abc", **SETTINGS)
    assert metrics["accuracy"]["value"] == pytest.approx(4 / 6)
    assert metrics["precision"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert metrics["recall"]["value"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics["f1"]["value"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert metrics["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics["examples"] == 6
    assert metrics["per_class"]["a"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 5),
        "examples": 3,
    }


def test_a_class_without_test_examples_does_not_drag_the_averages_down():
    metrics = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), ["a", "b", "unseen"], **SETTINGS)
    assert metrics["recall"]["value"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["per_class"]["unseen"]["examples"] == 0


def test_intervals_are_those_of_drawing_examples_again_and_again():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 150)
    predicted = np.where(random.random(150) < 0.8, labels, random.integers(0, 4, 150))
    metrics = classification_metrics(labels, predicted, "abcd", samples=4000, interval=0.95, seed=1)
    draws = random.integers(0, 150, (4000, 150))
    accuracies = (labels == predicted)[draws].mean(axis=1)
    f1s = [f1_score(labels[draw], predicted[draw], average="macro") for draw in draws[:1500]]
    matthews = [matthews_corrcoef(labels[draw], predicted[draw]) for draw in draws[:1500]]
    assert metrics["mcc"]["value"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for name, scores in (("accuracy", accuracies), ("f1", f1s), ("mcc", matthews)):
        low, high = np.quantile(scores, [0.025, 0.975])
        assert metrics[name]["low"] == pytest.approx(low, abs=0.012)
        assert metrics[name]["high"] == pytest.approx(high, abs=0.012)


def test_ninety_five_percent_intervals_cover_the_truth_about_that_often():
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        labels = random.integers(0, 2, 200)
        predicted = np.where(random.random(200) < 0.85, labels, 1 - labels)
        accuracy = classification_metrics(labels, predicted, "ab", samples=300, interval=0.95, seed=trial)["accuracy"]
        covered += accuracy["low"] <= 0.85 <= accuracy["high"]
    assert 0.89 <= covered / 200 <= 0.99


def test_no_mistake_in_few_examples_is_not_reported_as_certainty():
    few, many = (
        classification_metrics(np.arange(n) % 2, np.arange(n) % 2, "ab", **SETTINGS)["accuracy"] for n in (20, 2000)
    )
    assert few == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 20)), "high": 1.0}
    assert few["low"] == pytest.approx(0.8316, abs=1e-4)  # Clopper-Pearson for 20 of 20, from tables
    assert many["low"] > 0.998


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    labels, predicted = np.arange(100) % 3, (np.arange(100) % 7) % 3
    first, again, other = (
        classification_metrics(labels, predicted, "abc", samples=200, interval=0.9, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["f1"] != other["f1"]


def test_memory_limits_do_not_change_the_numbers(monkeypatch):
    labels, predicted = np.arange(300) % 5, (np.arange(300) % 11) % 5
    whole = classification_metrics(labels, predicted, "abcde", **SETTINGS)
    monkeypatch.setattr("regraft.evaluation.metrics._VALUES_AT_ONCE", 500)
    assert classification_metrics(labels, predicted, "abcde", **SETTINGS) == whole


def test_a_paired_gain_is_surer_than_two_separate_intervals():
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 400)
    baseline = np.where(random.random(400) < 0.8, labels, (labels + 1) % 3)
    better = np.where((baseline != labels) & (random.random(400) < 0.4), labels, baseline)
    gain = paired_gain(labels, better, baseline, classes=3, **SETTINGS)["accuracy"]
    assert gain["value"] == pytest.approx((better == labels).mean() - (baseline == labels).mean())
    assert 0.0 < gain["low"] < gain["value"] < gain["high"]
    ours, theirs = (
        classification_metrics(labels, answers, "abc", **SETTINGS)["accuracy"] for answers in (better, baseline)
    )
    assert gain["high"] - gain["low"] < (ours["high"] - ours["low"] + theirs["high"] - theirs["low"]) / 2


def test_a_model_gains_nothing_over_itself():
    labels, predicted = np.arange(60) % 3, (np.arange(60) % 4) % 3
    for gain in paired_gain(labels, predicted, predicted, classes=3, **SETTINGS).values():
        assert gain == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_most_frequent_confusions_come_first_and_right_answers_are_none():
    assert most_frequent_confusions([[90, 1, 0], [4, 80, 2], [0, 0, 70]], limit=2) == [(1, 0, 4), (1, 2, 2)]
    assert most_frequent_confusions([[5, 0], [0, 5]], limit=3) == []


def test_an_empty_split_cannot_be_scored():
    with pytest.raises(ValueError, match="no examples"):
        classification_metrics(np.array([], np.int64), np.array([], np.int64), "ab", **SETTINGS)


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.1684), (10, 0.2720, 0.7280), (20, 0.8316, 1.0)])
def test_the_exact_interval_of_a_share_is_that_of_the_tables(hits, low, high):
    share = share_with_interval(hits, 20, 0.95)
    assert (share["low"], share["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
