"""Raw input becomes what the network was trained on, in a graph that can be exported."""

import io

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks.families import write_preset
from regraft.backbones import catalogue, inputs
from regraft.backbones.extractor import LastReal, build_extractor, choose_image_size, text_preparation
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError
from regraft.settings import EmbedSettings
from tests.backbones.family import smaller
from tests.backbones.tiny import VOCABULARY, make_image_preset, make_text_preset


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    make_text_preset(root / "words")
    fetch("preset:words", root / "backbones", root=root)
    return build_extractor(root / "backbones", max_tokens=8)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    make_text_preset(root / "words")
    fetch("preset:words", root / "backbones", root=root)
    return build_extractor(root / "backbones", max_tokens=8, pair=("question", "answer"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    make_image_preset(root / "pictures")
    fetch("preset:pictures", root / "backbones", root=root)
    return build_extractor(root / "backbones", image_size_px=32)


def encoded(pixels: np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("setting", "median", "expected"),
    [("auto", 28, 64), ("auto", 48, 96), ("auto", 49, 128), ("auto", 64, 128), ("auto", 348, 224), (160, 28, 160)],
)
def test_the_image_size_follows_the_images_within_bounds(setting, median, expected):
    assert choose_image_size(setting, median, 224) == expected


def test_a_picture_of_the_right_size_keeps_its_pixels(images):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert (images.prepare(tf.constant(encoded(pixels))).numpy() == pixels).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("shape", [(20, 50, 3), (100, 64), (1, 1)])
def test_any_picture_becomes_a_square_of_three_channels(images, file_format, shape):
    prepared = images.prepare(tf.constant(encoded(np.full(shape, 90, np.uint8), file_format)))
    assert prepared.shape == (32, 32, 3)
    assert np.abs(prepared.numpy() - 90).max() < 2


def test_shrinking_a_picture_averages_its_pixels(images):
    stripes = np.zeros((320, 320), np.uint8)
    stripes[:, ::2] = 255
    inner = images.prepare(tf.constant(encoded(stripes))).numpy()[4:-4, 4:-4]
    assert np.abs(inner - 127.5).max() < 10  # picking pixels instead would give 0 or 255


def words(prepared) -> list[list[str]]:
    rows = zip(prepared["token_ids"].numpy(), prepared["padding_mask"].numpy(), strict=True)
    return [[VOCABULARY[token] for token, real in zip(*row, strict=True) if real] for row in rows]


def test_texts_are_packed_truncated_and_padded_to_the_longest(texts):
    prepared = texts.prepare(tf.constant(["My CÁRD", "the card is not my card and not the bank", ""]))
    assert prepared["token_ids"].shape == (3, 8)
    assert words(prepared) == [
        ["[CLS]", "my", "card", "[SEP]"],
        ["[CLS]", "the", "card", "is", "not", "my", "card", "[SEP]"],
        ["[CLS]", "[SEP]"],
    ]


def test_strange_spaces_part_words_and_invisible_characters_do_not(texts):
    assert words(texts.prepare(tf.constant(["my\u00a0ca\u200brd\x00"]))) == [["[CLS]", "my", "card", "[SEP]"]]


def test_a_text_has_the_same_features_alone_and_beside_longer_ones(texts):
    sentences = ["my card", "the card is not my card", "help"]
    together = texts.model.predict(to_numpy(texts.prepare(tf.constant(sentences))), verbose=0)
    for sentence, row in zip(sentences, together, strict=True):
        alone = texts.model.predict(to_numpy(texts.prepare(tf.constant([sentence]))), verbose=0)[0]
        assert np.abs(alone - row).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_both_texts_of_a_pair_are_packed_cut_and_padded_alike(paired):
    prepared = paired.prepare(tf.constant(["My card ||| the card is not my card and not the bank", "help", " ||| now"]))
    assert prepared["token_ids"].shape == prepared["padding_mask"].shape == (3, 2, 8)
    sides = [{name: tensor[:, side] for name, tensor in prepared.items()} for side in (0, 1)]
    assert words(sides[0]) == [["[CLS]", "my", "card", "[SEP]"], ["[CLS]", "help", "[SEP]"], ["[CLS]", "[SEP]"]]
    assert words(sides[1]) == [
        ["[CLS]", "the", "card", "is", "not", "my", "card", "[SEP]"],
        ["[CLS]", "[SEP]"],
        ["[CLS]", "now", "[SEP]"],
    ]


def test_the_features_of_a_pair_are_those_of_its_texts_their_distance_and_their_product(paired, texts):
    first, second = texts.model.predict(to_numpy(texts.prepare(tf.constant(["my card", "good film"]))), verbose=0)
    (found,) = paired.model.predict(to_numpy(paired.prepare(tf.constant(["my card ||| good film"]))), verbose=0)
    expected = np.concatenate([first, second, np.abs(first - second), first * second])
    assert paired.feature_size == len(expected) == 4 * texts.feature_size
    assert np.abs(found - expected).max() < 1e-5


def to_numpy(prepared) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in prepared.items()}


def test_batch_norm_layers_can_be_reached_and_no_variable_name_starts_with_an_underscore(images, texts):
    # Another name breaks the export to SavedModel.
    assert not [v.path for e in (images, texts) for v in e.model.variables if v.name.startswith("_")]
    layers = images.model._flatten_layers()
    assert len([layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]) == 10


@pytest.mark.parametrize("kind", ["image", "text", "pair"])
def test_the_whole_chain_from_raw_input_survives_export(images, texts, paired, kind, tmp_path):
    extractor = {"image": images, "text": texts, "pair": paired}[kind]
    raw = (
        ["my card ||| help", "good film"]
        if kind != "image"
        else [encoded(np.full((9, 9), v, np.uint8)) for v in (3, 200)]
    )

    def serve(inputs):
        if kind == "image":
            pixels = tf.TensorSpec((32, 32, 3), tf.float32)
            return extractor.model(tf.map_fn(extractor.prepare, inputs, fn_output_signature=pixels), training=False)
        return extractor.model(extractor.prepare(inputs), training=False)

    archive = keras.export.ExportArchive()
    archive.track(extractor.model)
    archive.add_endpoint("serve", serve, input_signature=[tf.TensorSpec([None], tf.string)])
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    answer = loaded.serve(tf.constant(raw)).numpy()
    assert np.abs(answer - serve(tf.constant(raw)).numpy()).max() < 1e-5
    assert np.abs(answer[0] - answer[1]).max() > 1e-4


def extractor_of(name, root, **options):
    """Return the extractor of a small network of the class of the row `name`."""
    write_preset(smaller(name).make(called="net"), root / "net", catalogue.find(name).kind)
    fetch("preset:net", root / "backbones", root=root)
    return build_extractor(root / "backbones", **options)


def test_the_last_real_token_is_found_on_whichever_side_a_text_is_padded():
    sequence = np.arange(24, dtype="float32").reshape(3, 4, 2)
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], "int32")
    expected = [sequence[0, 1], sequence[1, 3], sequence[2, 0]]
    assert np.array_equal(LastReal()(sequence, mask), expected)


def test_of_a_network_that_reads_from_left_to_right_the_last_real_token_speaks(tmp_path):
    gpt2 = extractor_of("gpt2_base_en", tmp_path, max_tokens=8)
    assert gpt2.card.pooling == "last"
    prepared = gpt2.prepare(tf.constant(["the is", "", "the is a of by my no on so up"]))
    start = prepared["token_ids"].numpy()[1, 0]
    # A start, "t", "he", a space and "is"; a start alone; none has an end.
    assert prepared["padding_mask"].numpy().sum(axis=1).tolist() == [5, 1, 8]
    assert (prepared["token_ids"].numpy()[:, 0] == start).all()
    together = gpt2.model.predict(to_numpy(prepared), verbose=0)
    for row, text in enumerate(["the is", ""]):
        alone = gpt2.model.predict(to_numpy(gpt2.prepare(tf.constant([text]))), verbose=0)[0]
        assert np.abs(alone - together[row]).max() < 1e-5
    backbone = next(layer for layer in gpt2.model.layers if isinstance(layer, keras_hub.models.Backbone))
    states = backbone.predict(to_numpy(prepared), verbose=0)
    assert np.abs(together - states[[0, 1, 2], [4, 0, 7]]).max() < 1e-5


def test_a_network_without_segments_is_given_none_and_averages_real_tokens(tmp_path):
    distil = extractor_of("distil_bert_base_en_uncased", tmp_path, max_tokens=8)
    backbone = next(layer for layer in distil.model.layers if isinstance(layer, keras_hub.models.Backbone))
    assert set(backbone.input) == {"token_ids", "padding_mask"}
    prepared = to_numpy(distil.prepare(tf.constant(["the", "the is so"])))
    states, mask = backbone.predict(prepared, verbose=0), prepared["padding_mask"][..., None]
    expected = (states * mask).sum(axis=1) / mask.sum(axis=1)
    assert np.abs(distil.model.predict(prepared, verbose=0) - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224_imagenet", "vit_base_patch16_224_imagenet"])
def test_a_transformer_of_patches_gives_its_class_token_and_takes_one_size_alone(tmp_path, name):
    patches = extractor_of(name, tmp_path)
    assert (patches.card.pooling, patches.card.is_fixed_size, patches.image_size_px) == ("class", True, 32)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    backbone = next(layer for layer in patches.model.layers if isinstance(layer, keras_hub.models.Backbone))
    states = backbone.predict(pixels / 127.5 - 1, verbose=0)
    assert np.abs(patches.model.predict(pixels, verbose=0) - states[:, 0]).max() < 1e-5
    with pytest.raises(BackboneError, match="net takes pictures of 32 px alone, got 64"):
        build_extractor(tmp_path / "backbones", image_size_px=64)
    assert inputs.image_size(EmbedSettings(), {"median_short_side_px": 500}, patches.card, None) == 32
    with pytest.raises(BackboneError, match=r"embed\.image_size_px: net takes pictures of 32 px alone, got 96"):
        inputs.image_size(EmbedSettings(image_size_px=96), {"median_short_side_px": 500}, patches.card, None)


def test_a_tokenizer_with_start_and_end_but_no_class_token_puts_both_around_a_text():
    tokenizer = keras_hub.tokenizers.RobertaTokenizer(
        vocabulary={"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "b": 5, "ab": 6}, merges=["a b"]
    )
    prepared = text_preparation(tokenizer, 4)(tf.constant(["ab", "abab"]))
    assert prepared["token_ids"].numpy().tolist() == [[0, 6, 2, 1], [0, 6, 6, 2]]
