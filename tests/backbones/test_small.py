"""The two networks that begin from nothing: the same seed the same bytes, and they learn, ship and stay apart."""

import hashlib
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tasks.backbone
import tasks.choose
import tasks.embed
import tasks.finetune
from regraft.backbones import catalogue, small
from regraft.backbones.card import read_card
from regraft.backbones.catalogue import at_hand
from regraft.backbones.extractor import build_extractor
from regraft.backbones.features import describe
from regraft.backbones.fetch import fetch
from regraft.backbones.small import FIRST_WORD, HashedWords
from regraft.backbones.weights import sha256
from regraft.data.records import Example, open_split, write_prepared
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.registry.serving import export_saved_model, largest_difference, load_served
from regraft.settings import BackboneSettings, EmbedSettings, FinetuneSettings
from regraft.tuning.classifier import Classifier, graft, load_classifier
from regraft.tuning.loop import freeze_statistics_and_tables
from tests.tuning.sources import png

NAMES = ("cnn_small", "rnn_small")
TEXTS = ["good day", "A much longer text, of 14 words or signs; it pads all others.", "", "übel \U0001f600"]

CONSUMER = """
import sys
from pathlib import Path
sys.modules["tensorflow_text"] = None  # importing it fails
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
print(float(model.serve(tf.constant(["good day"]))["probabilities"][0, 1]))
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders with each of the networks, from seed 7."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        fetch(name, folder, root=folder, seed=7)
    return folders


@pytest.fixture(scope="module")
def extractors(stored):
    return {name: build_extractor(folder, image_size_px=48) for name, folder in stored.items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_what_the_catalogue_says_and_loads_with_its_weights(name, extractors):
    entry, extractor = catalogue.find(name), extractors[name]  # whose digest was compared with the card's in loading
    assert extractor.card.parameters == entry.parameters == extractor.model.count_params()
    assert (extractor.kind, extractor.feature_size) == (entry.kind, entry.feature_size)
    assert not extractor.card.is_pretrained
    assert extractor.card.origin == "initial weights from seed 7"
    assert name in at_hand()
    assert sha256(Path(small.__file__)) in describe(extractor, 8)["code"]  # it is part of what makes its features


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_every_byte(name, stored, tmp_path):
    def files(folder):
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    keras.utils.set_random_seed(123)  # what went before does not matter
    fetch(name, tmp_path, root=tmp_path, seed=7)
    assert files(tmp_path) == files(stored[name])
    fetch(name, tmp_path, root=tmp_path, seed=8)
    assert read_card(tmp_path / name).weights_sha256 != read_card(stored[name] / name).weights_sha256


def test_pictures_become_features_of_unlike_values(extractors):
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 48, 48, 3)).astype("float32")
    features = extractors["cnn_small"].model(pixels, training=False).numpy()
    assert (features.shape, features.dtype) == ((3, 192), np.float32)
    assert (features.std(axis=0) > 0).mean() > 0.9


def test_a_text_has_the_same_features_however_far_it_is_padded(extractors):
    extractor = extractors["rnn_small"]
    prepared = extractor.prepare(tf.constant(TEXTS))
    together = extractor.model(prepared, training=False).numpy()
    assert (together.shape, together.dtype) == ((4, 128), np.float32)
    alone = [extractor.model(extractor.prepare(tf.constant([text])), training=False).numpy()[0] for text in TEXTS]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)
    junk = {**prepared, "token_ids": prepared["token_ids"] + 9 * (1 - prepared["padding_mask"])}
    np.testing.assert_allclose(extractor.model(junk, training=False), together, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "same", "words"),
    [
        ("Hello, World", "hello , WORLD", 3),
        ("top10", "top 1 0", 3),
        ("déjà vu", "DÉJÀ  VU", 2),
        ("你好 吗", "你 好吗", 3),
        ("", "  ", 0),
    ],
)
def test_case_and_spaces_around_signs_make_no_difference(text, same, words):
    numbers, again = tf.function(HashedWords(1000).tokenize)(tf.constant([text, same])).to_list()
    assert numbers == again
    assert len(numbers) == words
    assert all(FIRST_WORD <= number < 1000 for number in numbers)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns(name, extractors):
    extractor = extractors[name]
    freeze_statistics_and_tables(extractor.model)
    weights = extractor.model.trainable_variables
    assert len(weights) == len(extractor.model.weights)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 48, 48, 3)).astype("float32")
    inputs = extractor.prepare(tf.constant(TEXTS)) if extractor.kind == "text" else pixels
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(extractor.model(inputs, training=True) ** 3)
    slopes = tape.gradient(loss, [weight.value for weight in weights])
    assert all(np.abs(tf.convert_to_tensor(slope)).max() > 0 for slope in slopes)


def test_the_model_for_texts_serves_without_tensorflow_text(extractors, tmp_path):
    extractor = extractors["rnn_small"]
    kernel = np.random.default_rng(3).normal(size=(128, 2)).astype("float32")
    bias = np.zeros(2, np.float32)
    classifier = Classifier(extractor, graft(extractor.model, kernel, bias), ("a", "b"), kernel, bias, "full")
    export_saved_model(classifier, tmp_path, example="good day")
    assert read_json(tmp_path / "labels.json")["tensorflow_text"] is False
    served = load_served(tmp_path)
    assert largest_difference(classifier, served, TEXTS) < 1e-5
    command = [sys.executable, "-c", CONSUMER, str(tmp_path / "saved_model")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(served.answers(["good day"])[0, 1]), abs=1e-6)


def examples(kind, rows):
    random = np.random.default_rng(rows)
    for row in range(rows):
        text = f"{('bad', 'good')[row % 2]} {'day ' * (row % 5)}{rows} {row}"
        pixels = random.integers(0, 120, (24, 24, 3), dtype=np.uint8)
        pixels[..., row % 2] += 120
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield Example(digest, f"{rows}/{row}", ("no", "yes")[row % 2], text if kind == "text" else png(pixels))


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_train_it_and_store_what_it_learnt(name, tmp_path, monkeypatch):
    monkeypatch.delenv("REGRAFT_SCRATCH", raising=False)
    paths, kind = Paths(tmp_path), catalogue.find(name).kind
    sizes = {"train": 48, "validation": 20, "test": 4}
    splits = {split: list(examples(kind, rows)) for split, rows in sizes.items()}
    write_prepared(paths.prepared, kind, ("no", "yes"), splits)
    write_json(paths.reports / "data.json", {"kind": kind, "median_short_side_px": 24})
    backbone, embed = BackboneSettings(name=name), EmbedSettings(image_size_px=32)
    tasks.choose.run(backbone, embed, 7, paths)
    tasks.backbone.run(backbone, 7, paths)
    tasks.embed.run(embed, paths)
    settings = FinetuneSettings(strategy="full", epochs=4, batch_size=8, learning_rate=3.0e-3, augment=False)
    tasks.finetune.run(settings, 7, paths)
    history = read_json(paths.reports / "training.json")["history"]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    classifier = load_classifier(paths.model, paths.backbones)
    test = open_split(paths.prepared, "test")
    prepare = tf.function(classifier.extractor.prepare)
    raw = tf.constant(test.inputs(range(4)))
    prepared = prepare(raw) if kind == "text" else tf.stack([prepare(one) for one in raw])
    assert (classifier.model.predict_on_batch(prepared).argmax(axis=1) == test.labels).all()
