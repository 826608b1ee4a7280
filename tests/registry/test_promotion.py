"""The rules of promotion, on numbers worked out by hand."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from regraft.errors import RegistryError
from regraft.registry.promotion import (
    Answers,
    champion_gate,
    choose_metric,
    majority_gate,
    minimum_gate,
    paired_interval,
    read_answers,
    score,
)

CHANCE: dict[str, Any] = {"samples": 500, "interval": 0.95, "seed": 3}


def answers(labels: str, predicted: str) -> Answers:
    return Answers(tuple(f"id{n}" for n in range(len(labels))), tuple(labels), tuple(predicted))


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [("accuracy", accuracy_score), ("precision", precision_score), ("recall", recall_score), ("f1", f1_score)],
)
def test_scores_are_those_of_scikit_learn(metric: str, theirs: object) -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.choice(list("abcde"), (2, 400))
    predicted = np.where(random.random(400) < 0.6, labels, predicted)
    options = {} if metric == "accuracy" else {"average": "macro"}
    assert score(metric, list(labels), list(predicted)) == pytest.approx(theirs(labels, predicted, **options), abs=1e-6)  # type: ignore[operator]


def test_a_class_that_only_the_model_knows_costs_the_answer_but_is_no_class_of_its_own() -> None:
    assert score("recall", "aabb", "axbb") == pytest.approx((0.5 + 1.0) / 2)
    assert score("precision", "aabb", "axbb") == 1.0


def test_the_minimum_itself_passes() -> None:
    assert minimum_gate("accuracy", 0.5, 0.5).passed
    assert not minimum_gate("accuracy", 0.4999, 0.5).passed


def test_a_model_must_beat_the_most_frequent_answer() -> None:
    assert majority_gate("accuracy", answers("aaab", "aaab")).passed
    gate = majority_gate("accuracy", answers("aaab", "aaaa"))
    assert (gate.passed, gate.numbers) == (False, {"value": 0.75, "baseline": 0.75})


@pytest.mark.parametrize(("tolerance", "passed"), [(0.0, False), (0.09, False), (0.1, True), (0.2, True)])
def test_the_tolerance_is_the_most_that_may_be_lost(tolerance: float, passed: bool) -> None:
    champion, challenger = answers("aabbaabbab", "aabbaabbab"), answers("aabbaabbab", "aabbaabbaa")
    gate = champion_gate("accuracy", challenger, champion, version=4, tolerance=tolerance, **CHANCE)
    assert gate.passed is passed
    assert gate.numbers["difference"] == pytest.approx(-0.1)
    assert "version 4" in gate.reason


def test_equal_models_differ_by_exactly_nothing() -> None:
    same = answers("abababab", "abbbabab")
    gate = champion_gate("f1", same, same, version=1, tolerance=0.0, **CHANCE)
    assert gate.passed
    assert (gate.numbers["low"], gate.numbers["high"]) == (0.0, 0.0)


def test_models_that_answered_different_questions_are_not_compared() -> None:
    other = Answers(("x", "y"), ("a", "b"), ("a", "b"))
    with pytest.raises(ValueError, match="different test examples"):
        champion_gate("accuracy", answers("ab", "ab"), other, version=1, tolerance=0.0, **CHANCE)


def test_the_interval_of_a_difference_in_accuracy_is_the_one_of_the_normal_approximation() -> None:
    random = np.random.default_rng(1)
    labels = ["a"] * 2000
    first = np.where(random.random(2000) < 0.9, "a", "b")
    second = np.where(random.random(2000) < 0.8, "a", "b")
    low, high = paired_interval("accuracy", labels, list(first), list(second), samples=4000, interval=0.95, seed=0)
    each = (first == "a").astype(float) - (second == "a")
    centre, half = each.mean(), 1.96 * each.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.002)


def test_digest_of_test_data_depends_on_examples_and_labels_and_not_on_answers() -> None:
    assert answers("ab", "ab").test_digest == answers("ab", "bb").test_digest
    assert answers("ab", "ab").test_digest != answers("bb", "ab").test_digest


def test_labels_with_commas_and_newlines_survive_the_file(tmp_path: Path) -> None:
    label = 'cats, "big"\nones'
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "label", "predicted"], ["1", label, label]])
    assert read_answers(tmp_path / "p.csv").labels == (label,)


@pytest.mark.parametrize(
    ("content", "message"),
    [("id,label\n1,a\n", "no column 'predicted'"), ("id,label,predicted\n", "no predictions")],
)
def test_predictions_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(RegistryError, match=message):
        read_answers(tmp_path / "p.csv")


def valued(truth: list[float], predicted: list[float], task: str = "regression") -> Answers:
    right, given = (tuple((value,) for value in values) for values in (truth, predicted))
    return Answers(tuple(f"id{n}" for n in range(len(truth))), right, given, task, ("size",))


def test_the_metric_follows_the_task_and_one_of_another_task_is_refused() -> None:
    chosen = [choose_metric(task, "auto") for task in ("classification", "multilabel", "regression")]
    assert chosen == ["accuracy", "micro_f1", "r2"]
    assert choose_metric("regression", "mae") == "mae"
    with pytest.raises(RegistryError, match="'accuracy', and this is a model for regression, measured by r2, pearson"):
        choose_metric("regression", "accuracy")


def test_a_minimum_of_an_error_is_the_most_that_is_allowed() -> None:
    assert minimum_gate("rmse", 0.5, 0.5).passed
    assert not minimum_gate("rmse", 0.51, 0.5).passed
    assert "RMSE 0.5100 is above the most allowed 0.5000" in minimum_gate("rmse", 0.51, 0.5).reason


def test_a_model_of_values_must_beat_the_mean_of_training() -> None:
    truth = [1.0, 2.0, 3.0, 4.0]
    for metric in ("r2", "rmse", "pearson"):
        gate = majority_gate(metric, valued(truth, [1.5, 2.0, 3.0, 3.5]), (2.0,))
        assert gate.passed
        assert "always answering the mean of training (2)" in gate.reason
        worse = majority_gate(metric, valued(truth, [4.0, 3.0, 2.0, 1.0]), (2.0,))
        assert not worse.passed
    assert majority_gate("rmse", valued(truth, truth), (2.0,)).numbers["baseline"] == pytest.approx(1.5**0.5)


@pytest.mark.parametrize(("tolerance", "passed"), [(0.0, False), (0.4, False), (0.5, True)])
def test_of_an_error_a_champion_is_beaten_by_less(tolerance: float, passed: bool) -> None:
    truth = [1.0, 2.0, 3.0, 4.0]
    champion, challenger = valued(truth, [1.5, 2.5, 3.5, 4.5]), valued(truth, [2.0, 3.0, 4.0, 5.0])
    gate = champion_gate("mae", challenger, champion, version=4, tolerance=tolerance, **CHANCE)
    assert gate.passed is passed
    assert gate.numbers["difference"] == pytest.approx(0.5)
    assert champion_gate("mae", champion, challenger, version=4, tolerance=0.0, **CHANCE).passed


def test_answers_in_columns_survive_the_file_and_say_their_task(tmp_path: Path) -> None:
    rows = [["id", "name", "true a, b", "predicted a, b"], ["1", "x", "0.1", "1e-9"], ["2", "y", "-3", "4"]]
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    read = read_answers(tmp_path / "p.csv")
    assert (read.task, read.names) == ("regression", ("a, b",))
    assert (read.labels, read.predicted) == (((0.1,), (-3.0,)), ((1e-9,), (4.0,)))
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "true a", "predicted a", "probability a"], ["1", "1", "0", "0.4"]])
    assert read_answers(tmp_path / "p.csv").task == "multilabel"


def test_a_label_set_must_be_answered_better_than_by_the_most_frequent_set() -> None:
    answers = Answers(("1", "2"), ((1.0, 0.0), (1.0, 1.0)), ((1.0, 0.0), (1.0, 1.0)), "multilabel", ("a", "b"))
    gate = majority_gate("micro_f1", answers, (1.0, 0.0))
    assert gate.passed
    assert "always answering 'a'" in gate.reason
    assert gate.numbers["baseline"] == pytest.approx(2 * 2 / (3 + 2))
