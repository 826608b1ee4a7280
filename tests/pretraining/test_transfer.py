"""Pretraining that the project's own examples judge, and end."""

import numpy as np
import pytest

from regraft.backbones.card import stored_backbone
from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import BackboneError, RegraftError
from regraft.files import read_json, write_json
from regraft.fingerprint import FOR_TRANSFER, require_current_graph
from regraft.paths import REPOSITORY, Paths
from regraft.pretraining.beginning import fetched
from regraft.pretraining.sample import sample_folder
from regraft.pretraining.transfer import PATIENCE_LOOKS, TransferLooks, last_gains
from regraft.settings import EmbedSettings, Settings
from regraft.tuning.devices import ONE_DEVICE
from regraft.tuning.loop import Checkpoint
from tasks import choose
from tests.backbones.tiny import make_image_preset
from tests.pretraining.small import BOOK, tiny_bert, write_book, write_preset
from tests.pretraining.test_backbone_modes import contents, pictures, run_backbone, texts
from tests.project import draw_images


@pytest.fixture
def project(tmp_path):
    """A project whose examples are other discs than those it is pretrained on; what they are to be is their colour."""
    paths = Paths(tmp_path)
    draw_images(tmp_path / "discs", per_class=14)
    draw_images(tmp_path / "own", per_class=8, seed=1)
    make_image_preset(tmp_path / "pictures")
    write_images(paths)
    return paths


def write_images(paths, *, first=0):
    files = sorted((paths.root / "own").rglob("*.png"))[first:]
    examples = [
        Example(f"{number:064x}", path.name, path.parent.name, path) for number, path in enumerate(files, first)
    ]
    write_prepared(paths.prepared, "image", ["blue", "green", "red"], {"train": examples})
    write_json(paths.reports / "data.json", {"kind": "image", "median_short_side_px": 48})


def write_texts(paths, task, labels, targets, **data):
    """Prepare a text for each of `targets`, which are label and values of an example."""
    examples = [
        Example(f"{number:064x}", str(number), label, text, values)
        for number, (text, (label, values)) in enumerate(zip(BOOK, targets, strict=False))
    ]
    write_prepared(paths.prepared, "text", labels, {"train": examples}, task=task)
    write_json(paths.reports / "data.json", {"kind": "text", **data})


ALTERNATING = [("ab"[number % 2], ()) for number in range(20)]


def judged(**changes):
    return pictures(stop="transfer", epochs=10, **changes)


@pytest.fixture
def of_texts(tmp_path):
    """A project whose texts say nothing of what they are to be."""
    paths = Paths(tmp_path)
    write_book(tmp_path / "book")
    write_texts(paths, "classification", ["a", "b"], ALTERNATING)
    return paths


def test_pretraining_stops_when_the_probe_gains_no_more_and_the_best_look_is_kept(of_texts):
    paths = of_texts
    run_backbone(texts(paths, stop="transfer"), 7, paths)
    facts = read_json(paths.reports / "pretraining.json")
    looks = facts["looks"]
    gains = [row["look"] for row in looks[1:] if row["target"]["gain"] > row["target"]["gain_standard_error"]]
    assert facts["steps"] == looks[-1]["step"] < facts["planned_steps"] == 52
    assert len(looks) - 1 == max(gains, default=0) + PATIENCE_LOOKS
    assert facts["stopped"].startswith("4 looks in a row gained no more than a standard error on")
    assert facts["target_examples"] == 20
    kept = fetched(f"preset:{stored_backbone(paths.backbones)}", root=paths.root, seed=7)
    again = TransferLooks(sample_folder(paths), kept, ONE_DEVICE).before["log_loss"]
    assert again == pytest.approx(looks[facts["best_look"]]["target"]["loss"], abs=1e-6)
    assert 0.0 < read_json(paths.reports / "pretraining_time.json")["looks_share"] < 1.0


@pytest.mark.slow
def test_killed_between_two_looks_and_run_again_the_bytes_are_the_same(of_texts, monkeypatch):
    paths, settings = of_texts, texts(of_texts, stop="transfer")
    run_backbone(settings, 7, paths)
    looks, whole = read_json(paths.reports / "pretraining.json")["looks"], contents(paths)
    (paths.scratch / "backbone" / "checkpoint.npz").unlink()
    monkeypatch.setenv("REGRAFT_CHECKPOINT_S", "0")
    save, saved = Checkpoint.save, []

    def save_and_die(self, what):
        save(self, what)
        saved.append(what)
        if len(saved) == 18:  # five for each look, so in the middle of what leads to the fourth
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_backbone(settings, 7, paths)
    run_backbone(settings, 7, paths)
    assert contents(paths) == whole
    assert len(saved) == 5 * (len(looks) - 1)  # nothing was trained twice


def test_a_gain_is_one_of_more_than_a_standard_error_on_the_last_that_was():
    spread = np.tile([-1.0, 1.0], 50)  # of a mean of 100 differences the standard error is a tenth of their deviation

    def look(mean, deviation=0.0):
        return {"log_loss": mean, "accuracy": 0.5, "losses": (mean + deviation * spread).tolist()}

    assert last_gains([look(1.0), look(0.95, 1.0), look(0.85, 1.0), look(0.84, 1.0), look(0.9, 1.0)]) == [0, 0, 2, 3, 3]
    assert last_gains([look(1.0), look(0.96, 0.5), look(0.92, 1.0), look(0.88, 1.0)]) == [
        0,
        0,
        0,
        3,
    ]  # little by little


def test_new_data_counts_for_the_backbone_only_if_it_judges(project):
    def sample(settings):
        choose.run(settings, EmbedSettings(), 7, project)
        return {path.name: path.read_bytes() for path in sample_folder(project).iterdir()}

    settings = pictures(), judged()
    before = [sample(one) for one in settings]
    assert len(open_split(sample_folder(project), "train")) == 24
    write_images(project, first=3)
    never, transfer = (sample(one) for one in settings)
    assert never == before[0]
    assert transfer != before[1]
    assert list(never) == ["about.json"]


@pytest.mark.parametrize(
    ("task", "labels", "targets", "data"),
    [
        ("classification", ["a", "b"], ALTERNATING, {}),
        ("classification", ["a", "b"], ALTERNATING, {"pair": ["one", "two"]}),
        ("multilabel", ["a", "b"], [("", (number % 2, number % 3 == 0)) for number in range(20)], {}),
        ("regression", ["much"], [("", (float(number),)) for number in range(20)], {}),
    ],
)
def test_classes_pairs_labels_and_values_can_judge(tmp_path, task, labels, targets, data):
    paths = Paths(tmp_path)
    write_texts(paths, task, labels, targets, **data)
    write_preset(tiny_bert(), tmp_path / "bert")
    choose.run(judged().model_copy(update={"name": "preset:bert"}), EmbedSettings(), 7, paths)
    looks = TransferLooks(sample_folder(paths), fetched("preset:bert", root=tmp_path, seed=7), ONE_DEVICE)
    assert len(looks.before["losses"]) == 20
    assert looks.take()["losses"] == looks.before["losses"]  # nothing has learned in between


def test_a_network_that_does_not_take_the_projects_data_is_refused_before_it_learns(project):
    write_texts(project, "classification", ["a", "b"], ALTERNATING)
    with pytest.raises(BackboneError, match=r"pictures on .* which are text data, and it takes image data.*never"):
        run_backbone(judged(), 7, project)


def test_a_graph_without_the_sample_is_refused_only_where_the_sample_judges(tmp_path):
    paths = Paths(tmp_path)
    graph = (REPOSITORY / "dvc.yaml").read_text("utf-8")
    kept = [line for line in graph.splitlines() if not any(name in line for name in FOR_TRANSFER)]
    assert len(graph.splitlines()) - len(kept) == 3
    paths.graph.write_text("\n".join(kept), "utf-8")
    for stage in ("choose", "backbone"):
        require_current_graph(paths, Settings(name="a", backbone=pictures()), stage)
        with pytest.raises(RegraftError, match=r"does not say that the stage reads or writes data/sample.*Copy"):
            require_current_graph(paths, Settings(name="a", backbone=judged()), stage)
