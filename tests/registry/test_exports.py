"""A network in another format is proven to answer alike before it stays, and says what it takes."""

import hashlib
import json
import shutil
from typing import Any, get_args

import numpy as np
import pytest
import tensorflow as tf

from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import RegistryError, RegraftError
from regraft.registry import exports
from regraft.registry.formats import FORMATS, Format
from regraft.registry.serving import SAVED_MODEL, export_saved_model
from tests.evaluation.small_models import picture, random_classifier

LABELS = ("dark", "light")
TEXTS: list[Any] = ["good day", "very very bad days", "a", "übel", "good " * 40, "x", "so so", "days"]
PICTURES = [picture(value) for value in range(20, 250, 30)]


@pytest.fixture(scope="module", params=["image", "text"])
def exported(request, tmp_path_factory):
    """A SavedModel and the folder of its prepared data."""
    folder = tmp_path_factory.mktemp(request.param)
    classifier = random_classifier(request.param, tmp_path_factory.mktemp("backbones"), LABELS)
    contents: list[Any] = PICTURES if request.param == "image" else TEXTS
    export_saved_model(classifier, folder, example=contents[0])
    examples = [
        Example(hashlib.sha256(str(number).encode()).hexdigest(), f"{number}", LABELS[number % 2], content)
        for number, content in enumerate(contents)
    ]
    write_prepared(
        folder / "prepared", request.param, LABELS, {"train": examples, "validation": examples[:2], "test": examples}
    )
    return tf.saved_model.load(str(folder / SAVED_MODEL)), folder / "prepared"


def copied(*, off=0.0):
    """A format that is a file naming a SavedModel, whose answers are off by so much."""
    kept = {}

    def write(loaded, path, prepared):
        kept["loaded"] = loaded
        path.write_bytes(b"network")

    def load(path):
        assert path.read_bytes() == b"network"
        network = exports._registered(kept["loaded"])
        return lambda prepared: network(prepared) + np.array([off, 0.0], np.float32)

    return Format("copied", (), "model.bin", write, load)


def export(exported, wanted, folder, **options):
    loaded, prepared = exported
    asked = {"labels": LABELS, "task": "classification", "examples": 1000, "tolerance": 0.01}
    return exports.export(loaded, wanted, folder, prepared=prepared, **{**asked, **options})


def test_what_is_the_same_is_proven_to_be(exported, tmp_path):
    facts = export(exported, copied(), tmp_path, examples=5)
    assert facts["proof"] | {"registered": 0, "exported": 0} == {
        "test_examples": 5, "largest_difference": 0.0, "same_answers": 1.0, "measure": "accuracy", "registered": 0,
        "exported": 0,
    }  # fmt: skip
    assert facts["proof"]["registered"] == facts["proof"]["exported"]
    assert facts == json.loads((tmp_path / exports.FACTS).read_text("utf-8"))
    assert set(facts["speed"]["batch_sizes"]) == {"1", "8", "32"}
    assert set(facts["inputs"]) in ({"pixels"}, {"token_ids", "padding_mask"})


def test_one_that_answers_otherwise_is_refused(exported, tmp_path):
    loaded, prepared = exported
    with pytest.raises(
        RegistryError, match=r"accuracy on 8 test examples is 0\.5000, and it was 1\.0000: more is lost"
    ):
        export((Perfect(loaded, prepared), prepared), copied(off=9.0), tmp_path)
    assert not (tmp_path / exports.FACTS).exists()


class Perfect:
    """A SavedModel that answers a test split, asked as a whole, with its labels."""

    def __init__(self, loaded, prepared):
        self.prepare = loaded.prepare
        self.answer = self
        self.concrete_functions = [self]
        [network] = loaded.answer.concrete_functions
        self.structured_input_signature = network.structured_input_signature
        self.labels = open_split(prepared, "test").labels

    def __call__(self, **prepared):
        return {"probabilities": tf.constant(np.eye(2, dtype=np.float32)[self.labels])}


def fail(*_: Any) -> Any:
    raise ValueError("no such operation: Strange")


def test_a_network_that_the_converter_cannot_hold_is_one_clear_error(exported, tmp_path):
    with pytest.raises(RegistryError, match=r"cannot be written as odd: ValueError: no such operation: Strange\. Try"):
        export(exported, Format("odd", (), "m", fail, fail), tmp_path)


def test_a_missing_package_is_named_with_how_to_get_it():
    with pytest.raises(RegraftError, match=r"no_such_module.*pip install \"regraft\[odd\]\""):
        Format("odd", ("no_such_module",), "m", fail, fail).check_installed()


def test_a_version_without_its_network_is_refused(exported, tmp_path):
    with pytest.raises(RegistryError, match="registered by an earlier version"):
        export((object(), exported[1]), copied(), tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_answer_as_the_registered_network_does(exported, tmp_path, name):
    for module in FORMATS[name].modules:
        pytest.importorskip(module)  # they are extras
    facts = export(exported, FORMATS[name], tmp_path, tolerance=0.5)
    assert facts["proof"]["largest_difference"] < (1e-4 if name == "onnx" else 0.1)
    assert FORMATS[name].file in facts["files"]
    shutil.rmtree(tmp_path)


def test_the_command_offers_every_format():
    from regraft.cli import export as command

    hint = get_args(command.__annotations__["to"])[0]
    assert set(get_args(hint)) == set(FORMATS)
