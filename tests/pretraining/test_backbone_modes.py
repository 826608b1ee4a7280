"""The backbone stage in its modes scratch and pretrain, on networks of a few thousand weights."""

import hashlib

import keras
import numpy as np
import pytest

from regraft.backbones.card import read_card, stored_backbone
from regraft.backbones.extractor import build_extractor
from regraft.backbones.presets import load_backbone
from regraft.errors import BackboneError, DataError, Diverged
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.pretraining import course
from regraft.pretraining.seen import count_seen
from regraft.settings import BackboneSettings, EmbedSettings, PretrainSettings
from regraft.tuning.loop import Checkpoint
from tasks import backbone, choose, embed
from tests.backbones.test_backbone_stages import prepare
from tests.backbones.tiny import make_image_preset
from tests.pretraining.small import BOOK, tiny_bert, tiny_gpt2, write_book, write_preset
from tests.project import draw_images


@pytest.fixture
def project(tmp_path):
    """A project's folder with a book and pictures beside it, and presets that have learned nothing of either."""
    write_book(tmp_path / "book")
    draw_images(tmp_path / "discs", per_class=14)
    make_image_preset(tmp_path / "pictures")
    return Paths(tmp_path)


def bert(paths):
    keras.utils.set_random_seed(0)
    write_preset(tiny_bert(), paths.root / "bert")
    return "preset:bert"


def texts(paths, **changes):
    values = {"source": "text:book", "batch_size": 8, "max_tokens": 16, "vocabulary_size": 400, "epochs": 2}
    return BackboneSettings(
        name=bert(paths), mode="pretrain", pretrain=PretrainSettings.model_validate(values | changes)
    )


def pictures(**changes):
    values = {"source": "folder:discs", "batch_size": 8, "image_size_px": 48, "epochs": 2}
    return BackboneSettings(
        name="preset:pictures", mode="pretrain", pretrain=PretrainSettings.model_validate(values | changes)
    )


def run_backbone(settings, seed, paths):
    choose.run(settings, EmbedSettings(), seed, paths)
    backbone.run(settings, seed, paths)


def identity(text):
    return hashlib.sha256(text.encode()).hexdigest()


def contents(paths):
    stored = {path.name: path.read_bytes() for path in paths.backbones.rglob("*") if path.is_file()}
    return {**stored, "report": (paths.reports / "pretraining.json").read_bytes()}


def test_masked_pretraining_lowers_the_held_out_loss_and_its_preset_is_used_at_once(project):
    run_backbone(texts(project, epochs=6, learning_rate=0.01), 7, project)
    facts = read_json(project.reports / "pretraining.json")
    # Words at random: what can be learned is which pieces are words, of which there are 47 and the end of a paragraph.
    assert facts["held_out_loss"]["before"] == pytest.approx(np.log(facts["vocabulary"]), rel=0.05)
    assert facts["held_out_loss"]["after"] < 4.1
    card = read_card(stored_backbone(project.backbones))
    assert card.is_pretrained
    assert card.input_tokens == 16  # positions beyond it have learned nothing
    assert card.pretraining is not None
    assert card.pretraining["held_out_loss"] == facts["held_out_loss"]
    assert card.source_dataset == f"text {facts['source_digest'][:12]}"
    assert str(project.root) not in str(card)
    extractor = build_extractor(project.backbones)
    assert extractor.model(extractor.prepare(["my card is lost"]), training=False).shape == (1, 32)


def test_tables_of_embeddings_learn(project):
    run_backbone(texts(project, start="weights", learning_rate=0.01), 7, project)
    before, after = (load_backbone(folder) for folder in (project.root / "bert", stored_backbone(project.backbones)))
    moved = np.abs(before.token_embedding.embeddings.numpy() - after.token_embedding.embeddings.numpy()).max()
    assert moved > 0.01
    assert read_card(stored_backbone(project.backbones)).source_dataset.startswith("unknown, then text ")


def test_supervised_pretraining_tells_colours_apart_and_statistics_learn(project):
    run_backbone(pictures(epochs=24, learning_rate=0.01), 7, project)
    facts = read_json(project.reports / "pretraining.json")
    assert facts["sizes"] == [32, 48]
    assert facts["classes"] == 3
    assert facts["held_out_loss"]["before"] == pytest.approx(np.log(3), abs=1e-5)  # a head of zeros
    assert facts["held_out_loss"]["after"] < 0.9
    network = load_backbone(stored_backbone(project.backbones))
    normalisations = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert all(np.abs(layer.moving_variance.numpy() - 1.0).max() > 0.01 for layer in normalisations)


def test_pretrained_weights_serve_another_project_with_all_that_is_known_of_them(project, tmp_path):
    run_backbone(pictures(method="rotation"), 7, project)
    other = Paths(tmp_path / "other")
    run_backbone(BackboneSettings(name=f"preset:{stored_backbone(project.backbones)}"), 8, other)
    one, two = (read_card(stored_backbone(paths.backbones)) for paths in (project, other))
    assert one == two
    assert two.pretraining is not None
    assert two.pretraining["method"] == "rotation"
    assert read_json(other.reports / "pretraining.json") == {"mode": "fetch"}


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_killed_at_a_checkpoint_and_run_again_the_bytes_are_the_same(project, monkeypatch, kind):
    monkeypatch.setenv("REGRAFT_CHECKPOINT_S", "0")
    settings = texts(project) if kind == "texts" else pictures()
    save, saved = Checkpoint.save, []

    def save_and_die(self, what):
        save(self, what)
        saved.append(what)
        if len(saved) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_backbone(settings, 7, project)
    assert not project.backbones.exists()
    run_backbone(settings, 7, project)
    continued, after_it = contents(project), len(saved)
    (project.scratch / "backbone" / "checkpoint.npz").unlink()
    saved.clear()
    saved += [None] * 6  # so that nothing dies
    run_backbone(settings, 7, project)
    assert len(saved) - 6 == after_it  # one save a step: nothing was trained twice
    assert contents(project) == continued


def test_causal_pretraining_learns_what_comes_next(project):
    write_preset(tiny_gpt2(), project.root / "gpt2")
    (project.root / "book" / "book.txt").write_text(
        "\n\n".join(
            ["the bank sent cash today please help me"] * 3
            + [f"{word} the bank sent cash today please help me" for word in "abcdefghijklmnopqrstuvwxyz" * 4]
            + [f"the bank sent cash {number} times" for number in range(200)]
        ),
        "utf-8",
    )
    settings = texts(project, epochs=6, learning_rate=0.01)
    run_backbone(settings.model_copy(update={"name": "preset:gpt2"}), 7, project)
    facts = read_json(project.reports / "pretraining.json")
    assert facts["method"] == "causal"
    assert facts["held_out_measure"]["before"] < 0.1
    assert facts["held_out_measure"]["after"] > 0.6


def test_a_budget_shortens_the_schedule_and_an_interrupted_run_keeps_to_it(project, monkeypatch):
    monkeypatch.setattr(course, "_seconds_of_a_step", lambda *_: 0.5)
    run_backbone(texts(project, budget_s=5.0, epochs=30), 7, project)
    facts = read_json(project.reports / "pretraining.json")
    assert facts["steps"] == 10
    assert read_json(project.scratch / "backbone" / "plan.json")["steps"] == 10


def test_a_rate_that_is_too_high_is_said_with_the_step_and_what_to_do(project):
    settings = texts(project)
    wild = settings.pretrain.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(Diverged, match=r"in epoch 1.*Set a lower backbone\.pretrain\.learning_rate") as caught:
        run_backbone(settings.model_copy(update={"pretrain": wild}), 7, project)
    assert "finetune" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"method": "rotation"}, BackboneError, "rotation does not fit bert, which takes text data; what fits: masked"),
        ({"method": "causal"}, BackboneError, "causal does not fit bert"),
        ({"max_tokens": 64}, BackboneError, "max_tokens is 64, and bert takes at most 32"),
        ({"source": "folder:discs"}, DataError, "is no source of plain text"),
    ],
)
def test_what_does_not_fit_a_network_for_texts_is_refused(project, changes, error, said):
    with pytest.raises(error, match=said):
        run_backbone(texts(project, **changes), 7, project)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "folder:one"}, "has one class alone .red."),
        ({"source": "text:book"}, "holds no images"),
    ],
)
def test_what_does_not_fit_a_network_for_pictures_is_refused(project, changes, said):
    (project.root / "one").mkdir()
    (project.root / "discs" / "red").rename(project.root / "one" / "red")
    with pytest.raises(DataError, match=said):
        run_backbone(pictures(**changes), 7, project)


def test_too_little_text_is_refused(project):
    (project.root / "book" / "book.txt").write_text("my card is lost", "utf-8")
    with pytest.raises(DataError, match=r"tokens to learn from and \d+ to judge by"):
        run_backbone(texts(project), 7, project)


def test_there_are_no_weights_to_go_on_from_in_a_network_that_has_none(project):
    settings = pictures(start="weights").model_copy(update={"name": "cnn_small"})
    write_json(project.reports / "data.json", {"kind": "image"})
    with pytest.raises(BackboneError, match="cnn_small has learnt nothing yet"):
        run_backbone(settings, 7, project)


def test_test_examples_that_the_backbone_was_pretrained_on_are_counted(project, caplog):
    run_backbone(texts(project), 7, project)
    other = Paths(project.root / "other")
    run_backbone(BackboneSettings(name=f"preset:{stored_backbone(project.backbones)}"), 8, other)
    met = [text for text in BOOK if count_seen(stored_backbone(project.backbones), [identity(text)])]
    assert len(met) == read_json(project.reports / "pretraining.json")["paragraphs"] > 130  # the others judge
    texts_of = {"train": ["good food", "bad film"], "validation": ["great film"], "test": [met[0], "help", met[1]]}
    prepare(other, texts_of)
    embed.run(EmbedSettings(), other)
    assert read_json(other.reports / "embed.json")["test_examples_seen_in_pretraining"] == 2
    assert "2 of 3 test examples are among those that the backbone was pretrained on" in caplog.text


def test_scratch_draws_weights_from_the_seed_and_keeps_the_tokenizer(project):
    def drawn(seed):
        run_backbone(BackboneSettings(name=bert(project), mode="scratch"), seed, project)
        return read_card(stored_backbone(project.backbones))

    one, again, other = drawn(1), drawn(1), drawn(2)
    assert one == again
    assert one.weights_sha256 != other.weights_sha256
    assert not one.is_pretrained
    extractor = build_extractor(project.backbones)
    assert extractor.prepare(["my card"])["token_ids"].shape == (1, 4)
