"""Comparing two versions of a dataset: what changed, and what drifted."""

import io

import numpy as np
import pytest
from PIL import Image

from regraft.data.drift import compare, label_drift, numeric_drift, read_version
from regraft.data.records import Example, write_prepared
from regraft.errors import DataError
from tests.sounds import recorded

SQUARE = np.where(np.arange(2100) % 40 < 20, 1.0, -1.0)


def text(identity, label="a", words="some words", name=None):
    return Example(identity, name or f"table.csv:{identity}", label, words)


def written(folder, splits, kind="text"):
    labels = sorted({example.label for examples in splits.values() for example in examples})
    write_prepared(folder, kind, labels, splits)
    return read_version(folder)


def drift_of(report, what):
    return next(row for row in report["drift"] if row["what"].startswith(what))


def test_added_removed_relabelled_and_moved_examples_are_named(tmp_path):
    before = written(tmp_path / "a", {"train": [text("1"), text("2"), text("3", "b"), text("5")], "test": [text("4")]})
    after = written(tmp_path / "b", {"train": [text("1"), text("2", "b"), text("6")], "test": [text("4"), text("5")]})
    report = compare(before, after)
    assert report["added"] == ["table.csv:6"]
    assert report["removed"] == ["table.csv:3"]
    assert report["relabelled"] == [{"name": "table.csv:2", "before": "a", "after": "b"}]
    assert report["moved"] == [{"name": "table.csv:5", "before": "train", "after": "test"}]
    assert (report["before"], report["after"]) == (5, 5)


def test_the_same_data_has_no_difference_and_no_drift(tmp_path):
    rows = [text(str(number), "ab"[number % 2], "word " * number) for number in range(40)]
    report = compare(written(tmp_path / "a", {"train": rows}), written(tmp_path / "b", {"train": rows}))
    assert not any(report[part] for part in ("added", "removed", "relabelled", "moved"))
    assert [row["drifted"] for row in report["drift"]] == [False] * 5
    assert drift_of(report, "length")["size"] == 0.0


def test_longer_texts_and_another_mix_of_labels_are_drift(tmp_path):
    random = np.random.default_rng(0)

    def rows(first, longest, share):
        return [
            text(str(first + n), "a" if random.random() < share else "b", "x" * int(random.integers(10, longest)))
            for n in range(300)
        ]

    report = compare(
        written(tmp_path / "a", {"train": rows(0, 50, 0.5)}), written(tmp_path / "b", {"train": rows(1000, 90, 0.8)})
    )
    assert drift_of(report, "length")["drifted"]
    assert drift_of(report, "length")["size"] > 0.3
    assert drift_of(report, "labels")["drifted"]
    assert not drift_of(report, "share of letters")["drifted"]


def test_darker_images_are_drift(tmp_path):
    def images(folder, low, high):
        random = np.random.default_rng(low)
        examples = []
        for number in range(60):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(low, high, (20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
            examples.append(Example(f"{low}-{number:02d}", f"{number}.png", "ab"[number % 2], buffer.getvalue()))
        return written(folder, {"train": examples}, "image")

    report = compare(images(tmp_path / "a", 100, 200), images(tmp_path / "b", 60, 160))
    assert drift_of(report, "brightness")["drifted"]
    assert drift_of(report, "brightness")["size"] == -1.0
    assert not drift_of(report, "shorter side")["drifted"]
    assert drift_of(report, "shorter side")["before"] == 20


def test_effect_sizes_are_those_worked_out_by_hand():
    # Of the 9 pairs (new, old), 6 have the new one larger and 3 the old one.
    row = numeric_drift("x", np.array([1.0, 2.0, 6.0]), np.array([3.0, 4.0, 5.0]))
    assert row["size"] == pytest.approx((6 - 3) / 9)
    # chi-squared of [[10, 30], [30, 10]] is 80 * (10 * 10 - 30 * 30)^2 / 40^4 = 20, so V = sqrt(20 / 80).
    assert label_drift({"a": 10, "b": 30}, {"a": 30, "b": 10})["size"] == pytest.approx(0.5)


def test_versions_of_two_kinds_cannot_be_compared(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    image = written(tmp_path / "a", {"train": [Example("1", "1.png", "a", buffer.getvalue())]}, "image")
    with pytest.raises(DataError, match="image and text"):
        compare(image, written(tmp_path / "b", {"train": [text("1")]}))


def test_higher_values_are_drift_and_a_corrected_value_is_a_relabelled_example(tmp_path):
    def rows(shift):
        return [Example(str(n), f"t.csv:{n}", f"{n + shift:g}", "words", (float(n + shift),)) for n in range(100)]

    for folder, shift in (("a", 0), ("b", 40)):
        write_prepared(tmp_path / folder, "text", ["score"], {"train": rows(shift)}, task="regression")
    report = compare(read_version(tmp_path / "a"), read_version(tmp_path / "b"))
    assert report["relabelled"][0] == {"name": "t.csv:0", "before": "0", "after": "40"}
    row = report["drift"][0]
    assert (row["what"], row["drifted"], row["before"], row["after"]) == ("score", True, 49.5, 89.5)


def test_quieter_recordings_are_drift(tmp_path):
    def recordings(folder, loudness):
        examples = [
            Example(f"{loudness}-{n:02d}", f"{n}.wav", "ab"[n % 2], recorded(loudness * SQUARE[: 2000 + n], 8000))
            for n in range(60)
        ]
        return written(folder, {"train": examples}, "audio")

    report = compare(recordings(tmp_path / "a", 0.5), recordings(tmp_path / "b", 0.05))
    loudness = drift_of(report, "loudness")
    assert (loudness["drifted"], loudness["size"]) == (True, -1.0)
    assert loudness["before"] == pytest.approx(-6.02, abs=0.01)
    assert loudness["after"] == pytest.approx(-26.02, abs=0.01)
    assert not drift_of(report, "length in seconds")["drifted"]
    assert drift_of(report, "length in seconds")["before"] == pytest.approx(2029.5 / 8000)
    assert drift_of(report, "sampling rate")["after"] == 8000
    silent = written(tmp_path / "c", {"train": [Example("1", "1.wav", "a", recorded(0 * SQUARE, 8000))]}, "audio")
    assert silent.measures["loudness (root mean square, dB of full scale)"] == pytest.approx(-90.3, abs=0.01)
