"""Every strategy through the stage, on real files and tiny backbones: it learns, continues, loads, or refuses."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

import tasks.finetune
from regraft.backbones.extractor import build_extractor
from regraft.data.records import open_split
from regraft.errors import TrainingError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import FinetuneSettings
from regraft.tuning import loop, runs
from regraft.tuning.classifier import load_classifier
from regraft.tuning.recipes import WAYS
from regraft.tuning.verdict import Verdict, compare
from tests.tuning.test_finetune_stage import SEED, SIZES, made, make_project


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    return {kind: make_project(tmp_path_factory.mktemp(kind), kind) for kind in ("image", "text")}


@pytest.fixture
def paths_of(projects, tmp_path, monkeypatch):
    """Return a copy of the project of a kind that a test may change."""
    monkeypatch.delenv("REGRAFT_SCRATCH", raising=False)

    def copy(kind):
        shutil.copytree(projects[kind].root, tmp_path / "project")
        return Paths(tmp_path / "project")

    return copy


def settings(strategy, **changes):
    return FinetuneSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-3, "strategy": strategy, **changes})


def always_ship(monkeypatch):
    """Let the fine-tuned model ship whatever it is worth: here it is asked whether what ships is what was trained."""

    def prefer(*arguments, **options):
        verdict = compare(*arguments, **options)
        return type(verdict)(**{**verdict.__dict__, "prefers_tuned": True})

    monkeypatch.setattr(runs, "compare", prefer)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("image", "full"),
        ("image", "gradual"),
        ("text", "full"),
        ("text", "gradual"),
        ("text", "lora"),
        ("text", "contrastive"),
    ],
)
def test_what_was_trained_is_what_is_stored_and_loaded(paths_of, monkeypatch, kind, strategy):
    always_ship(monkeypatch)
    paths, trained = paths_of(kind), {}
    train = loop.train

    def train_and_look(trainer, *arguments, **options):
        history = train(trainer, *arguments, **options)
        batch = next(iter(inputs(paths, kind)))
        trained["outputs"] = trainer.model(batch, training=False).numpy()
        return history

    monkeypatch.setattr(runs, "train", train_and_look)
    tasks.finetune.run(settings(strategy), SEED, paths)
    classifier = load_classifier(paths.model, paths.backbones)
    assert classifier.shipped == strategy
    model = classifier.extractor.model if strategy == "contrastive" else classifier.model
    outputs = model(next(iter(inputs(paths, kind))), training=False).numpy()
    np.testing.assert_allclose(outputs, trained["outputs"], atol=1e-5)
    untouched = build_extractor(paths.backbones, image_size_px=32).model.get_weights()
    assert any(
        (now != then).any() for now, then in zip(classifier.extractor.model.get_weights(), untouched, strict=True)
    )


def inputs(paths, kind):
    prepare = build_extractor(paths.backbones, image_size_px=32).prepare
    contents = open_split(paths.prepared, "test").inputs(range(SIZES["test"]))
    yield tf.stack([prepare(content) for content in contents]) if kind == "image" else prepare(tf.constant(contents))


def test_lora_trains_few_weights_and_leaves_all_but_queries_and_values_as_they_were(paths_of, monkeypatch):
    always_ship(monkeypatch)
    paths = paths_of("text")
    tasks.finetune.run(settings("lora"), SEED, paths)
    changed = load_classifier(paths.model, paths.backbones).extractor.model
    untouched = build_extractor(paths.backbones).model
    moved = {
        now.path.split("/")[-2]
        for now, then in zip(changed.weights, untouched.weights, strict=True)
        if "kernel" in now.path and (now.numpy() != then.numpy()).any()
    }
    assert moved == {"query", "value"}
    few = read_json(paths.reports / "training.json")["trained_weights"]
    assert few < 0.2 * sum(int(np.prod(weight.shape)) for weight in untouched.weights)


def test_lora_is_refused_for_a_backbone_without_attention(paths_of):
    with pytest.raises(TrainingError, match=r"lora needs a backbone with attention .* has none\. Use auto"):
        tasks.finetune.run(settings("lora"), SEED, paths_of("image"))


def test_contrastive_learning_is_refused_for_images(paths_of):
    with pytest.raises(TrainingError, match=r"contrastive is for texts with one class each; this is image with class"):
        tasks.finetune.run(settings("contrastive"), SEED, paths_of("image"))


@pytest.mark.parametrize(
    ("kind", "rivals"),
    [
        pytest.param("image", ["lp_ft", "full", "gradual"], marks=pytest.mark.slow),
        ("text", ["lp_ft", "full", "gradual", "contrastive"]),
    ],
)
def test_auto_tries_what_fits_says_what_it_took_and_continues_to_the_same_bytes(paths_of, monkeypatch, kind, rivals):
    paths = paths_of(kind)
    chosen = settings("auto", learning_rate="auto")
    tasks.finetune.run(chosen, SEED, paths)
    whole = {**made(paths), "selection": (paths.reports / "selection.json").read_bytes()}
    selection = read_json(paths.reports / "selection.json")
    assert [row["strategy"] for row in selection["tried"]] == rivals
    finalists = [row for row in selection["tried"] if row["rehearsal_log_loss"] is not None]
    assert {row["strategy"] for row in finalists} == {
        row["strategy"] for row in sorted(selection["tried"], key=lambda row: row["log_loss"])[:2]
    }
    best = min(finalists, key=lambda row: row["rehearsal_log_loss"])["strategy"]
    surely = selection["comparison"]["difference_high"] < 0.0
    assert selection["shipped"] == (best if surely else "probe")
    assert f"{best} was best" in selection["why"]
    assert selection["comparison"]["cross_validation_folds"] == 3
    assert selection["comparison"]["examples"] == SIZES["train"] * 3 // 4 + SIZES["validation"]

    shutil.rmtree(paths.model)
    shutil.rmtree(paths.scratch)
    attempts = 0
    for number in (3, 12, 40):  # killed after so many checkpoints of an attempt
        attempts += killed_after(number, chosen, paths, monkeypatch)
    assert attempts == 3
    tasks.finetune.run(chosen, SEED, paths)
    assert {**made(paths), "selection": (paths.reports / "selection.json").read_bytes()} == whole


def killed_after(checkpoints, chosen, paths, monkeypatch):
    """Return whether an attempt came so far that it was killed; it saves its state at every step."""

    class Killed(BaseException):
        pass

    save, saved = loop.Checkpoint.save, []

    def save_and_die(self, state):
        save(self, state)
        saved.append(self)
        if len(saved) == checkpoints:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoint, "save", save_and_die)
        patch.setattr(loop.Checkpoint, "is_due", lambda self: True)
        try:
            tasks.finetune.run(chosen, SEED, paths)
        except Killed:
            return True
    return False


def test_folds_are_asked_only_until_there_is_no_doubt_and_leave_no_trace_in_the_model(paths_of, monkeypatch):
    always_ship(monkeypatch)
    monkeypatch.setattr(tasks.finetune, "competitors", lambda *_, **__: (WAYS["lp_ft"], WAYS["contrastive"]))
    paths = paths_of("text")
    weights = []
    for certain, folds in ((False, 3), (True, 1)):
        monkeypatch.setattr(Verdict, "is_certain", certain)
        tasks.finetune.run(settings("auto"), SEED, paths)
        assert read_json(paths.reports / "selection.json")["comparison"]["cross_validation_folds"] == folds
        weights.append(load_classifier(paths.model, paths.backbones).model.get_weights())
        shutil.rmtree(paths.model)
        shutil.rmtree(paths.scratch)
    for with_four, with_one in zip(*weights, strict=True):
        np.testing.assert_array_equal(with_four, with_one)
