"""Explanations of models whose reasons are known."""

import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from regraft.explanations import faithfulness
from regraft.explanations.attribution import (
    GRAD_CAM,
    GRID,
    HIDING,
    INTEGRATED_GRADIENTS,
    MASKS,
    MOST_WORDS,
    PictureExplainer,
    TextExplainer,
    masks,
    split_words,
)
from regraft.explanations.explain import Explanation, Neighbour, draw, render
from regraft.tuning.classifier import graft

SIDE = 32
CORNER = slice(0, 8)
RED = {0, 1, GRID, GRID + 1}  # its cells


def red_corner(windows=1, seed=0):
    """A grey noise picture with red in its first rows and columns, as the model sees it."""
    picture = np.random.default_rng(seed).integers(90, 110, (windows, SIDE, SIDE, 3)).astype(np.float32)
    picture[-1, CORNER, CORNER] = (250, 20, 20)
    return picture


def picture_model(task="classification", windows=1, sign=1.0):
    """A network that goes by red alone, and does not look at a whole window at a time."""
    shape = (SIDE, SIDE, 3)
    pixels = keras.Input(shape if windows == 1 else (windows, *shape))
    seen = keras.layers.Rescaling(1 / 255)(pixels)
    if windows > 1:
        seen = keras.ops.reshape(seen, (-1, *shape))
    redness = keras.layers.Conv2D(2, 4, 4, activation="relu", use_bias=False)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(redness(seen))
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[..., 0, 0], kernel[..., 1, 0] = 1.0, -1.0  # red less green
    kernel[..., 1, 1] = 1.0
    redness.set_weights([kernel])
    if windows > 1:
        features = keras.ops.mean(keras.ops.reshape(features, (-1, windows, 2)), axis=1)
    head = np.array([[sign * 3.0, -sign * 3.0], [0.0, 0.0]], np.float32)
    model = graft(keras.Model(pixels, features), head, np.zeros(2, np.float32))

    def prepare(content):
        return tf.constant(red_corner(windows)) if windows > 1 else tf.constant(red_corner()[0])

    return SimpleNamespace(model=model, task=task, extractor=SimpleNamespace(kind="image", prepare=prepare))


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("method", [HIDING, GRAD_CAM, INTEGRATED_GRADIENTS])
def test_what_a_network_of_pictures_goes_by_is_where_it_looks(method, windows):
    explainer = PictureExplainer(picture_model(windows=windows))
    assert explainer.methods == (HIDING, GRAD_CAM, INTEGRATED_GRADIENTS)
    attribution = explainer.attribute(method, b"", 0)
    assert attribution.heat is not None
    assert attribution.heat.shape == (windows, SIDE, SIDE)
    assert attribution.heat.max() == pytest.approx(1.0)
    assert set(np.argsort(-attribution.weights)[:4] - GRID * GRID * (windows - 1)) == RED


def test_what_speaks_against_an_answer_comes_last_for_classes_and_first_for_values():
    against = PictureExplainer(picture_model())
    assert against.attribute(GRAD_CAM, b"", 1).weights.max() == 0.0
    assert set(np.argsort(against.attribute(HIDING, b"", 1).weights)[:4]) == RED
    value = PictureExplainer(picture_model("regression", sign=-1.0))
    for method in (HIDING, INTEGRATED_GRADIENTS):
        assert set(np.argsort(-value.attribute(method, b"", 0).weights)[:4]) == RED


def test_a_network_without_a_map_has_gradients_still():
    pixels = keras.Input((SIDE, SIDE, 3))
    model = graft(
        keras.Model(pixels, keras.layers.Flatten()(pixels)),
        np.ones((SIDE * SIDE * 3, 2), np.float32),
        np.zeros(2, np.float32),
    )
    classifier = picture_model()
    classifier.model = model
    assert PictureExplainer(classifier).methods == (HIDING, INTEGRATED_GRADIENTS)


def test_masks_keep_every_share_of_a_picture_and_hide_the_same():
    keep = masks(2)
    assert keep.shape == (MASKS, 2 * GRID * GRID)
    np.testing.assert_array_equal(keep.sum(axis=0), MASKS // 2)
    shares = np.sort(keep.mean(axis=1))
    np.testing.assert_allclose(shares, (np.arange(MASKS) + 0.5) / MASKS, atol=0.02)


def test_hidden_cells_are_blurred_and_kept_ones_are_as_they_were():
    explainer = PictureExplainer(picture_model())
    keep = np.ones((1, GRID * GRID), bool)
    keep[0, 0] = False
    [hidden] = explainer.hidden(b"", keep)
    picture = red_corner()
    np.testing.assert_array_equal(hidden[0, 4:], picture[0, 4:])
    assert np.abs(hidden[0, :4, :4] - picture[0, :4, :4]).max() > 50


def counting(word, other):
    """A model of texts that goes by how often each of two words occurs."""

    def model(texts, training):
        found = [[text.decode().split().count(one) for one in (word, other)] for text in texts.numpy()]
        return tf.constant(found, tf.float32)

    extractor = SimpleNamespace(kind="text", prepare=lambda texts: texts)
    return SimpleNamespace(model=model, task="classification", extractor=extractor)


def test_words_bear_by_how_much_the_answer_falls_without_them():
    attribution = TextExplainer(counting("good", "bad")).attribute("", "a good film and good food, bad place", 0)
    weights = dict(zip((part.strip() for part in attribution.parts), attribution.weights, strict=True))
    assert weights["good"] == 1.0
    assert weights["film"] == weights["bad"] == 0.0
    against = TextExplainer(counting("good", "bad")).attribute("", "good bad", 1)
    assert against.weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("text", ["", "one", "  two  words ", "a\nb", "w " * 1000, "first text ||| second one"])
def test_words_together_are_the_text(text):
    assert "".join(split_words(text)) == text
    assert len(split_words(text)) <= MOST_WORDS + 1


def test_the_separator_of_a_pair_is_never_hidden():
    explainer, pair = TextExplainer(counting("good", "bad")), "good one ||| bad one"
    nothing = np.zeros((1, len(split_words(pair))), bool)
    assert explainer.hidden(pair, nothing) == [" ||| "]


def test_explanations_that_are_right_beat_chance():
    [row] = faithfulness.measure(TextExplainer(counting("good", "bad")), ["a b c good d e f g"] * 5, seed=1).values()
    assert (row["examples"], row["better_both"]) == (5, 1.0)
    assert row["deletion"] < row["random_deletion"]
    assert row["insertion"] > row["random_insertion"]
    assert row["low"] < 1.0 == row["high"]
    pictures = faithfulness.measure(PictureExplainer(picture_model()), [b""] * 3, seed=1)
    assert {method: row["better_both"] for method, row in pictures.items()} == dict.fromkeys(
        (HIDING, GRAD_CAM, INTEGRATED_GRADIENTS), 1.0
    )


def test_explanations_that_are_wrong_do_not_beat_chance(monkeypatch):
    explainer, right = TextExplainer(counting("good", "bad")), TextExplainer.attribute

    def upside_down(self, method, content, target):
        attribution = right(self, method, content, target)
        return type(attribution)(method, -attribution.weights, attribution.parts)

    monkeypatch.setattr(TextExplainer, "attribute", upside_down)
    [row] = faithfulness.measure(explainer, ["a b c good d e f g"] * 5, seed=1).values()
    assert row["better_both"] == 0.0


def test_one_word_has_no_order_to_judge():
    assert faithfulness.measure(TextExplainer(counting("good", "bad")), ["good"], seed=1) == {}


def test_how_much_values_are_still_the_same_is_their_distance():
    outputs = np.array([[3.0], [1.0], [4.0]], np.float32)
    assert faithfulness.still("regression", outputs, 0, unit=2.0).tolist() == [0.0, -1.0, -0.5]


def test_a_page_shows_texts_as_they_are_and_asks_for_nothing():
    attribution = TextExplainer(counting("good", "bad")).attribute("", "good <b>food</b>", 0)
    found = Explanation("yes", (attribution,), (), None, None, (Neighbour("one", "yes", 0.5, "<script>"),))
    page = render(found, model="m version 1", given="good", answer={"label": "yes", "probability": 0.9, "set": ["yes"]})
    assert "&lt;b&gt;food&lt;/b&gt;" in page
    assert "<script" not in page
    assert "http" not in page


def test_pictures_are_drawn_at_a_size_that_can_be_seen():
    attribution = PictureExplainer(picture_model()).attribute(HIDING, b"", 0)
    assert Image.open(io.BytesIO(draw(red_corner(), attribution))).height >= 300
