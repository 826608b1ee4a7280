"""The stage finetune on real files: prepared data, features and a tiny backbone in, a model and reports out."""

import hashlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tasks.backbone
import tasks.choose
import tasks.embed
import tasks.finetune
from regraft.backbones.extractor import build_extractor
from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import TrainingError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.settings import BackboneSettings, EmbedSettings, FinetuneSettings
from regraft.tuning.classifier import load_classifier
from tests.backbones.tiny import make_image_preset, make_text_preset
from tests.tuning.sources import stripes

SEED = 7
SETTINGS = FinetuneSettings(epochs=2, batch_size=8, learning_rate=1.0e-3)


def examples(kind, rows, seed):
    if kind == "image":
        source = stripes(rows, side=24, seed=seed)
        contents = source.inputs(range(rows))
    else:
        words = ["loved the film", "hated the food", "lost my card today", "very good money"]
        contents = [f"{words[row % 4]} {'please ' * (row % 5)}{seed} {row}" for row in range(rows)]
    for row, content in enumerate(contents):
        digest = hashlib.sha256(content if kind == "image" else content.encode()).hexdigest()
        yield Example(digest, f"{seed}/{row}", ("no", "yes")[row % 2], content)


def make_project(root, kind):
    paths = Paths(root)
    splits = {name: list(examples(kind, rows, seed)) for seed, (name, rows) in enumerate(SIZES.items())}
    write_prepared(paths.prepared, kind, ("no", "yes"), splits)
    write_json(paths.reports / "data.json", {"median_short_side_px": 24})
    make = make_image_preset if kind == "image" else make_text_preset
    make(root / "preset")
    backbone, embed = BackboneSettings(name="preset:preset"), EmbedSettings(image_size_px=32)
    tasks.choose.run(backbone, embed, SEED, paths)
    tasks.backbone.run(backbone, SEED, paths)
    tasks.embed.run(embed, paths)
    return paths


SIZES = {"train": 44, "validation": 20, "test": 12}


@pytest.fixture(scope="module", params=["image", "text"])
def project(request, tmp_path_factory):
    return make_project(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def paths(project, tmp_path, monkeypatch):
    """A copy of the project that a test may change."""
    monkeypatch.delenv("REGRAFT_SCRATCH", raising=False)
    shutil.copytree(project.root, tmp_path / "project")
    return Paths(tmp_path / "project")


def made(paths):
    """Return all bytes that must be reproducible, by file name."""
    files = [*paths.model.iterdir(), paths.reports / "training.json"]
    return {file.name: file.read_bytes() for file in files}


def test_two_runs_write_the_same_bytes_and_one_that_was_not_recorded_is_not_trained_again(paths, monkeypatch):
    tasks.finetune.run(SETTINGS, SEED, paths)
    first = made(paths)
    assert set(first) == {"model.weights.h5", "model.json", "probe.npz", "training.json"}
    shutil.rmtree(paths.scratch)
    tasks.finetune.run(SETTINGS, SEED, paths)
    assert made(paths) == first
    shutil.rmtree(paths.model)
    monkeypatch.delattr("regraft.tuning.loop.Trainer.step")
    tasks.finetune.run(SETTINGS, SEED, paths)
    assert made(paths) == first


def test_the_reports_say_what_was_done(paths):
    tasks.finetune.run(SETTINGS, SEED, paths)
    report, times = read_json(paths.reports / "training.json"), read_json(paths.reports / "training_time.json")
    assert [epoch["epoch"] for epoch in report["history"]] == [1, 2]
    assert report["shipped"] in ("probe", "lp_ft")
    assert report["learning_rate"] == 1.0e-3
    assert report["probe"]["validation"]["accuracy"] <= 1.0
    assert times["examples"] == 2 * 40  # 44 rows fill five batches of eight
    assert times["examples_per_second"] > 0


def test_the_probe_strategy_ships_the_solved_head_on_the_untouched_backbone(paths):
    tasks.finetune.run(FinetuneSettings(strategy="probe"), SEED, paths)
    classifier = load_classifier(paths.model, paths.backbones)
    features = np.load(paths.features / "test.npy")
    inputs = open_split(paths.prepared, "test").inputs(range(SIZES["test"]))
    prepare = classifier.extractor.prepare
    images = classifier.extractor.kind == "image"
    prepared = tf.stack([prepare(content) for content in inputs]) if images else prepare(inputs)
    logits = classifier.model.predict(prepared, verbose=0)
    np.testing.assert_allclose(logits, features @ classifier.kernel + classifier.bias, atol=1e-3)
    assert (classifier.shipped, classifier.labels) == ("probe", ("no", "yes"))
    assert read_json(paths.reports / "training.json")["history"] == []


def test_a_loaded_classifier_has_the_saved_weights_and_not_those_of_the_backbone(paths):
    tasks.finetune.run(SETTINGS, SEED, paths)
    classifier = load_classifier(paths.model, paths.backbones)
    untouched = build_extractor(paths.backbones, image_size_px=32).model.get_weights()
    tuned = classifier.extractor.model.get_weights()
    same = all((now == then).all() for now, then in zip(tuned, untouched, strict=True))
    assert same == (classifier.shipped == "probe")


def test_a_run_that_was_killed_continues_to_the_same_bytes(paths, monkeypatch):
    settings = FinetuneSettings(epochs=2, batch_size=8)  # with pilots, so that they continue too
    tasks.finetune.run(settings, SEED, paths)
    whole = made(paths)
    shutil.rmtree(paths.model)

    from regraft.tuning import loop

    class Killed(BaseException):
        pass

    save = loop.Checkpoint.save

    def save_and_die(self, saved):
        save(self, saved)
        raise Killed

    monkeypatch.setenv("REGRAFT_SCRATCH", str(paths.root / "scratch"))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            tasks.finetune.run(settings, SEED, paths)
    assert {file.name for file in (paths.root / "scratch").iterdir()} == {"pilot.npz"}
    assert not paths.model.exists()
    tasks.finetune.run(settings, SEED, paths)
    assert made(paths) == whole


def test_features_of_other_data_are_refused(paths):
    np.save(paths.features / "validation.npy", np.load(paths.features / "validation.npy")[:-1])
    with pytest.raises(TrainingError, match="19 rows, the prepared validation split 20"):
        tasks.finetune.run(SETTINGS, SEED, paths)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds no model"):
        load_classifier(tmp_path, tmp_path)
