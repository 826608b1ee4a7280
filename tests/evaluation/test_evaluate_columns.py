"""The stage evaluate for real values and for several labels at once: files, page and figures agree with each other."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from regraft.data.records import Example, open_split, write_prepared
from regraft.data.slice_columns import write_slices
from regraft.errors import TrainingError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.registry.serving import load_served
from regraft.settings import EvaluateSettings
from regraft.tuning.classifier import Classifier, save_classifier
from tasks import evaluate
from tasks.preprocess import describe_values
from tests.evaluation.small_models import data_card, picture, random_classifier

SETTINGS = EvaluateSettings(bootstrap_samples=100)
WORDS = ["good", "bad", "day", "very", "a"]


def make_project(root: Path, kind: str, task: str) -> Paths:
    """A project as the earlier stages leave it: 30 examples a split, a random model on an untrained backbone."""
    paths = Paths(root)
    names = ("shade", "size") if task == "regression" else ("dark", "light", "odd")
    random = np.random.default_rng(11)
    splits: dict[str, list[Example]] = {}
    for split in ("train", "validation", "test"):
        splits[split] = []
        for number in range(30):
            shade = int(random.integers(0, 256))
            content: bytes | str = " ".join(random.choice(WORDS, size=random.integers(1, 12)))
            if kind == "image":
                content = picture(shade)
            raw = content.encode() if isinstance(content, str) else content
            values: tuple[float, ...] = (float(shade), shade / 1000.0)
            if task == "multilabel":
                values = (float(shade < 100), float(shade > 200), float(shade % 2))
            digest = hashlib.sha256(raw).hexdigest()
            splits[split].append(Example(digest, f"{split}/{number}", str(values), content, values))
    write_prepared(paths.prepared, kind, names, splits, task=task)
    write_slices(paths.slices, [], splits["test"])
    made = random_classifier(kind, paths.backbones, names)  # type: ignore[arg-type]
    classifier = Classifier(made.extractor, made.model, names, made.kernel, made.bias, "lp_ft", task)
    paths.model.mkdir(parents=True)
    save_classifier(paths.model, classifier)
    prepare = tf.function(classifier.extractor.prepare, autograph=False)
    paths.features.mkdir()
    inputs = open_split(paths.prepared, "test").inputs(range(30))
    batch = tf.stack([prepare(tf.constant(one)) for one in inputs]) if kind == "image" else prepare(tf.constant(inputs))
    np.save(paths.features / "test.npy", classifier.extractor.model.predict_on_batch(batch))
    write_json(paths.features / "features.json", {"image_size_px": 32 if kind == "image" else None, "max_tokens": 16})
    described = (
        {
            "targets": {
                name: {split: describe_values([e.values[k] for e in held]) for split, held in splits.items()}
                for k, name in enumerate(names)
            }
        }
        if task == "regression"
        else {"counts": {split: dict.fromkeys(names, 9) for split in splits}}
    )
    write_json(
        paths.reports / "data.json",
        {
            "kind": kind,
            "task": task,
            "labels": list(names),
            **described,
            "examples": dict.fromkeys(splits, 30),
            "splits_made": [],
            "rejects": [],
            "duplicates": {"extra_copies": 0, "across_splits": 0, "conflicting_labels": 0},
            "median_short_side_px": 20,
            "text_length_characters": {"p50": 20, "p90": 30, "p99": 40, "max": 50},
            **data_card(paths),
        },
    )
    write_json(paths.reports / "download.json", {"source": "folder", "files": 90, "licence": None})
    loss, measure = {"regression": ("squared_error", "r2"), "multilabel": ("log_loss", "micro_f1")}[task]
    epoch = {"train_loss": 0.5, f"validation_{loss}": 0.4, f"validation_{measure}": 0.6}
    training = {
        "probe": {"validation": {loss: 0.5, measure: 0.5}},
        "shipped": "lp_ft",
        "why": "Tests.",
        "history": [{"epoch": 1, **epoch}],
        "best_epoch": 1,
        "tried": [],
        "learning_rate": 1e-4,
        "learning_rate_chosen_by": "settings",
        "augmentation": {"used": False, "flip": False},
    }
    write_json(paths.reports / "training.json", training)
    write_json(paths.choice, {"name": "tiny", "image_size_px": None, "by": "settings"})
    write_json(paths.reports / "training_time.json", {"examples_per_second": 9.0, "finetune_seconds": 1.0})
    return paths


@pytest.fixture(scope="module", params=[("image", "regression"), ("text", "multilabel")])
def evaluated(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "SPEED_BUDGET_S", 0.1)
        patch.setattr(evaluate, "EXPLAINED_EXAMPLES", 2)
        paths = make_project(tmp_path_factory.mktemp(request.param[1]), *request.param)
        evaluate.run(SETTINGS, "fruit", 7, paths)
        yield paths


def read_rows(paths):
    with (paths.reports / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_of_predictions_is_what_the_export_answers_for_that_example(evaluated):
    test, served, rows = open_split(evaluated.prepared, "test"), load_served(evaluated.serving), read_rows(evaluated)
    assert [row["id"] for row in rows] == test.ids
    for number in (0, 7, 29):
        answer = served.answers(test.inputs([number]))[0]
        for place, name in enumerate(test.class_names):
            assert np.float32(rows[number][f"true {name}"]) == test.labels[number, place]
            if test.task == "regression":
                assert float(rows[number][f"predicted {name}"]) == pytest.approx(answer[place], rel=1e-4, abs=1e-4)
            else:
                assert rows[number][f"predicted {name}"] == str(int(answer[place] >= 0.5))
                assert float(rows[number][f"probability {name}"]) == pytest.approx(answer[place], abs=1e-4)


def test_the_export_names_its_answers_by_the_task(evaluated):
    served = load_served(evaluated.serving)
    raw = tf.constant(open_split(evaluated.prepared, "test").inputs([0, 1]), tf.string)
    answers = served.loaded.serve(raw)
    if served.task == "regression":
        assert {name: tuple(value.shape) for name, value in answers.items()} == {"values": (2, 2), "unusual": (2,)}
    else:
        shapes = {name: tuple(value.shape) for name, value in answers.items()}
        assert shapes == {"probabilities": (2, 3), "unusual": (2,)}
        assert (answers["probabilities"].numpy() >= 0).all()
        assert (answers["probabilities"].numpy() <= 1).all()


def test_metrics_are_those_of_the_predictions_beside_the_probe_and_a_constant(evaluated):
    metrics, rows = read_json(evaluated.reports / "metrics.json"), read_rows(evaluated)
    truth, given = (
        np.array([[float(row[f"{part} {name}"]) for name in metrics["labels"]] for row in rows])
        for part in ("true", "predicted")
    )
    train = open_split(evaluated.prepared, "train")
    if metrics["task"] == "regression":
        assert metrics["test"]["mae"]["value"] == pytest.approx(np.abs(truth - given).mean(), rel=1e-6)
        assert metrics["baseline"]["values"] == pytest.approx(train.labels.mean(axis=0), rel=1e-5)
    else:
        assert metrics["test"]["subset_accuracy"]["value"] == pytest.approx((truth == given).all(axis=1).mean())
        assert metrics["baseline"]["values"] in train.labels.tolist()
    # This model is its own probe, so that two ways of computing the same answers meet: the export and the features.
    leading = {"regression": "pearson", "multilabel": "micro_f1"}[metrics["task"]]
    assert metrics["probe"]["test"][leading]["value"] == pytest.approx(metrics["test"][leading]["value"], abs=1e-3)
    assert set(metrics["test"]["by_column"]) == set(metrics["labels"])


def test_intervals_of_values_and_sets_of_labels_reach_as_far_as_validation_says(evaluated):
    metrics, facts = (
        read_json(file) for file in (evaluated.reports / "metrics.json", evaluated.serving / "labels.json")
    )
    conformal = metrics["conformal"]
    validation, served = open_split(evaluated.prepared, "validation"), load_served(evaluated.serving)
    answers = served.answers(validation.inputs(range(30)))
    if metrics["task"] == "regression":
        assert metrics["calibration"]["method"] == "none"
        assert "test" not in metrics["calibration"]
        errors = np.sort(np.abs(answers - validation.labels), axis=0)
        assert facts["conformal"]["half_widths"] == pytest.approx(errors[27], rel=1e-3)  # ceil(31 * 0.9) = 28
        assert len(conformal["test"]["by_column"]) == 2
    else:
        least = np.sort(np.where(np.asarray(validation.labels, np.float64) > 0.5, answers, 1.0).min(axis=1))[2]
        assert facts["conformal"]["least_probability"] == pytest.approx(least, abs=1e-5)
        assert metrics["calibration"]["test"]["after"]["value"] >= 0.0
    assert 0.0 <= conformal["test"]["coverage"]["low"] <= conformal["test"]["coverage"]["high"] <= 1.0


def test_the_page_says_the_numbers_of_the_task_and_refers_to_nothing_outside(evaluated):
    page = (evaluated.reports / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))
    for reference in re.findall(r"""(?:src|href|srcset)\s*=\s*["']([^"']*)""", page):
        assert reference.startswith("data:image/")
    plots = {file.stem for file in (evaluated.reports / "plots").iterdir()}
    if json.loads((evaluated.reports / "metrics.json").read_text())["task"] == "regression":
        for claim in ("R2 on 30 test examples", "RMSE", "shade, size of images", "always the mean of training"):
            assert claim in text
        assert "Confusion" not in text
        assert "Intervals that keep a promise" in text
        assert "expected calibration error" not in text
        assert {"scatter", "residuals", "curves"} <= plots
    else:
        assert "micro F1 on 30 test examples" in text
        assert "Labels, weakest first" in text
        assert {"f1", "curves"} <= plots


def test_a_second_run_writes_the_same_bytes_but_for_speeds(evaluated):
    varies = {evaluated.reports / "speed.json", evaluated.reports / "report.html", evaluated.model_card}
    first = {file: file.read_bytes() for file in evaluated.reports.rglob("*") if file.is_file()}
    evaluate.run(SETTINGS, "fruit", 7, evaluated)
    assert {file for file in first if file.read_bytes() != first[file]} <= varies


def test_real_values_cannot_be_doubted(tmp_path):
    paths = make_project(tmp_path, "text", "regression")
    with pytest.raises(TrainingError, match=r"evaluate\.risk is 0\.05, and this model answers real values"):
        evaluate.run(SETTINGS.model_copy(update={"risk": 0.05}), "fruit", 7, paths)


def test_a_difference_between_export_and_model_counts_in_units_of_the_target(tmp_path, monkeypatch):
    paths = make_project(tmp_path, "text", "regression")
    monkeypatch.setattr(evaluate, "PARITY_TOLERANCE", 1.0)
    # The second target deviates by less than 0.1.
    monkeypatch.setattr(evaluate, "largest_difference", lambda *_, units, **__: float((0.5 / units).max()))
    with pytest.raises(TrainingError, match="differs from the trained one"):
        evaluate.run(SETTINGS, "fruit", 7, paths)
