"""Backbones of a user's own: verified, kept once for all projects, found by name, and looked after."""

import json
import shutil
import subprocess
import sys

import h5py
import keras
import keras_hub
import numpy as np
import pytest

from regraft.backbones import catalogue, listing, weights
from regraft.backbones.add import add
from regraft.backbones.architectures import build
from regraft.backbones.card import read_card
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError
from regraft.fingerprint import refresh_inputs
from regraft.paths import Paths
from regraft.settings import load_settings
from tests.backbones.family import smaller
from tests.backbones.tiny import make_image_preset, make_text_preset
from tests.project import make_project


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights" / "presets"


def added(name, folder, **options):
    """Add a preset and return its card."""
    card = add(name, folder, **options).card
    assert card is not None
    return card


def test_an_added_preset_is_fetched_by_its_name_and_a_second_time_changes_nothing(cache, tmp_path):
    make_text_preset(tmp_path / "words")
    first = added("mine", tmp_path / "words")
    shutil.rmtree(tmp_path / "words")
    card = fetch("mine", tmp_path / "backbones", root=tmp_path)
    assert (card, card.name, card.kind) == (first, "mine", "text")
    assert not list((tmp_path / "backbones").rglob("content.json"))
    make_text_preset(tmp_path / "elsewhere" / "words")
    assert add("mine", tmp_path / "elsewhere" / "words").said == "mine was added before, with the same content"
    assert catalogue.at_hand("text") == ["rnn_small", "mine"]
    # What was fetched, card and all, can be added on another machine.
    assert added("yours", tmp_path / "backbones" / "mine").weights_sha256 == card.weights_sha256


def test_other_content_takes_the_place_of_the_old_only_if_asked_to(cache, tmp_path):
    make_image_preset(tmp_path / "one" / "p", seed=1)
    make_image_preset(tmp_path / "two" / "p", seed=2)
    first = added("mine", tmp_path / "one" / "p")
    with pytest.raises(BackboneError, match=r"added before, with other content .* --replace"):
        add("mine", tmp_path / "two" / "p")
    assert read_card(cache / "mine") == first
    assert added("mine", tmp_path / "two" / "p", replace=True).weights_sha256 != first.weights_sha256


def spoil_weights(folder):
    path = folder / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:5000])


def spoil_card(folder):
    added("whole", folder)
    shutil.copytree(weights.place_of("whole"), folder, dirs_exist_ok=True)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        file[names[0]][0] += 1.0


def spoil_vocabulary(folder):
    (folder / "assets" / "tokenizer" / "vocabulary.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")


def remove(*names):
    def spoil(folder):
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove("config.json"), r"has no config\.json, so it is not a KerasHub preset"),
        (remove("model.weights.h5"), r"has no model\.weights\.h5: the weights are missing"),
        (remove("tokenizer.json"), r"has no tokenizer\.json, and texts need one"),
        (remove("assets"), "the tokenizer in .* cannot be loaded"),
        (spoil_weights, "cannot be loaded as a KerasHub preset"),
        (spoil_card, "are not what its card says .* the copy is not whole"),
        (spoil_vocabulary, "tokenizer and weights in .* do not belong together: the tokenizer has 6 tokens"),
    ],
)
def test_a_copy_that_is_not_whole_is_refused_in_a_sentence_and_nothing_is_kept(cache, tmp_path, spoil, says):
    folder = make_text_preset(tmp_path / "words")
    spoil(folder)
    with pytest.raises(BackboneError, match=says):
        add("mine", folder)
    assert not (cache / "mine").exists()
    assert not list(cache.glob(".*"))


def test_what_is_not_what_its_name_says_is_refused(cache, tmp_path):
    pictures, texts = make_image_preset(tmp_path / "pictures"), make_text_preset(tmp_path / "words")
    with pytest.raises(BackboneError, match="is not bert_tiny_en_uncased: it holds a EfficientNetBackbone for image"):
        add("bert_tiny_en_uncased", pictures)
    with pytest.raises(BackboneError, match=r"bert_tiny_en_uncased: it holds a BertBackbone for text with \d"):
        add("bert_tiny_en_uncased", texts)
    with pytest.raises(BackboneError, match="cnn_small begins from nothing; give trained weights a name"):
        add("cnn_small", pictures)
    with pytest.raises(BackboneError, match=r"has no model\.safetensors\. all_minilm_l6_v2 is made of"):
        add("all_minilm_l6_v2", texts)
    with pytest.raises(BackboneError, match="no backbone 'mine'"):
        add("mine", None)
    with pytest.raises(BackboneError, match="`auto` is no backbone"):
        add("auto", pictures)
    for name in ("../mine", "preset:mine", ""):
        with pytest.raises(BackboneError, match="cannot be the name of a backbone"):
            add(name, pictures)
    assert not cache.exists()


def test_a_backbone_for_neither_pictures_nor_texts_is_refused(cache, tmp_path):
    whisper = keras_hub.models.WhisperBackbone(
        vocabulary_size=10, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_encoder_sequence_length=8,
        max_decoder_sequence_length=8,
    )  # fmt: skip
    whisper.save_to_preset(str(tmp_path / "whisper"))
    with pytest.raises(BackboneError, match=r"WhisperBackbone in .* takes decoder_padding_mask"):
        add("mine", tmp_path / "whisper")


@pytest.mark.parametrize(
    ("file", "part"),
    [("model.weights.h5", b"o"), ("assets/tokenizer/vocabulary.txt", b"bank"), ("regraft.json", b"unknown")],
)
def test_an_added_preset_that_was_changed_since_is_not_used(cache, tmp_path, file, part):
    add("mine", make_text_preset(tmp_path / "words"))
    changed = cache / "mine" / file
    changed.write_bytes(changed.read_bytes().replace(part, part.upper()))
    with pytest.raises(BackboneError, match=rf"is not what it was when it was added: {file} changed"):
        fetch("mine", tmp_path / "backbones", root=tmp_path)
    assert not (tmp_path / "backbones").exists()


def test_auto_sees_what_was_added_for_its_kind_of_data_within_its_budget(cache, tmp_path):
    before = catalogue.eligible("text")
    add("mine", make_image_preset(tmp_path / "pictures"))
    assert catalogue.eligible("text") == before
    assert catalogue.candidates("image", tmp_path, named=None, most=100_000) == ["mine"]
    assert catalogue.candidates("audio", tmp_path, named=None, most=None)[-1] == "mine"


def test_a_project_runs_again_when_what_it_may_use_was_added_or_replaced_and_only_then(cache, tmp_path):
    pictures, words = make_image_preset(tmp_path / "pictures"), make_text_preset(tmp_path / "words")
    other = make_image_preset(tmp_path / "other" / "pictures", seed=5)
    (tmp_path / "table.csv").write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(40)))
    project = make_project(tmp_path / "project", source=f"csv:{tmp_path}/table.csv", preset=words)

    def inputs():
        refresh_inputs(project.paths, load_settings(project.paths.params), ["choose"])
        found = json.loads(project.paths.inputs.read_text())
        return found["candidates"], found["preset"]

    project.change("backbone.name", "auto")
    first = inputs()
    add("photos", pictures)
    assert inputs() == first  # the project is of texts
    add("sentences", words)
    candidates, preset = inputs()
    assert candidates == [*first[0], "sentences"]
    assert list(preset) == ["sentences"]
    project.change("preprocess.kind", "image")
    project.change("backbone.name", "photos")
    before = inputs()
    add("photos", other, replace=True)
    assert inputs() != before


def test_the_list_says_how_each_can_be_had_and_shows_what_was_added_or_pretrained_here(cache, tmp_path):
    paths = Paths(tmp_path / "project")
    add("mine", make_text_preset(tmp_path / "words"))
    shutil.copytree(cache / "mine", paths.backbones / "mine")
    (paths.backbones / "mine" / weights.CONTENT).unlink()
    card = json.loads((paths.backbones / "mine" / weights.CARD).read_text())
    (paths.backbones / "mine" / weights.CARD).write_text(json.dumps({**card, "pretraining": {"steps": 3}}))
    found = {row.name: row for row in listing.rows(paths.backbones, paths.root)}
    assert list(found) == [*catalogue.entries(), "mine", "preset:models/backbones/mine"]
    assert found["preset:models/backbones/mine"].at_hand == "pretrained here"
    assert catalogue.kind_of("preset:models/backbones/mine", paths.root) == "text"
    assert (found["mine"].at_hand, found["cnn_small"].at_hand) == ("added", "begins from nothing")
    assert (found["gpt2_base_en"].at_hand, found["gpt2_base_en"].needs) == (None, "KerasHub's hub")
    assert "squad" in found["bert_base_en_uncased"].overlaps
    small = listing.rows(paths.backbones, paths.root, kind="audio", most=700_000, at_hand_only=True)
    assert [row.name for row in small] == ["cnn_small"]


def test_the_commands_add_and_list(cache, tmp_path):
    make_text_preset(tmp_path / "words")

    def regraft(*arguments):
        command = [sys.executable, "-m", "regraft.cli", "backbones", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = regraft("add", "mine", "--from", str(tmp_path / "words"))
    assert done.stdout.startswith(f"added mine ({cache / 'mine'})\ntext, ")
    listed = json.loads(regraft("--kind", "text", "--offline", "--json").stdout)["backbones"]
    assert [row["name"] for row in listed] == ["rnn_small", "mine"]
    assert "needs KerasHub's hub" in regraft("--kind", "image").stdout


def test_a_true_preset_can_be_added_under_the_name_of_the_catalogue(cache, tmp_path):
    keras.utils.set_random_seed(0)
    smaller("mobilenet_v3_small_100_imagenet").make(called="x").save_to_preset(str(tmp_path / "copied"))
    with pytest.raises(BackboneError, match="Give it a name of its own"):
        add("mobilenet_v3_small_100_imagenet", tmp_path / "copied")
    build("mobilenet_v3_small_100_imagenet", 1).save_to_preset(str(tmp_path / "true"))
    # As KerasHub writes it: pixels in [0, 1], then ImageNet's mean and variance.
    converter = keras_hub.layers.ImageConverter(
        image_size=(224, 224), scale=[1 / 0.229 / 255, 1 / 0.224 / 255, 1 / 0.225 / 255],
        offset=[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    )  # fmt: skip
    converter.save_to_preset(str(tmp_path / "true"))
    card = added("mobilenet_v3_small_100_imagenet", tmp_path / "true")
    entry = catalogue.find("mobilenet_v3_small_100_imagenet")
    assert np.allclose(card.offset, entry.offset, rtol=1e-4)
    assert np.allclose(card.divisor, entry.divisor, rtol=1e-4)
    assert (card.parameters, card.source_dataset) == (entry.parameters, "ImageNet-1k")
