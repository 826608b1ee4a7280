"""Datasets of TensorFlow Datasets, from builders made here, prepared in a temporary folder."""

import re
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

import tasks.download
import tasks.preprocess
from regraft import project
from regraft.data.records import open_split
from regraft.data.sources import parse
from regraft.data.tfds import _builder, kind_of
from regraft.errors import DataError, ResourceError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings, load_settings

FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
    "text": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["a/b", ".hidden class"]),
    "other": tfds.features.ClassLabel(num_classes=3),
    "score": np.float32,
}


class Made(tfds.core.GeneratorBasedBuilder):
    """A dataset of generated examples; subclasses say which features it has."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test", "extra")
    KEYS: ClassVar[tuple[str, ...]] = ()
    SUPERVISED: ClassVar[tuple[str, str] | None] = None

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({key: FEATURES[key] for key in self.KEYS}),
            supervised_keys=self.SUPERVISED,
            homepage="https://example.org/made",
            citation="Nobody (2020)",
            redistribution_info={"license": "CC0-1.0"},
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for number in range(12):
            value = 20 * number + len(split)
            example = {
                "image": np.full((6 + number, 9, 3), value % 256, np.uint8),
                "text": f"number {number} of {split},\nso to say",
                "label": -1 if split == "test" and number == 11 else number % 2,
                "other": number % 3,
                "score": number / 8,
            }
            yield number, {key: example[key] for key in self.KEYS}


class MadeImages(Made):
    KEYS = ("image", "label")
    SUPERVISED = ("image", "label")


class MadeTexts(Made):
    KEYS = ("text", "label")  # no supervised keys: the only text and the only label


class MadeScores(Made):
    KEYS = ("text", "score", "label")
    SUPERVISED = ("text", "score")


class MadeRiddle(Made):
    KEYS = ("text", "label", "other")


class MadeWhole(Made):
    KEYS = ("text", "label")
    SPLITS = ("everything",)


class MadeSplitless(Made):
    KEYS = ("text", "label")
    SPLITS = ("one", "two")


class MadeFarAway(Made):
    KEYS = ("text", "label")

    def _split_generators(self, dl_manager):
        raise requests.exceptions.ConnectionError("Failed to resolve 'example.org'")


class MadeByHand(Made):
    KEYS = ("text", "label")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors for words.zip."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(str(dl_manager.manual_dir))}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.fixture
def paths(tmp_path, data_dir):
    (tmp_path / "project").mkdir()
    return Paths(tmp_path / "project")


def download(paths, source):
    tasks.download.run(DownloadSettings(source=source), paths)
    return read_json(paths.reports / "download.json")


def test_images_arrive_with_their_classes_splits_and_pixels(paths):
    report = download(paths, "tfds:made_images")
    tasks.preprocess.run(PreprocessSettings(), paths)
    train, test = open_split(paths.prepared, "train"), open_split(paths.prepared, "test")
    assert train.class_names == (".hidden class", "a/b")
    assert len(test) == 11  # the twelfth has no class
    assert sum(read_json(paths.reports / "data.json")["examples"].values()) == 23
    names = {name.rpartition("/")[0] for name in train.names}
    assert names == {"train/a_b", "train/hidden_class"}
    assert [item["name"] for item in report["skipped"]] == ["extra", "test"]
    assert (report["licence"], report["homepage"]) == ("CC0-1.0", "https://example.org/made")
    assert report["version"].startswith("made_images/1.2.0 ")
    assert report["files"] == 24
    described = read_json(paths.reports / "croissant.json")
    assert (described["license"], described["url"]) == ("CC0-1.0", "https://example.org/made")
    assert (described["name"], described["version"]) == ("made_images", "1.2.0")


def test_exporting_twice_gives_the_same_bytes(paths):
    first = download(paths, "tfds:made_images")
    before = {path.name: path.read_bytes() for path in paths.raw.rglob("*.*")}
    assert download(paths, "tfds:made_images:1.2.0")["digest"] == first["digest"]
    assert {path.name: path.read_bytes() for path in paths.raw.rglob("*.*")} == before


def test_texts_arrive_with_their_classes_and_line_breaks(paths):
    download(paths, "tfds:made_texts")
    tasks.preprocess.run(PreprocessSettings(min_examples_per_class=3), paths)
    test = open_split(paths.prepared, "test")
    label_of = dict(zip(test.inputs(range(len(test))), (test.class_names[row] for row in test.labels), strict=True))
    assert label_of == {
        f"number {number} of test,\nso to say": (".hidden class" if number % 2 else "a/b") for number in range(11)
    }


def test_supervised_keys_decide_and_numbers_stay_numbers(paths):
    download(paths, "tfds:made_scores")
    lines = (paths.raw / "train.csv").read_text().splitlines()
    assert sorted(line.rpartition(",")[2] for line in lines if line.startswith("so to say")) == sorted(
        str(number / 8) for number in range(12)
    )


def test_a_dataset_with_one_split_has_it_for_train(paths):
    download(paths, "tfds:made_whole")
    assert [path.name for path in paths.raw.iterdir()] == ["train.csv"]


def test_what_is_prepared_needs_neither_network_nor_the_code_that_made_it(paths, data_dir):
    class MadeAndForgotten(Made):
        KEYS = ("text", "label")

    download(paths, "tfds:made_and_forgotten")
    tfds.core.registered._DATASET_REGISTRY.pop("made_and_forgotten")
    first = (paths.raw / "train.csv").read_bytes()
    report = download(paths, "tfds:made_and_forgotten")
    assert (paths.raw / "train.csv").read_bytes() == first
    assert (report["citation"], report["licence"]) == ("Nobody (2020)", "CC0-1.0")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:mnits", r"none of them.* Did you mean `tfds:\w*mnist`"),
        ("tfds:made_texts:9.9.9", r"at version 9\.9\.9, only: 1\.2\.0"),
        ("tfds:glue/nothing", "BuilderConfig nothing not found.*configurations: cola, sst2"),
        ("tfds:made_riddle", r"no telling what is to be learned.* label \(ClassLabel\), other \(ClassLabel\)"),
        ("tfds:made_splitless", "splits one, two, and none called train"),
        ("tfds:made_by_hand", "cannot be prepared.*Ask the authors"),
    ],
)
def test_a_dataset_that_cannot_be_had_is_explained(paths, source, message):
    with pytest.raises(DataError, match=message):
        download(paths, source)
    assert not paths.raw.exists()


@pytest.mark.parametrize(
    "source", ["tfds:", "tfds:Mnist", "tfds:mnist:latest", "tfds:hub:glue", "tfds:../x", "tfds:a b"]
)
def test_a_name_of_another_form_is_refused_when_planning(tmp_path, source):
    with pytest.raises(DataError, match=re.compile("tfds:NAME")):
        parse(source, tmp_path)


def test_an_unreachable_server_is_an_error_that_may_pass_and_leaves_nothing(paths, data_dir):
    with pytest.raises(ResourceError, match=r"Failed to resolve 'example.org'\. Is its server reachable"):
        download(paths, "tfds:made_far_away")
    assert not paths.raw.exists()
    assert not list(data_dir.glob("made_far_away/*/1.2.0"))


def test_planning_takes_the_name_alone_and_imports_no_tensorflow():
    code = (
        "import sys; from pathlib import Path; from regraft.data.sources import parse; import regraft.data.tfds; "
        "print(parse('tfds:mnist:3.0.1', Path('.')).fingerprint(Path('none')),"
        "{'tensorflow', 'tensorflow_datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'source': 'tfds:mnist:3.0.1'} set()"


def test_an_unknown_name_is_refused_without_tensorflow_and_without_a_server():
    code = (
        "import sys; from pathlib import Path; from regraft.data.sources import parse; from regraft.data import tfds\n"
        "try: tfds.kind_of(parse('tfds:mnits', Path('.')))\n"
        "except tfds.DataError: print({'tensorflow', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_catalogued_dataset_says_its_kind_before_anything_is_downloaded(data_dir, tmp_path):
    assert kind_of(parse("tfds:mnist", tmp_path)) == "image"
    assert kind_of(parse("tfds:imdb_reviews/plain_text", tmp_path)) == "text"


def test_a_new_project_keeps_the_name_of_the_dataset(paths):
    made = project.create(paths.root / "new", source="tfds:made_texts", name="words")
    settings = load_settings(made.params)
    assert (settings.download.source, settings.preprocess.kind) == ("tfds:made_texts", "text")


def test_the_checksums_by_which_downloads_are_verified_are_known(data_dir, tmp_path):
    checksums = _builder(parse("tfds:mnist", tmp_path)).url_infos
    assert len(checksums) == 4
    assert all(len(of.checksum) == 64 for of in checksums.values())
