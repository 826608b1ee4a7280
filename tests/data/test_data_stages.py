"""The stages download and preprocess, from a source to prepared data."""

import hashlib
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import tasks.download
import tasks.preprocess
from regraft.data.project_audit import audit_project
from regraft.data.records import open_split, read_info
from regraft.data.sources import parse
from regraft.errors import DataError, ResourceError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings
from tasks.preprocess import sort_labels
from tests.sounds import record_tones


def pictures(folder, classes=("cat", "dog"), count=20):
    rng = np.random.default_rng(len(str(classes)))
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / label / f"{number}.png")
    return folder


def run(paths, source, **settings):
    paths.root.mkdir(exist_ok=True)
    tasks.download.run(DownloadSettings(source=source), paths)
    tasks.preprocess.run(PreprocessSettings(**settings), paths)


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def outputs(paths):
    return {**tree(paths.root / "data"), **tree(paths.reports)}


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path / "project")


def test_a_folder_becomes_prepared_data_and_a_report(paths, tmp_path):
    source = pictures(tmp_path / "source")
    (source / "LICENSE").write_text("CC0")
    run(paths, f"folder:{source}")
    info, report = read_info(paths.prepared), read_json(paths.reports / "data.json")
    assert (info.kind, info.labels) == ("image", ("cat", "dog"))
    assert sum(info.counts.values()) == 40
    assert report["examples"] == info.counts
    assert report["counts"]["test"]["cat"] + report["counts"]["test"]["dog"] == info.counts["test"]
    assert report["splits_made"] == ["validation", "test"]
    assert report["ignored_files"] == 1
    assert report["median_short_side_px"] == 9
    download = read_json(paths.reports / "download.json")
    assert download["licence_files"] == ["LICENSE"]
    assert download["digest"] == parse(f"folder:{source}", paths.root).fingerprint(tmp_path / "index.json")["digest"]


def test_the_same_source_gives_the_same_bytes_twice(paths, tmp_path):
    source = pictures(tmp_path / "source")
    run(paths, f"folder:{source}")
    first = outputs(paths)
    shutil.rmtree(paths.root)
    run(paths, f"folder:{source}")
    assert outputs(paths) == first


def test_adding_pictures_moves_none_and_replaces_the_old_outputs(paths, tmp_path):
    source = pictures(tmp_path / "source")
    run(paths, f"folder:{source}")
    before = {
        identity: split
        for split in ("train", "validation", "test")
        for identity in open_split(paths.prepared, split).ids
    }
    for number in range(10):
        pixels = np.full((9, 12, 3), number, np.uint8)
        Image.fromarray(pixels).save(source / "cat" / f"new{number}.png")
    run(paths, f"folder:{source}")
    after = {
        identity: split
        for split in ("train", "validation", "test")
        for identity in open_split(paths.prepared, split).ids
    }
    assert len(after) == 50
    assert before.items() <= after.items()


def test_a_table_becomes_prepared_data_and_a_report(paths, tmp_path):
    table = tmp_path / "mail.csv"
    rows = [f"message number {number},{'ham' if number % 2 else 'spam'}" for number in range(60)]
    table.write_text("message,category\n" + "\n".join([*rows, rows[0]]) + "\n")
    run(paths, f"csv:{table}")
    report = read_json(paths.reports / "data.json")
    assert report["kind"] == "text"
    assert report["columns"] == {"text": "message", "target": "category"}
    assert report["duplicates"] == {"extra_copies": 1, "across_splits": 0, "conflicting_labels": 0}
    assert report["text_length_characters"] == {"p50": 17, "p90": 17, "p99": 17, "max": 17}
    split = open_split(paths.prepared, "train")
    for row, text in enumerate(split.inputs(range(len(split)))):
        assert split.ids[row] == hashlib.sha256(text.encode()).hexdigest()
        assert split.class_names[split.labels[row]] == ("ham" if int(text.split()[-1]) % 2 else "spam")


def test_the_embedded_digits_are_whole(paths):
    run(paths, "package:mnist5k")
    info = read_info(paths.prepared)
    assert info.labels == tuple("0123456789")
    counts = read_json(paths.reports / "data.json")["counts"]
    assert {label: sum(counts[split][label] for split in counts) for label in info.labels} == dict.fromkeys(
        info.labels, 500
    )
    # The first row of the file is a zero; its brightest stroke passes through the upper right.
    first = np.asarray(Image.open(paths.raw / "0" / "0000.png"))
    assert first.shape == (28, 28)
    assert first.max() >= 250
    assert not first[:4].any()
    assert read_json(paths.reports / "download.json")["licence"]


def test_rejects_are_written_down_even_when_the_run_stops(paths, tmp_path):
    source = pictures(tmp_path / "source")
    for number in range(3):
        (source / "cat" / f"note{number}.png").write_text("not a picture")
    with pytest.raises(DataError, match="3 of 43 examples"):
        run(paths, f"folder:{source}")
    report = read_json(paths.reports / "data.json")
    assert [reject["name"] for reject in report["rejects"]] == ["cat/note0.png", "cat/note1.png", "cat/note2.png"]
    assert not paths.prepared.exists()
    assert not list(paths.scratch.iterdir())


@pytest.mark.parametrize(
    ("classes", "message"), [(("cat",), "one class 'cat'"), (("cat", "dog", "fox"), "class 'fox' has 1")]
)
def test_too_few_classes_or_examples_stop_the_run(paths, tmp_path, classes, message):
    source = pictures(tmp_path / "source", classes)
    if "fox" in classes:
        for file in sorted((source / "fox").iterdir())[1:]:
            file.unlink()
    with pytest.raises(DataError, match=message):
        run(paths, f"folder:{source}")


def test_a_folder_without_images_is_refused_before_it_is_copied(paths, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"found 1 \.txt"):
        run(paths, f"folder:{tmp_path}/source")
    assert not paths.raw.exists()


def test_a_setting_of_the_other_kind_is_refused(paths, tmp_path):
    source = pictures(tmp_path / "source")
    with pytest.raises(DataError, match=r"preprocess\.kind is 'text'"):
        run(paths, f"folder:{source}", kind="text")


def test_a_full_disk_is_found_before_copying(paths, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ResourceError, match="Free some space"):
        run(paths, f"folder:{pictures(tmp_path / 'source')}")
    assert not paths.raw.exists()


def test_preprocess_without_raw_data_says_what_to_run(paths):
    with pytest.raises(DataError, match="run the stage download first"):
        tasks.preprocess.run(PreprocessSettings(), paths)


def test_number_labels_are_in_the_order_of_their_values():
    assert sort_labels({"10", "9", "2"}) == ["2", "9", "10"]
    assert sort_labels({"10", "9", "b"}) == ["10", "9", "b"]


def leaky(folder):
    """Pictures in splits of their own, with a re-saved train picture in test and a test picture in validation."""
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        pictures(folder / split, classes=(f"{split} cat", f"{split} dog"), count=count)
        for label in ("cat", "dog"):
            (folder / split / f"{split} {label}").rename(folder / split / label)
    Image.open(folder / "train" / "cat" / "3.png").save(folder / "test" / "cat" / "same pixels.bmp")
    shutil.copyfile(folder / "test" / "dog" / "1.png", folder / "validation" / "cat" / "copy.png")
    return folder


LEAKS = [["test/cat/same pixels.bmp", "train/cat/3.png"], ["test/dog/1.png", "validation/cat/copy.png"]]


def test_copies_across_splits_are_reported(paths, tmp_path):
    run(paths, f"folder:{leaky(tmp_path / 'source')}")
    leakage = read_json(paths.reports / "data.json")["leakage"]
    assert leakage["exact"] == {"pairs": 2, "listed": LEAKS}
    assert leakage["near"] == {"pairs": 0, "listed": []}
    assert leakage["conflicts"] == {"pairs": 1, "listed": LEAKS[1:]}
    assert leakage["across_splits"] == 2
    assert leakage["across_by_splits"] == {"train and test": 1, "validation and test": 1}
    assert (leakage["policy"], leakage["dropped"]) == ("report", {"examples": 0, "listed": []})
    assert sum(read_info(paths.prepared).counts.values()) == 42


def test_copies_can_be_dropped_from_train_and_validation_but_never_from_test(paths, tmp_path):
    run(paths, f"folder:{leaky(tmp_path / 'source')}", leaks="drop")
    dropped = {"train/cat/3.png", "validation/cat/copy.png"}
    assert read_json(paths.reports / "data.json")["leakage"]["dropped"] == {"examples": 2, "listed": sorted(dropped)}
    names = {split: set(open_split(paths.prepared, split).names) for split in ("train", "validation", "test")}
    assert not dropped & set().union(*names.values())
    assert len(names["test"]) == 9
    assert audit_project_of(paths, "folder:unused").across == []


def test_copies_can_stop_the_run_with_their_list(paths, tmp_path):
    with pytest.raises(DataError, match=r"2 pair\(s\) of copies stand in different splits") as caught:
        run(paths, f"folder:{leaky(tmp_path / 'source')}", leaks="refuse")
    assert "test/cat/same pixels.bmp (test) and train/cat/3.png (train)" in str(caught.value)
    assert read_json(paths.reports / "data.json")["leakage"]["across_splits"] == 2
    assert not paths.prepared.exists()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_leak_fraction": 0.1}, r"2 of 9 \(22.2%\) test examples have a copy(.|\n)*test/cat/same pixels.bmp"),
        ({"max_conflict_fraction": 0.01}, r"2 of 42 \(4.8%\) examples are exact copies of one with another label"),
    ],
)
def test_a_limit_on_leaks_or_conflicts_stops_the_run_until_they_are_dropped(paths, tmp_path, limit, message):
    source = f"folder:{leaky(tmp_path / 'source')}"
    with pytest.raises(DataError, match=message):
        run(paths, source, **limit)
    leakage = read_json(paths.reports / "data.json")["leakage"]
    assert (leakage["leaked_test_examples"], leakage["conflicting_examples"]) == (2, 2)
    run(paths, source, leaks="drop", **limit)
    leakage = read_json(paths.reports / "data.json")["leakage"]
    assert (leakage["leaked_test_examples"], leakage["conflicting_examples"]) == (0, 0)


def test_classes_that_differ_in_nothing_but_case_are_announced(paths, tmp_path, caplog):
    table = "".join(f"words {n},{['Good', 'good', 'bad'][n % 3]}\n" for n in range(30))
    (tmp_path / "words.csv").write_text(f"text,label\n{table}")
    run(paths, f"csv:{tmp_path / 'words.csv'}")
    assert "'Good' and 'good' differ in nothing but case or spaces" in caplog.text


def test_copies_with_other_labels_are_announced(paths, tmp_path, caplog):
    run(paths, f"folder:{leaky(tmp_path / 'source')}")
    assert "2 example(s) are exact copies of one with another label, such as" in caplog.text
    caplog.clear()
    run(paths, f"folder:{tmp_path / 'source'}", leaks="drop")
    assert "another label" not in caplog.text


def test_made_splits_never_part_copies(paths, tmp_path):
    source = pictures(tmp_path / "source")
    for file in sorted(source.rglob("*.png")):
        Image.open(file).save(file.with_suffix(".bmp"))
    run(paths, f"folder:{source}", leaks="refuse")
    leakage = read_json(paths.reports / "data.json")["leakage"]
    assert (leakage["exact"]["pairs"], leakage["across_splits"]) == (40, 0)


def audit_project_of(paths, source):
    paths.root.mkdir(exist_ok=True)
    sections = ("preprocess", "backbone", "embed", "finetune", "evaluate", "promote", "placement", "tracking")
    lines = ["name: x", "seed: 7", f"download: {{source: '{source}'}}", *(f"{section}: {{}}" for section in sections)]
    paths.params.write_text("\n".join(lines))
    return audit_project(paths)


def test_the_audit_of_a_source_and_of_what_was_prepared_from_it_agree(paths, tmp_path):
    source = f"folder:{leaky(tmp_path / 'source')}"
    before = audit_project_of(paths, source)
    assert not paths.raw.exists()
    assert before.as_json() == {"exact": LEAKS, "near": [], "conflicts": LEAKS[1:], "across_splits": 2}
    run(paths, source)
    assert audit_project_of(paths, source).as_json() == before.as_json()


def test_copies_of_recordings_are_found_in_the_source_and_in_what_was_prepared_from_it(paths, tmp_path):
    source = tmp_path / "tones"
    record_tones(source, per_class=12)
    shutil.copyfile(source / "low" / "01.wav", source / "low" / "again.wav")
    shutil.copyfile(source / "high" / "02.wav", source / "low" / "other.wav")
    pairs = [["high/02.wav", "low/other.wav"], ["low/01.wav", "low/again.wav"]]
    before = audit_project_of(paths, f"folder:{source}").as_json()
    run(paths, f"folder:{source}")
    after = audit_project_of(paths, "folder:unused").as_json()
    for found in (before, after):
        assert (found["exact"], found["conflicts"], found["across_splits"]) == (pairs, pairs[:1], 0)


def test_the_audit_of_a_table_names_lines(paths, tmp_path):
    rows = [f"message number {number} about something,{'ham' if number % 2 else 'spam'}" for number in range(20)]
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "train.csv").write_text("text,label\n" + "\n".join([*rows, rows[4]]) + "\n")
    (tmp_path / "mail" / "test.csv").write_text("text,label\nMESSAGE number 7 about something!,spam\n")
    found = audit_project_of(paths, f"csv:{tmp_path / 'mail'}")
    assert found.as_json() == {
        "exact": [["train.csv:22", "train.csv:6"]],
        "near": [["test.csv:2", "train.csv:9"]],
        "conflicts": [],
        "across_splits": 1,
    }
    assert len(found.near_conflicts) == 1
