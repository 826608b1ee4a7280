"""The stage evaluate on tiny real projects: what it writes agrees with itself, the export and a second run."""

import csv
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from regraft.data.records import Example, open_split, write_prepared
from regraft.data.slice_columns import write_slices
from regraft.errors import TrainingError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.registry.promotion import read_answers
from regraft.registry.serving import INPUT_EXAMPLES, load_served
from regraft.settings import EvaluateSettings
from regraft.tuning.classifier import load_classifier, save_classifier, set_head
from tasks import evaluate
from tests.evaluation.small_models import data_card, picture, random_classifier

SETTINGS = EvaluateSettings(bootstrap_samples=100)
WORDS = ["good", "bad", "day", "very", "a"]


def make_project(root: Path, kind: str) -> Paths:
    """A project as the earlier stages leave it: 30 examples a split, a random model on an untrained backbone."""
    paths = Paths(root)
    labels = ("dark", "grey", "light")
    random = np.random.default_rng(11)
    splits = {}
    for split in ("train", "validation", "test"):
        examples = []
        for number in range(30):
            shade = int(random.integers(0, 256))
            words = " ".join(random.choice(WORDS, size=random.integers(1, 12)))
            content: bytes | str = picture(shade) if kind == "image" else words
            raw = content.encode() if isinstance(content, str) else content
            examples.append(
                Example(
                    hashlib.sha256(raw).hexdigest(),
                    f"{split}/{number}",
                    labels[shade * 3 // 256],
                    content,
                    slices=("north" if number < 24 else 'the "far", south', str(number)),
                )
            )
        splits[split] = examples
    write_prepared(paths.prepared, kind, labels, splits)
    write_slices(paths.slices, ["where", "age"], splits["test"])
    classifier = random_classifier(kind, paths.backbones, labels)  # type: ignore[arg-type]
    paths.model.mkdir(parents=True)
    save_classifier(paths.model, classifier)
    prepare = tf.function(classifier.extractor.prepare, autograph=False)
    paths.features.mkdir()
    test = open_split(paths.prepared, "test")
    for split in ("train", "test"):
        inputs = open_split(paths.prepared, split).inputs(range(30))
        batch = (
            tf.stack([prepare(tf.constant(one)) for one in inputs]) if kind == "image" else prepare(tf.constant(inputs))
        )
        np.save(paths.features / f"{split}.npy", classifier.extractor.model.predict_on_batch(batch))
    write_json(paths.features / "features.json", {"image_size_px": 32 if kind == "image" else None, "max_tokens": 16})
    counts = {split: dict(zip(labels, (12, 9, 9), strict=True)) for split in splits}
    write_json(
        paths.reports / "data.json",
        {
            "kind": kind,
            "labels": list(test.class_names),
            "counts": counts,
            "splits_made": [],
            "rejects": [],
            "duplicates": {"extra_copies": 0, "across_splits": 0, "conflicting_labels": 0},
            "median_short_side_px": 20,
            "text_length_characters": {"p50": 20, "p90": 30, "p99": 40, "max": 50},
            **data_card(paths),
        },
    )
    write_json(paths.reports / "download.json", {"source": "folder", "files": 90, "licence": None})
    validation = {"accuracy": 0.4, "log_loss": 1.0}
    training = {
        "probe": {"validation": validation},
        "shipped": "probe",
        "why": "Tests.",
        "history": [],
        "best_epoch": 0,
        "tried": [],
    }
    write_json(paths.reports / "training.json", training)
    write_json(paths.choice, {"name": "tiny", "image_size_px": None, "by": "settings"})
    write_json(paths.reports / "training_time.json", {"examples_per_second": None, "finetune_seconds": 0.0})
    return paths


@pytest.fixture(scope="module", autouse=True)
def _little_time_for_speed_and_explanations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "SPEED_BUDGET_S", 0.1)
        patch.setattr(evaluate, "EXPLAINED_EXAMPLES", 2)
        yield


@pytest.fixture(scope="module", params=["image", "text"])
def evaluated(request, tmp_path_factory):
    paths = make_project(tmp_path_factory.mktemp(request.param), request.param)
    evaluate.run(SETTINGS, "fruit", 7, paths)
    return paths


def files_below(*folders: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}


def test_every_row_of_predictions_is_what_the_export_answers_for_that_example(evaluated):
    test, served = open_split(evaluated.prepared, "test"), load_served(evaluated.serving)
    with (evaluated.reports / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == test.ids
    assert [row["name"] for row in rows] == test.names
    for number, row in enumerate(rows):
        probabilities = served.probabilities(test.inputs([number]))[0]
        assert row["predicted"] == served.labels[probabilities.argmax()]
        assert row["label"] == test.class_names[test.labels[number]]
        assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-4)
        assert float(row["probability_of_label"]) == pytest.approx(probabilities[test.labels[number]], abs=1e-4)


def test_columns_to_slice_by_stand_beside_each_prediction(evaluated):
    with (evaluated.reports / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        number = int(row["name"].removeprefix("test/"))
        assert row["slice where"] == ("north" if number < 24 else 'the "far", south')
        assert row["slice age"] == str(number)
    assert {"where", "age"} <= set(read_json(evaluated.reports / "metrics.json")["slices"]["left_out"])
    assert len(read_answers(evaluated.reports / "predictions.csv").ids) == 30


def test_metrics_are_those_of_the_predictions_and_the_probe_is_scored_on_its_features(evaluated):
    metrics = read_json(evaluated.reports / "metrics.json")
    with (evaluated.reports / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    assert metrics["test"]["accuracy"]["low"] <= right <= metrics["test"]["accuracy"]["high"]
    assert metrics["test"]["examples"] == 30
    # This model is its own probe, so that two ways of computing the same answers meet: the export and the features.
    assert metrics["probe"]["test"]["accuracy"] == metrics["test"]["accuracy"]
    assert metrics["gain_over_probe"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    labels = open_split(evaluated.prepared, "test").labels
    majority = metrics["labels"].index(metrics["majority"]["label"])
    assert metrics["majority"]["test"]["accuracy"]["value"] == pytest.approx((labels == majority).mean())


def test_what_ships_is_calibrated_and_promises_sets_by_validation(evaluated):
    metrics, facts = (
        read_json(file) for file in (evaluated.reports / "metrics.json", evaluated.serving / "labels.json")
    )
    calibration, conformal = metrics["calibration"], metrics["conformal"]
    assert calibration["method"] == ("temperature" if "temperature" in facts else "none")
    assert calibration["test"]["after"]["low"] <= calibration["test"]["after"]["value"]
    assert facts["conformal"] == {"coverage": 0.9, "least_probability": conformal["least_probability"]}
    # The 28th of 30 validation errors: ceil(31 * 0.9). Reached through the export, not the model in memory.
    validation, served = open_split(evaluated.prepared, "validation"), load_served(evaluated.serving)
    of_label = served.probabilities(validation.inputs(range(30)))[np.arange(30), validation.labels]
    assert conformal["least_probability"] == pytest.approx(np.sort(of_label)[2], abs=1e-5)
    test = open_split(evaluated.prepared, "test")
    answers = served.probabilities(test.inputs(range(30)))
    held = (answers >= conformal["least_probability"]) | (answers == answers.max(axis=1, keepdims=True))
    assert conformal["test"]["coverage"]["value"] == pytest.approx(held[np.arange(30), test.labels].mean())
    assert conformal["test"]["set_size"]["value"] == pytest.approx(held.sum(axis=1).mean())


def test_the_page_says_how_sure_the_model_may_be_and_where_it_is_worst(evaluated):
    metrics = read_json(evaluated.reports / "metrics.json")
    page = (evaluated.reports / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))
    shown = metrics["calibration"]["test"]["after"]["value"]
    assert f"as it ships {100 * shown:.1f}%" in text
    assert "Share of predictions that are right" in page
    covered = metrics["conformal"]["test"]["coverage"]["value"]
    assert f"On the test split it did for {100 * covered:.1f}%" in text
    assert "No slice has 20 test examples" in text
    assert f"Matthews correlation {metrics['test']['mcc']['value']:z.4f}" in text.replace("−", "-")
    assert (evaluated.reports / "plots" / "reliability.png").exists()


def test_a_temperature_is_part_of_the_graph_for_the_probe_as_for_a_tuned_model(tmp_path):
    answers = {}
    for shipped in ("probe", "lp_ft"):
        paths = make_project(tmp_path / shipped, "image")
        classifier = replace(load_classifier(paths.model, paths.backbones), shipped=shipped)
        kernel, bias = 40.0 * classifier.kernel, 40.0 * classifier.bias  # far too sure
        set_head(classifier.model, kernel, bias)
        save_classifier(paths.model, replace(classifier, kernel=kernel, bias=bias))
        train = open_split(paths.prepared, "validation").inputs(range(30))
        features = classifier.extractor.model.predict_on_batch(
            tf.stack([classifier.extractor.prepare(x) for x in train])
        )
        np.save(paths.features / "validation.npy", features)
        evaluate.run(SETTINGS.model_copy(update={"risk": 0.9}), "fruit", 7, paths)
        doubt, facts = read_json(paths.reports / "metrics.json")["doubt"], read_json(paths.serving / "labels.json")
        assert facts["doubt"] == {"risk": 0.9, "least_sure": doubt["least_sure"]}
        assert 0.0 < doubt["test"]["answered"]["value"] <= 1.0
        calibration = read_json(paths.reports / "metrics.json")["calibration"]
        assert calibration["method"] == "temperature"
        assert calibration["temperature"] > 5.0
        assert calibration["test"]["after"]["value"] < calibration["test"]["before"]["value"]
        answers[shipped] = load_served(paths.serving).probabilities(train)
    np.testing.assert_allclose(answers["probe"], answers["lp_ft"], atol=1e-3)


def test_the_majority_class_is_that_of_the_training_split(evaluated):
    train = open_split(evaluated.prepared, "train")
    most = train.class_names[np.bincount(train.labels).argmax()]
    assert read_json(evaluated.reports / "metrics.json")["majority"]["label"] == most


def test_the_example_beside_the_model_is_the_first_of_the_test_split(evaluated):
    test = open_split(evaluated.prepared, "test")
    example = (evaluated.serving / INPUT_EXAMPLES[test.kind]).read_bytes()
    assert (example if test.kind == "image" else example.decode()) == test.inputs([0])[0]


def test_a_second_run_writes_the_same_bytes_but_for_speeds(evaluated):
    varies = {evaluated.reports / "speed.json", evaluated.reports / "report.html", evaluated.model_card}
    first = files_below(evaluated.reports)
    evaluate.run(SETTINGS, "fruit", 7, evaluated)
    second = files_below(evaluated.reports)
    assert {file for file in first if first[file] != second[file]} <= varies
    assert set(first) == set(second)


def test_copies_across_splits_are_shown_side_by_side_as_long_as_both_are_there(evaluated):
    data = read_json(evaluated.reports / "data.json")
    page = (evaluated.reports / "report.html").read_text("utf-8").split("Copies across splits")[1]
    across, conflicts = page.split("Copies with different labels")
    assert across.count('<div class="pair">') == 2
    assert conflicts.count('<div class="pair">') == 1
    for pair in data["leakage"]["across"]["listed"][:2]:
        assert all(name in across for name in pair)
    assert "gone.png" not in page
    kind = read_json(evaluated.reports / "data.json")["kind"]
    assert across.count("<img" if kind == "image" else "<blockquote>") == 4


def test_a_model_that_does_not_survive_its_export_is_not_kept(tmp_path, monkeypatch):
    paths = make_project(tmp_path, "image")
    monkeypatch.setattr(evaluate, "PARITY_TOLERANCE", -1.0)
    with pytest.raises(TrainingError, match="differs from the trained one"):
        evaluate.run(SETTINGS, "fruit", 7, paths)
    assert not paths.serving.exists()
    assert not (paths.reports / "metrics.json").exists()
