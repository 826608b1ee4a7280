"""Resamples of examples that come in groups."""

from typing import Any

import numpy as np
import pytest

from regraft.evaluation import columns
from regraft.evaluation.metrics import classification_metrics, paired_gain
from regraft.evaluation.probabilities import probability_metrics
from regraft.evaluation.resampling import central, draw_weights


def share(values, groups=None, seed=0, samples=400):
    """Return the interval of the mean of `values`."""
    weights = np.concatenate(list(draw_weights(len(values), samples=samples, seed=seed, groups=groups)))
    return central(weights @ values / weights.sum(axis=1), 0.95)


def width(found):
    return found["high"] - found["low"]


def test_the_interval_covers_what_new_groups_would_say_as_often_as_it_promises():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 15)
    covered = {"examples": 0, "groups": 0}
    for _ in range(200):
        right = (random.random(300) < random.beta(3, 1, 20)[groups]).astype(np.float64)
        for name, given in (("examples", None), ("groups", groups)):
            found = share(right, given)
            covered[name] += found["low"] <= 0.75 <= found["high"]
    assert covered["groups"] >= 180
    assert covered["examples"] < 160


@pytest.mark.parametrize("groups", [np.arange(300), np.zeros(300)])
def test_groups_of_one_and_one_group_of_all_are_as_none(groups):
    right = (np.random.default_rng(1).random(300) < 0.8).astype(np.float64)
    assert width(share(right, groups, samples=2000)) == pytest.approx(width(share(right, samples=2000)), rel=0.1)


def test_resamples_repeat_and_every_sample_is_drawn_in_one_piece():
    groups = np.repeat(np.arange(40), 3)
    first, second = (np.concatenate(list(draw_weights(120, samples=7, seed=2, groups=groups))) for _ in range(2))
    assert first.shape == (7, 120)
    assert (first == second).all()
    assert (first.sum(axis=1) == 120).all()  # of groups of one size


def test_every_kind_of_score_allows_for_groups():
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(10), 40)
    labels = random.integers(0, 2, 400)
    is_right = np.arange(10) % 2 == 0
    predicted = np.where(is_right[groups], labels, random.integers(0, 2, 400))
    chance: Any = {"samples": 300, "interval": 0.95, "seed": 1}
    others = np.zeros(400, np.int64)
    sure = np.where(predicted[:, None] == np.arange(2), 0.9, 0.1)
    real, answered = labels[:, None] * 1.0, sure[:, 1:]
    for measured, metric in (
        (lambda **how: classification_metrics(labels, predicted, ("a", "b"), **chance, **how), "accuracy"),
        (lambda **how: paired_gain(labels, predicted, others, classes=2, **chance, **how), "accuracy"),
        (lambda **how: probability_metrics("classification", labels, sure, ("a", "b"), **chance, **how), "log_loss"),
        (lambda **how: probability_metrics("classification", labels, sure, ("a", "b"), **chance, **how), "roc_auc"),
        (lambda **how: columns.measure("regression", real, answered, **chance, **how), "rmse"),
        (lambda **how: columns.gain("regression", real, answered, real * 0.0, **chance, **how), "mae"),
    ):
        by_example, by_group = measured()[metric], measured(groups=groups)[metric]
        assert by_group["value"] == by_example["value"]
        assert width(by_group) > 1.5 * width(by_example)
