"""Metrics of probabilities: scikit-learn's numbers, weighted too, and intervals that repeat."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from regraft.evaluation import probabilities
from regraft.evaluation.probabilities import probability_metrics, rank_scores

CHANCE: Any = {"samples": 100, "interval": 0.95, "seed": 5}


def answered(rows: int = 300, classes: int = 7, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(size=(rows, classes)), 1)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return labels, softmax(logits, axis=1)


@pytest.mark.parametrize("classes", [2, 7])
def test_metrics_of_classes_are_those_of_scikit_learn(classes):
    labels, given = answered(classes=classes)
    found = probability_metrics("classification", labels, given, [str(k) for k in range(classes)], **CHANCE)
    one_hot = np.eye(classes)[labels]
    assert found["log_loss"]["value"] == pytest.approx(log_loss(labels, given))
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(one_hot, given, average="macro"))
    assert found["pr_auc"]["value"] == pytest.approx(average_precision_score(one_hot, given, average="macro"))
    brier = brier_score_loss(labels, given[:, 1] if classes == 2 else given)
    assert found["brier"]["value"] == pytest.approx(brier)
    if classes > 5:
        assert found["top_5_accuracy"]["value"] == pytest.approx(top_k_accuracy_score(labels, given, k=5))
    else:
        assert "top_5_accuracy" not in found
    assert found["not_ranked"] == []
    for metric in ("log_loss", "brier", "roc_auc", "pr_auc"):
        assert found[metric]["low"] < found[metric]["value"] < found[metric]["high"]
    again = probability_metrics("classification", labels, given, [str(k) for k in range(classes)], **CHANCE)
    assert found == again


def test_metrics_of_labels_are_means_over_labels():
    random = np.random.default_rng(1)
    logits = np.round(random.normal(size=(200, 3)), 1)
    truth = (random.random((200, 3)) < expit(logits)).astype(np.float32)
    found = probability_metrics("multilabel", truth, expit(logits), "abc", **CHANCE)
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(truth, expit(logits)))
    assert found["pr_auc"]["value"] == pytest.approx(average_precision_score(truth, expit(logits)))
    each = [log_loss(truth[:, k], expit(logits[:, k])) for k in range(3)]
    assert found["log_loss"]["value"] == pytest.approx(np.mean(each))
    each = [brier_score_loss(truth[:, k], expit(logits[:, k])) for k in range(3)]
    assert found["brier"]["value"] == pytest.approx(np.mean(each))


def test_a_weight_is_scikit_learns_sample_weight_ties_included():
    random = np.random.default_rng(2)
    scores = np.round(random.random((60, 2)), 1)
    truth = random.random((60, 2)) < scores
    weights = random.integers(0, 4, (5, 60)).astype(float)
    found = rank_scores(weights, truth, scores)
    for row in range(5):
        options: Any = {"average": "macro", "sample_weight": weights[row]}
        assert found["roc_auc"][row] == pytest.approx(roc_auc_score(truth, scores, **options))
        assert found["pr_auc"][row] == pytest.approx(average_precision_score(truth, scores, **options))


def test_a_class_without_test_examples_is_named_and_makes_no_nan():
    labels, given = answered(classes=7)
    there = labels != 3
    found = probability_metrics("classification", labels[there], given[there], "abcdefg", **CHANCE)
    assert found["not_ranked"] == ["d"]
    kept = [k for k in range(7) if k != 3]
    one_hot = np.eye(7)[labels[there]][:, kept]
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(one_hot, given[there][:, kept]))
    assert np.isfinite(found["roc_auc"]["low"])


def test_where_nothing_can_be_ranked_there_is_no_area_and_a_sure_mistake_costs_a_bounded_loss():
    found = probability_metrics("classification", np.zeros(4, int), np.array([[0.0, 1.0]] * 4), "ab", **CHANCE)
    assert not {"roc_auc", "pr_auc"} & set(found)
    assert found["not_ranked"] == ["a", "b"]
    assert found["log_loss"]["value"] == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_large_splits_are_ranked_on_fewer_resamples(monkeypatch):
    labels, given = answered(classes=7)
    monkeypatch.setattr(probabilities, "_RANKED_AT_MOST", 250 * 300 * 7)
    found = probability_metrics("classification", labels, given, "abcdefg", **{**CHANCE, "samples": 1000})
    assert found["ranking_resamples"] == 250
