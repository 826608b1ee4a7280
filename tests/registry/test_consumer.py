"""The registered model as its consumers meet it, and `regraft predict`."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException
from PIL import Image

from regraft.data.records import Example
from regraft.errors import DataError, RegistryError
from regraft.files import write_json
from regraft.paths import Paths
from regraft.registry.consumer_model import BATCH_ROWS, MOST_PIXELS, _batches, _pixels
from regraft.registry.predict import _read_text, open_model, predict
from regraft.registry.register import publish
from regraft.registry.versions import resolve
from regraft.settings import Settings
from tests.registry.small_projects import (
    COLOURS,
    LINEAGE,
    RIGHT,
    ColourModel,
    LengthModel,
    Project,
    picture,
    write_reports,
)

CONSUMER = """
import json, sys
import mlflow, pandas as pd

assert "regraft" not in sys.modules
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/colours@champion")
answers = model.predict(pd.DataFrame({"image": [open(name, "rb").read() for name in sys.argv[2:]]}))
assert not any(name.startswith(("regraft", "tasks", "flows")) for name in sys.modules)
example = model.predict(model.input_example)
told = {"labels": list(answers["label"]), "probabilities": list(answers["probabilities"]), "example": len(example)}
print(json.dumps(told))
"""


@pytest.fixture
def published(make_project: Callable[..., Project], tmp_path: Path) -> Project:
    project = make_project(tmp_path / "project")
    publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    return project


@pytest.fixture
def loaded(published: Project) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(next(published.paths.root.glob("mlartifacts/models/*/artifacts")))


def test_a_process_without_this_project_loads_the_champion_and_predicts_from_bytes(
    published: Project, tmp_path: Path
) -> None:
    for colour in COLOURS:
        (tmp_path / f"{colour}.jpg").write_bytes(picture(colour, 200, "JPEG"))
    command = [sys.executable, "-I", "-c", CONSUMER, f"sqlite:///{published.paths.root}/mlflow.db"]
    done = subprocess.run(
        [*command, *(f"{colour}.jpg" for colour in COLOURS)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["labels"] == list(COLOURS)
    assert sum(answer["probabilities"][0].values()) == pytest.approx(1.0, abs=1e-6)
    assert answer["example"] == 1


def test_a_version_pins_what_it_needs_and_describes_its_input(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    assert loaded.metadata.get_input_schema().to_dict() == [{"type": "binary", "name": "image", "required": True}]
    assert [column.name for column in loaded.metadata.get_output_schema()] == ["label", "probability", "probabilities"]
    requirements = (Path(loaded._model_meta.artifact_path) / "requirements.txt").read_text().split()
    assert f"tensorflow=={tf.__version__}" in requirements
    assert all("==" in line for line in requirements)


def test_bytes_are_accepted_as_a_table_and_as_a_dictionary(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    pictures = [picture("red", 200), picture("green", 200, "BMP"), picture("blue", 200, "GIF")]
    expected = ["red", "green", "blue"]
    table = pd.DataFrame({"image": pictures}, index=[7, 8, 9])
    answers = loaded.predict(table)
    assert list(answers["label"]) == expected
    assert list(answers.index) == [7, 8, 9]
    assert list(loaded.predict({"image": pictures})["label"]) == expected
    assert list(loaded.predict(pd.DataFrame({"image": pictures * 50}))["label"]) == expected * 50
    # softmax of (200, 0, 0) / 50
    assert answers["probability"].iloc[0] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-5)


def test_a_promise_reaches_consumers_as_a_set_with_the_most_probable_class_first(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    facts = {
        "kind": "image",
        "labels": list(COLOURS),
        "conformal": {"coverage": 0.9, "least_probability": 0.2},
        "doubt": {"risk": 0.05, "least_sure": 0.8},
    }
    write_json(project.paths.serving / "labels.json", facts)
    publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    model = mlflow.pyfunc.load_model(next(project.paths.root.glob("mlartifacts/models/*/artifacts")))
    # softmax of (200, 0, 0) / 50: only red is probable enough; of (20, 0, 0) / 50: 0.43, 0.29, 0.29
    answers = model.predict({"image": [picture("red", 200), picture("red", 20)]})
    assert answers["set"].tolist() == [["red"], ["red", "blue", "green"]]
    assert answers["is_sure"].tolist() == [True, False]
    assert [column.name for column in model.metadata.get_output_schema()][-2:] == ["set", "is_sure"]
    (tmp_path / "red.png").write_bytes(picture("red", 200))
    (asked,) = predict(project.paths, project.settings, "colours", [str(tmp_path / "red.png")])
    assert (asked["set"], asked["is_sure"]) == (["red"], True)
    consumer = model.unwrap_python_model()
    consumer.conformal = {"coverage": 0.9, "least_probability": 0.999}
    answers = consumer.predict(None, pd.DataFrame({"image": [picture("red", 20)]}))
    assert answers["set"].tolist() == [["red"]]  # never empty


class UnusualModel(ColourModel):
    """Calls every input unusual."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {**super().serve(image), "unusual": tf.fill(tf.shape(image), 1.5)}


def test_how_unusual_an_input_is_reaches_consumers_and_its_signature(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    tf.saved_model.save(UnusualModel(RIGHT), str(project.paths.serving / "saved_model"))
    facts = {"kind": "image", "labels": list(COLOURS), "unusual": {"known": 9, "limit": 0.1, "neighbours": 5}}
    write_json(project.paths.serving / "labels.json", facts)
    publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    model = mlflow.pyfunc.load_model(next(project.paths.root.glob("mlartifacts/models/*/artifacts")))
    answers = model.predict({"image": [picture("red", 200), picture("blue", 90)]})
    assert (answers["label"].tolist(), answers["unusual"].tolist()) == (["red", "blue"], [1.5, 1.5])
    assert [len(row) for row in answers["probabilities"]] == [3, 3]
    assert [column.name for column in model.metadata.get_output_schema()][-1] == "unusual"
    assert model.predict({"image": []}).columns.tolist() == answers.columns.tolist()


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "JPEG"])
def test_the_size_of_an_image_is_read_off_its_header(form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, form)
    assert _pixels(buffer.getvalue()) == 600
    assert _pixels(buffer.getvalue()[:8]) == 0


def test_all_pictures_of_a_gif_count_because_all_are_unpacked() -> None:
    first, *others = (Image.new("RGB", (30, 20), (20 * shade, 0, 5)) for shade in range(7))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others)
    assert _pixels(buffer.getvalue()) == 7 * 600 // 3
    for end in range(len(buffer.getvalue())):
        assert 0 <= _pixels(buffer.getvalue()[:end]) <= 7 * 600 // 3


def test_large_images_are_decoded_few_at_a_time() -> None:
    def sizes(pixels: list[int]) -> list[int]:
        rows = list(range(len(pixels)))
        batches = [rows[batch] for batch in _batches(pixels)]
        assert [row for batch in batches for row in batch] == rows
        return [len(batch) for batch in batches]

    assert sizes([]) == []
    assert sizes([0] * (2 * BATCH_ROWS + 1)) == [BATCH_ROWS, BATCH_ROWS, 1]
    assert sizes([MOST_PIXELS // 8] * 20) == [8, 8, 4]
    assert sizes([MOST_PIXELS, 1, MOST_PIXELS, MOST_PIXELS - 1, 1]) == [1, 1, 1, 2]


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(
    loaded: mlflow.pyfunc.PyFuncModel,
) -> None:
    header = bytearray(picture("red", 200))
    header[16:24] = (20000).to_bytes(4, "big") * 2
    with pytest.raises(MlflowException, match="row 1 of column `image` has 400 million pixels"):
        loaded.predict(pd.DataFrame({"image": [picture("red", 200), bytes(header)]}))


@pytest.mark.parametrize("broken", [b"no image", b"", picture("red", 200)[:-30]])
def test_the_row_of_an_unreadable_image_is_named(loaded: mlflow.pyfunc.PyFuncModel, broken: bytes) -> None:
    rows = [picture("red", 200)] * 70 + [broken] + [picture("blue", 100)]
    with pytest.raises(MlflowException, match="row 70"):
        loaded.predict(pd.DataFrame({"image": rows}))


def test_texts_are_answered_and_an_empty_cell_is_named(exported: Callable[[tf.Module], Path], tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    shutil.copytree(exported(LengthModel()), paths.serving / "saved_model")
    write_json(paths.serving / "labels.json", {"kind": "text", "labels": ["long", "short"]})
    (paths.serving / "input_example.txt").write_text("naïve, two words", "utf-8")
    examples = [Example(str(n), f"test.csv:{n}", "short" if n < 5 else "long", "x" * n * 2) for n in range(1, 9)]
    write_reports(paths, "text", examples, [example.label for example in examples], np.full(8, 0.9))
    settings = Settings(name="lengths")
    publish(paths, settings, LINEAGE, "f" * 64)

    answers = predict(paths, settings, "lengths", ["tiny", "a much longer sentence"])
    assert [answer["label"] for answer in answers] == ["short", "long"]
    model = mlflow.pyfunc.load_model(next(tmp_path.glob("mlartifacts/models/*/artifacts")))
    assert list(model.predict({"text": ["tiny", "a much longer sentence"]})["label"]) == ["short", "long"]
    assert list(model.predict(model.input_example)["label"]) == ["long"]
    with pytest.raises(MlflowException, match="row 1"):
        model.predict(pd.DataFrame({"text": ["tiny", None]}))
    with pytest.raises(MlflowException, match="row 1 of column `text` is no text: it has half of a surrogate pair"):
        model.predict({"text": ["a", "\ud800"]})


def test_predict_takes_files_of_formats_that_tensorflow_cannot_read(published: Project, tmp_path: Path) -> None:
    (tmp_path / "red.tiff").write_bytes(picture("red", 200, "TIFF"))
    (tmp_path / "blue.png").write_bytes(picture("blue", 200))
    files = [str(tmp_path / "red.tiff"), str(tmp_path / "blue.png")]
    answers = predict(published.paths, published.settings, "colours@champion", files)
    assert [answer["input"] for answer in answers] == files
    assert [answer["label"] for answer in answers] == ["red", "blue"]
    assert set(answers[0]["probabilities"]) == set(COLOURS)


def test_predict_names_the_file_that_it_cannot_read(published: Project, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png is not an image"):
        predict(published.paths, published.settings, "colours", [str(tmp_path / "notes.png")])
    with pytest.raises(DataError, match=r"absent\.png cannot be read"):
        predict(published.paths, published.settings, "colours", [str(tmp_path / "absent.png")])


def test_what_goes_wrong_with_an_open_model_is_not_taken_for_a_failure_to_load_it(published: Project) -> None:
    with ExitStack() as stack:
        opened = stack.enter_context(open_model(published.paths, published.settings, "colours"))
        with pytest.raises(DataError, match=r"^row 1 of column `image` is not an image"):
            opened.answer([picture("red", 200), b"no image"])
    refusal = MlflowException("of the caller")
    with pytest.raises(MlflowException) as caught, open_model(published.paths, published.settings, "colours"):
        raise refusal
    assert caught.value is refusal


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("flowers", "has no model 'flowers'; it holds colours"),
        ("colours@best", r"no alias 'best'. Aliases: champion \(version 1\)"),
        ("colours/7", "no version '7'.*versions: 1"),
    ],
)
def test_an_unknown_model_alias_or_version_is_answered_with_those_that_exist(
    published: Project, reference: str, message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        resolve(published.paths, published.settings, reference)


def test_a_project_without_models_says_so_and_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no model is registered"):
        resolve(Paths(tmp_path), Settings(name="colours"), "colours")
    assert list(tmp_path.iterdir()) == []


def test_a_bmp_with_a_table_of_colours_is_refused_and_one_of_greys_answered(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    # TensorFlow reads the numbers of the colours as shades of grey, without a word.
    image = Image.open(io.BytesIO(picture("red", 200)))
    coloured, grey = io.BytesIO(), io.BytesIO()
    image.quantize(4).save(coloured, "BMP")
    image.convert("L").save(grey, "BMP")
    assert len(loaded.predict({"image": [grey.getvalue()]})) == 1
    with pytest.raises(MlflowException, match="row 1 of column `image` is a BMP file with a table of colours"):
        loaded.predict({"image": [picture("red", 200), coloured.getvalue()]})


def test_predict_takes_every_image_that_training_takes(published: Project, tmp_path: Path) -> None:
    first, second = (Image.open(io.BytesIO(picture("red", shade))) for shade in (200, 190))
    first.save(tmp_path / "moving.webp", save_all=True, append_images=[second], lossless=True)
    first.quantize(4).save(tmp_path / "table.bmp")
    files = [str(tmp_path / name) for name in ("moving.webp", "table.bmp")]
    answers = predict(published.paths, published.settings, "colours", files)
    assert [answer["label"] for answer in answers] == ["red", "red"]


def test_the_name_of_a_file_is_not_taken_for_a_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nofile.txt cannot be read: No such file"):
        _read_text(str(tmp_path / "nofile.txt"))
    assert _read_text("please read notes.txt") == "please read notes.txt"
    assert _read_text("long " * 80 + "notes.txt").endswith("notes.txt")
    (tmp_path / "a.txt").write_text("from a file")
    assert _read_text(str(tmp_path / "a.txt")) == "from a file"
    (tmp_path / "notes.md").write_text("from notes")
    assert _read_text(str(tmp_path / "notes.md")) == "from notes"
    (tmp_path / "scan.pdf").write_bytes(b"%PDF\xff")
    with pytest.raises(DataError, match=r"scan.pdf is not UTF-8 text"):
        _read_text(str(tmp_path / "scan.pdf"))
    (tmp_path / "many.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"many.csv is a table.*regraft score"):
        _read_text(str(tmp_path / "many.csv"))
    assert _read_text("no.csv here") == "no.csv here"
    assert _read_text("long " * 80) == "long " * 80
