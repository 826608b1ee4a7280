"""The stage finetune for real values and for several labels at once, on real files and a tiny backbone."""

import hashlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tasks.backbone
import tasks.choose
import tasks.embed
import tasks.finetune
from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import TrainingError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.settings import BackboneSettings, EmbedSettings, FinetuneSettings
from regraft.tuning import loop
from regraft.tuning.classifier import load_classifier
from tests.backbones.tiny import make_image_preset, make_text_preset
from tests.tuning.sources import stripes

SEED = 7
SIZES = {"train": 44, "validation": 20, "test": 12}


def examples(kind, task, rows, seed):
    source = stripes(rows, side=24, seed=seed)
    for row, content in enumerate(source.inputs(range(rows))):
        given = content if kind == "image" else f"{('good', 'awful')[row % 2]} film {'please ' * (row % 5)}{seed} {row}"
        digest = hashlib.sha256(given if isinstance(given, bytes) else given.encode()).hexdigest()
        values = (
            (4000.0 + 30.0 * (row % 2) + row % 5, 0.001 * (row % 7))
            if task == "regression"
            else (float(row % 2), float(row % 3 == 0), float(row % 5 > 1))
        )
        yield Example(digest, f"{seed}/{row}", str(values), given, values)


@pytest.fixture(scope="module", params=[("image", "regression"), ("text", "multilabel"), ("text", "regression")])
def project(request, tmp_path_factory):
    kind, task = request.param
    paths = Paths(tmp_path_factory.mktemp(f"{kind}-{task}"))
    names = ("weight", "length") if task == "regression" else ("odd", "third", "late")
    splits = {name: list(examples(kind, task, rows, seed)) for seed, (name, rows) in enumerate(SIZES.items())}
    write_prepared(paths.prepared, kind, names, splits, task=task)
    write_json(paths.reports / "data.json", {"median_short_side_px": 24})
    (make_image_preset if kind == "image" else make_text_preset)(paths.root / "preset")
    backbone, embed = BackboneSettings(name="preset:preset"), EmbedSettings(image_size_px=32)
    tasks.choose.run(backbone, embed, SEED, paths)
    tasks.backbone.run(backbone, SEED, paths)
    tasks.embed.run(embed, paths)
    return paths


@pytest.fixture
def paths(project, tmp_path, monkeypatch):
    """A copy of the project that a test may change."""
    monkeypatch.delenv("REGRAFT_SCRATCH", raising=False)
    shutil.copytree(project.root, tmp_path / "project")
    return Paths(tmp_path / "project")


def made(paths):
    files = [*paths.model.iterdir(), paths.reports / "training.json"]
    return {file.name: file.read_bytes() for file in files}


def test_a_run_that_was_killed_continues_to_the_same_bytes(paths, monkeypatch):
    settings = FinetuneSettings(epochs=2, batch_size=8)  # with pilots, so that they continue too
    tasks.finetune.run(settings, SEED, paths)
    whole = made(paths)
    shutil.rmtree(paths.model)

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
    assert not paths.model.exists()
    tasks.finetune.run(settings, SEED, paths)
    assert made(paths) == whole

    report = read_json(paths.reports / "training.json")
    names = {"regression": ("squared_error", "r2"), "multilabel": ("log_loss", "micro_f1")}[
        load_classifier(paths.model, paths.backbones).task
    ]
    assert set(report["probe"]["validation"]) == set(names)
    assert all(f"validation_{name}" in epoch for epoch in report["history"] for name in names)


def test_the_probe_answers_in_the_unit_of_the_target_and_so_does_the_model_that_ships_it(paths):
    tasks.finetune.run(FinetuneSettings(strategy="probe"), SEED, paths)
    classifier, test = load_classifier(paths.model, paths.backbones), open_split(paths.prepared, "test")
    prepare = classifier.extractor.prepare
    inputs = test.inputs(range(SIZES["test"]))
    prepared = tf.stack([prepare(content) for content in inputs]) if test.kind == "image" else prepare(inputs)
    outputs = classifier.model.predict(prepared, verbose=0)
    theirs = np.load(paths.features / "test.npy") @ classifier.kernel + classifier.bias
    spread = open_split(paths.prepared, "train").labels.std(axis=0)
    assert (np.abs(outputs - theirs) <= 1e-2 * spread + 1e-3 * np.abs(theirs)).all()
    assert (classifier.task, classifier.labels) == (test.task, test.class_names)
    if classifier.task == "regression":
        assert (np.abs(outputs.mean(axis=0) - test.labels.mean(axis=0)) < 2 * spread).all()


def test_options_for_classes_train_labels_and_are_refused_for_real_values(paths):
    task = open_split(paths.prepared, "train").task
    common = {"strategy": "lp_ft", "epochs": 1, "batch_size": 8, "learning_rate": 1.0e-3}
    for option in ({"label_smoothing": 0.1}, {"class_weights": "balanced"}):
        chosen = FinetuneSettings.model_validate(common | option)
        if task == "regression":
            with pytest.raises(TrainingError, match=f"finetune.{next(iter(option))} is for classes and labels"):
                tasks.finetune.run(chosen, SEED, paths)
        else:
            tasks.finetune.run(chosen, SEED, paths)
            assert np.isfinite(load_classifier(paths.model, paths.backbones).bias).all()
