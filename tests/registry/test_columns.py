"""Models of real values and of label sets in the registry: what consumers get, and how champions are compared."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import RegistryError
from regraft.evaluation import columns
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.registry.predict import predict
from regraft.registry.register import publish
from regraft.registry.serving import load_served
from regraft.registry.versions import list_models
from regraft.settings import Settings
from tasks.evaluate import list_columns
from tests.registry.small_projects import LINEAGE, Project, picture


class Brightness(tf.Module):
    """Answers the mean of red and of blue of an encoded image, plus `error` (in logits of labels: around 100)."""

    def __init__(self, error: float, task: str) -> None:
        self.error, self.task = tf.constant(error), task

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        def mean(encoded: tf.Tensor) -> tf.Tensor:
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(pixels, tf.float32), axis=(0, 1))

        means = tf.gather(tf.map_fn(mean, image, fn_output_signature=tf.TensorSpec((3,), tf.float32)), [0, 2], axis=1)
        if self.task == "regression":
            return {"values": means + self.error}
        return {"probabilities": tf.nn.sigmoid(means - 100.0 + self.error)}


NAMES = ("red", "blue")


def make(
    root: Path, database: Path, *, task: str = "regression", error: float = 0.0, shades: Any = range(50, 250, 10)
) -> Project:
    """Write a project as the stages would leave it."""
    paths = Paths(root)
    root.mkdir(exist_ok=True)
    if not (root / "mlflow.db").exists():
        shutil.copy(database, root / "mlflow.db")
    examples = []
    for number, shade in enumerate(shades):
        content = picture(("red", "blue")[number % 2], shade)
        values = (float(shade), 0.0)[:: 1 if number % 2 == 0 else -1]
        if task == "multilabel":
            values = tuple(float(value >= 100.0) for value in values)
        digest = hashlib.sha256(content).hexdigest()
        examples.append(Example(digest, f"{shade}.png", str(values), content, values))
    shutil.rmtree(paths.prepared, ignore_errors=True)
    splits = {"train": examples, "validation": examples[:4], "test": examples}
    write_prepared(paths.prepared, "image", NAMES, splits, task=task)
    shutil.rmtree(paths.serving, ignore_errors=True)
    model = Brightness(error, task)
    tf.saved_model.save(model, str(paths.serving / "saved_model"), signatures={"serving_default": model.serve})
    write_json(paths.serving / "labels.json", {"kind": "image", "labels": list(NAMES), "task": task})
    (paths.serving / "input_example.bin").write_bytes(picture("blue", 90))

    test = open_split(paths.prepared, "test")
    answers = load_served(paths.serving).answers(test.inputs(range(len(test))))
    given = answers >= 0.5 if task == "multilabel" else answers
    measured = columns.measure(task, test.labels, given, samples=100, interval=0.95, seed=1)
    constant = test.labels.mean(axis=0) if task == "regression" else np.zeros(2)
    metrics = {"task": task, "test": measured, "probe": {"test": measured}, "shipped": "probe"}
    write_json(paths.reports / "metrics.json", {**metrics, "baseline": {"values": constant.tolist()}})
    (paths.reports / "predictions.csv").write_text(list_columns(test, answers), encoding="utf-8")
    paths.model_card.write_text("# A small model\n", encoding="utf-8")
    write_json(paths.reports / "training.json", {"history": []})
    write_json(paths.reports / "data.json", {"kind": "image", "task": task, "labels": list(NAMES), "examples": {}})
    write_json(paths.reports / "download.json", {"digest": "ab" * 32})
    write_json(paths.reports / "backbone.json", {})
    fingerprint = hashlib.sha256(repr((task, error, list(shades))).encode()).hexdigest()
    return Project(paths, Settings.model_validate({"name": "light"}), fingerprint)


@pytest.fixture
def project(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda **how: make(tmp_path / "project", empty_database, **how)


def published(project: Project, **promote: object) -> Any:
    settings = Settings.model_validate({"name": "light", "promote": promote})
    return publish(project.paths, settings, LINEAGE, project.fingerprint)


def load(project: Project) -> Any:
    return mlflow.pyfunc.load_model(next((project.paths.root / "mlartifacts" / "models").glob("*/artifacts")))


def test_consumers_get_a_column_for_each_value_in_its_own_unit(project: Callable[..., Project], tmp_path: Path) -> None:
    made = project(error=2.0)
    assert published(made).promoted
    model = load(made)
    answers = model.predict(pd.DataFrame({"image": [picture("red", 120), picture("blue", 60)]}, index=[7, 3]))
    assert list(answers.columns) == list(NAMES)
    assert answers.index.tolist() == [7, 3]
    np.testing.assert_allclose(answers.to_numpy(), [[122.0, 2.0], [2.0, 62.0]])
    assert answers["red"].dtype == np.float64
    assert model.metadata.get_output_schema().input_names() == list(NAMES)
    (tmp_path / "a.png").write_bytes(picture("red", 120))
    asked = predict(made.paths, made.settings, "light", [str(tmp_path / "a.png")])
    assert asked == [{"input": str(tmp_path / "a.png"), "red": 122.0, "blue": 2.0}]
    (row,) = list_models(made.paths, made.settings)
    assert row["task"] == "regression"
    assert row["metrics"]["rmse"] == pytest.approx(2.0)


def test_promises_are_columns_of_their_own(project: Callable[..., Project]) -> None:
    made = project(error=2.0)
    facts = {"kind": "image", "labels": list(NAMES), "task": "regression"}
    promise = {"conformal": {"coverage": 0.9, "half_widths": [3.0, 0.5]}}
    write_json(made.paths.serving / "labels.json", facts | promise)
    assert published(made).promoted
    model = load(made)
    answers = model.predict({"image": [picture("red", 120)]})
    columns_given = {"red": 122.0, "blue": 2.0, "red low": 119.0, "red high": 125.0, "blue low": 1.5, "blue high": 2.5}
    assert answers.to_dict("records") == [columns_given]
    assert model.metadata.get_output_schema().input_names() == list(columns_given)


def test_sets_of_labels_hold_what_cannot_be_ruled_out(project: Callable[..., Project]) -> None:
    made = project(task="multilabel", error=0.5)
    facts = {"kind": "image", "labels": list(NAMES), "task": "multilabel"}
    write_json(made.paths.serving / "labels.json", facts | {"conformal": {"coverage": 0.9, "least_probability": 0.3}})
    assert published(made).promoted
    answers = load(made).predict({"image": [picture("red", 120), picture("blue", 99)]})
    assert answers["labels"].tolist() == [["red"], []]
    assert answers["set"].tolist() == [["red"], ["blue"]]  # sigmoid(99 - 100 + 0.5) = 0.38


def test_consumers_get_the_labels_that_hold_with_all_probabilities(project: Callable[..., Project]) -> None:
    made = project(task="multilabel", error=0.5)
    assert published(made).promoted
    answers = load(made).predict({"image": [picture("red", 120), picture("blue", 60)]})
    assert answers["labels"].tolist() == [["red"], []]
    assert answers["probabilities"][0]["red"] > 0.99
    assert set(answers["probabilities"][1]) == set(NAMES)


def test_a_worse_model_of_values_does_not_replace_the_champion_and_a_better_one_does(
    project: Callable[..., Project],
) -> None:
    assert published(project(error=3.0)).promoted
    refused = published(project(error=9.0), metric="rmse")
    assert not refused.promoted
    assert any("RMSE 9.0000 against 3.0000 of version 1" in reason for reason in refused.reasons)
    better = published(project(error=1.0), metric="rmse")
    assert (better.version, better.promoted) == (3, True)


def test_a_model_no_better_than_the_mean_is_refused(project: Callable[..., Project]) -> None:
    refused = published(project(error=150.0))
    assert not refused.promoted
    assert "does not beat" in refused.reasons[0]
    assert "always answering the mean of training" in refused.reasons[0]


@pytest.mark.parametrize(("task", "metric"), [("regression", "RMSE"), ("multilabel", "micro F1")])
def test_on_new_test_data_the_champion_answers_again(project: Callable[..., Project], task: str, metric: str) -> None:
    assert published(project(task=task, error=3.0)).promoted
    newer = published(project(task=task, error=2.0, shades=range(60, 200, 9)), metric=metric.lower().replace(" ", "_"))
    assert newer.promoted
    gate = next(gate for gate in newer.gates if gate["name"] == "champion")
    if task == "regression":
        assert (gate["value"], gate["champion"]) == (pytest.approx(2.0), pytest.approx(3.0))


def test_a_champion_of_another_task_or_of_other_targets_cannot_be_compared(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published(project()).promoted
    refused = published(project(task="multilabel"))
    assert not refused.promoted
    assert any("is for regression and this model for multilabel" in reason for reason in refused.reasons)
    monkeypatch.setattr("tests.registry.test_columns.NAMES", ("crimson", "navy"))
    other = published(project(error=0.25))
    assert any("answers other targets than this model" in reason for reason in other.reasons)


def test_a_metric_of_another_task_is_named_before_anything_is_registered(project: Callable[..., Project]) -> None:
    made = project()
    with pytest.raises(RegistryError, match=r"promote\.metric is 'f1', and this is a model for regression"):
        published(made, metric="f1")
    assert list_models(made.paths, made.settings) == []


def test_predictions_and_metrics_of_two_evaluations_are_noticed(project: Callable[..., Project]) -> None:
    made = dataclasses.replace(project())
    metrics = read_json(made.paths.reports / "metrics.json")
    metrics["test"]["r2"]["value"] = 0.5
    write_json(made.paths.reports / "metrics.json", metrics)
    with pytest.raises(RegistryError, match=r"R2 0\.500000, but predictions\.csv beside it gives 1\.000000"):
        published(made)
