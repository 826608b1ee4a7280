"""The exported model answers as the trained one does, from raw input, with TensorFlow alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

from regraft.errors import DataError, RegistryError
from regraft.paths import REPOSITORY
from regraft.registry.serving import export_saved_model, largest_difference, load_served
from tests.evaluation.small_models import picture, random_classifier

TEXTS = ["good day", "very very bad days", "", "a", "übel \U0001f600", "good " * 40]

CONSUMER = """
import sys
import tensorflow as tf
if sys.argv[2] == "text":
    import tensorflow_text
model = tf.saved_model.load(sys.argv[1])
raw = open(sys.argv[3], "rb").read()
for count in (1, 3):
    probabilities = model.serve(tf.constant([raw] * count))["probabilities"].numpy()
    assert probabilities.shape == (count, 2), probabilities.shape
named = model.signatures["serving_default"](**{sys.argv[2]: tf.constant([raw])})
assert abs(named["probabilities"].numpy() - probabilities[:1]).max() < 1e-6
assert not any(name.split(".")[0] in ("regraft", "keras_hub") for name in sys.modules)
print(float(probabilities[0, 1]))
"""

EXPORTER = """
import sys
from pathlib import Path
import numpy as np
from regraft.determinism import set_up
from regraft.backbones.extractor import build_extractor
from regraft.paths import REPOSITORY
from regraft.registry.serving import export_saved_model
from regraft.tuning.classifier import Classifier, graft
set_up(7)
for place in (1, 2):
    extractor = build_extractor(Path(sys.argv[place]))
    kernel, bias = np.ones((12, 2), "float32"), np.zeros(2, "float32")
    directory = Path(sys.argv[3], extractor.kind)
    directory.mkdir(parents=True)
    model = graft(extractor.model, kernel, bias)
    export_saved_model(Classifier(extractor, model, ("a", "b"), kernel, bias, "probe"), directory, example=b"")
"""


@pytest.fixture(scope="module")
def image_export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image")
    classifier = random_classifier("image", tmp_path_factory.mktemp("backbones"), ("dark", "light"))
    export_saved_model(classifier, directory, example=picture(40))
    return classifier, directory


@pytest.fixture(scope="module")
def text_export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    classifier = random_classifier("text", tmp_path_factory.mktemp("backbones"), ("down", "up"))
    export_saved_model(classifier, directory, example="good day")
    return classifier, directory


def test_each_output_differs_in_its_own_unit(image_export):
    classifier, directory = image_export
    served, pictures = load_served(directory), [picture(90)]
    by_one = largest_difference(classifier, served, pictures, temperature=2.0)
    assert largest_difference(
        classifier, served, pictures, temperature=2.0, units=np.array([1e3, 1e3])
    ) == pytest.approx(by_one / 1e3)


def test_exported_images_score_as_in_keras_whatever_their_size_and_format(image_export):
    classifier, directory = image_export
    pictures = [
        picture(value, side_px=side_px, file_format=file_format)
        for value, side_px, file_format in [(10, 20, "PNG"), (90, 57, "JPEG"), (200, 32, "BMP"), (250, 9, "GIF")]
    ]
    assert largest_difference(classifier, load_served(directory), pictures) < 1e-5


def test_exported_texts_score_as_in_keras_empty_foreign_and_overlong_ones_included(text_export):
    classifier, directory = text_export
    assert largest_difference(classifier, load_served(directory), TEXTS) < 1e-5


def test_an_answer_does_not_depend_on_the_other_inputs_of_the_call(image_export, text_export):
    for (_, directory), inputs in ((image_export, [picture(v) for v in (0, 80, 160, 240)]), (text_export, TEXTS)):
        served = load_served(directory)
        together = served.probabilities(inputs)
        alone = np.concatenate([served.probabilities([one]) for one in inputs])
        assert together.shape == (len(inputs), 2)
        assert together.dtype == np.float32
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-5)


def test_no_input_gives_no_answers(image_export, text_export):
    for _, directory in (image_export, text_export):
        assert load_served(directory).probabilities([]).shape == (0, 2)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_consumer_needs_neither_this_project_nor_keras_hub(kind, image_export, text_export, tmp_path):
    directory = (image_export if kind == "image" else text_export)[1]
    example = directory / ("input_example.bin" if kind == "image" else "input_example.txt")
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER)
    done = subprocess.run(
        [sys.executable, script, directory / "saved_model", kind, example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = load_served(directory).probabilities([example.read_bytes()])[0, 1]
    assert float(done.stdout) == pytest.approx(float(expected), abs=1e-6)


def test_an_unreadable_image_is_named_by_its_position(image_export):
    served = load_served(image_export[1])
    for broken in (b"", b"this is a text", picture(10)[:60]):
        with pytest.raises(DataError, match=r"Input 1 of 3 .* is not an image"):
            served.probabilities([picture(1), broken, picture(2)])


def test_labels_and_the_example_lie_beside_the_model(image_export, text_export):
    for (_, directory), kind, labels in (
        (image_export, "image", ["dark", "light"]),
        (text_export, "text", ["down", "up"]),
    ):
        facts = json.loads((directory / "labels.json").read_text())
        assert facts == {"kind": kind, "labels": labels, "task": "classification"}
    assert (image_export[1] / "input_example.bin").read_bytes() == picture(40)
    assert (text_export[1] / "input_example.txt").read_text("utf-8") == "good day"


def test_two_processes_export_the_same_models_to_the_same_bytes(tmp_path):
    for kind in ("image", "text"):
        random_classifier(kind, tmp_path / kind, ("a", "b"))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", EXPORTER, tmp_path / "image", tmp_path / "text", tmp_path / turn], cwd=REPOSITORY
        )
        for turn in ("first", "second")
    ]
    assert [process.wait() for process in running] == [0, 0]
    first, second = (
        {
            file.relative_to(tmp_path / turn): file.read_bytes()
            for file in (tmp_path / turn).rglob("*")
            if file.is_file()
        }
        for turn in ("first", "second")
    )
    assert len(first) == 2 * 5
    assert first == second


def test_a_folder_without_an_export_says_what_to_do(tmp_path):
    with pytest.raises(RegistryError, match="regraft run"):
        load_served(tmp_path)
