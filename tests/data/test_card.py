"""The contact sheet: whose examples are on it, and what it shows of pictures, sounds and texts."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from regraft.data.card import choose_rows, describe_rows, draw_sheet, log_mel
from regraft.data.records import Example
from tests.sounds import recorded, tone

TEXT_LINE = 16


def texts(label, count, split="", **given):
    return [Example(f"{split}{label}{n:03}", f"{split}/{label}/{n}", label, f"text {n}", **given) for n in range(count)]


def of_split(split, labels, count):
    return [example for label in labels for example in texts(label, count, split)]


def png(colour, size=(12, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))


def test_every_class_shows_eight_examples_with_some_of_each_split():
    splits = {split: of_split(split, "ab", 20) for split in ("train", "validation", "test")}
    rows = choose_rows(splits, ["a", "b"], "classification")
    assert [row.title for row in rows] == ["a", "b"]
    for row in rows:
        assert [split for split, _ in row.examples] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
        assert all(example.label == row.title for _, example in row.examples)


def test_where_a_split_is_short_of_examples_others_fill_the_row():
    splits = {"train": of_split("train", "a", 20), "validation": of_split("validation", "a", 1), "test": []}
    (row,) = choose_rows(splits, ["a"], "classification")
    assert [split for split, _ in row.examples] == ["train"] * 7 + ["validation"]


def test_of_many_classes_the_twelve_largest_are_shown_in_their_order():
    labels = [f"{n:02}" for n in range(30)]
    splits = {"train": [e for n, label in enumerate(labels) for e in texts(label, 3 + (n >= 20))]}
    shown = [row.title for row in choose_rows(splits, labels, "classification")]
    assert shown == ["00", "01", *labels[20:]]


def test_copies_are_shown_once():
    once = texts("a", 1)
    (row,) = choose_rows({"train": once * 5}, ["a"], "classification")
    assert len(row.examples) == 1


def test_real_values_have_a_row_for_each_quarter():
    train = [Example(f"{n:03}", f"{n}", f"{n}", "x", (float(n),)) for n in range(100)]
    rows = choose_rows({"train": train}, ["price"], "regression")
    assert [row.title for row in rows] == [
        "price, lowest quarter: 0 to 24",
        "price, second quarter: 25 to 49",
        "price, third quarter: 50 to 74",
        "price, highest quarter: 75 to 99",
    ]
    assert all(len(row.examples) == 8 for row in rows)


def test_labels_that_hold_at_once_have_a_row_each_and_no_example_is_needed():
    train = [Example("1", "1", "x|y", "both", (1.0, 1.0, 0.0)), Example("2", "2", "", "none", (0.0, 0.0, 0.0))]
    rows = choose_rows({"train": train}, ["x", "y", "z"], "multilabel")
    assert [(row.title, [example.id for _, example in row.examples]) for row in rows] == [("x", ["1"]), ("y", ["1"])]
    assert choose_rows({}, [], "classification") == []
    assert pixels(draw_sheet("image", [], of=0)).ndim == 3


def test_the_sheet_is_the_same_whatever_order_the_examples_come_in():
    splits = {split: of_split(split, "ab", 20) for split in ("train", "test")}
    backwards = {split: held[::-1] for split, held in reversed(splits.items())}
    one, other = (
        draw_sheet("text", choose_rows(held, ["a", "b"], "classification"), of=2) for held in (splits, backwards)
    )
    assert one == other


def test_pictures_fill_their_cells_without_being_stretched(tmp_path):
    (tmp_path / "blue.png").write_bytes(png((0, 0, 200), (400, 100)))
    held = {"train": [Example("1", "1", "a", png((200, 0, 0))), Example("2", "2", "a", tmp_path / "blue.png")]}
    sheet = pixels(draw_sheet("image", choose_rows(held, ["a"], "classification"), of=1))
    for colour, shape in (((200, 0, 0), (64, 96)), ((0, 0, 200), (24, 96))):  # 12 x 8 times 8; 400 x 100 by 4.17
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == shape


@pytest.mark.parametrize("text", ["", "one\ntwo\tthree", "x" * 5000, "名前 😀 \x00 \u202e abc"])
def test_any_text_stays_on_its_line(text):
    held = {"train": [Example("1", "1", "a", text), *texts("a", 2)]}
    rows = choose_rows(held, ["a"], "classification")
    assert pixels(draw_sheet("text", rows, of=1)).shape[1] == 840
    assert len(describe_rows(rows)[0]["examples"][0]["text"]) <= 240


def test_names_of_classes_that_are_whole_articles_are_cut_without_measuring_all_of_them(monkeypatch):
    measured: list[int] = []

    def getlength(font, text):
        measured.append(len(text))
        return measure(font, text)

    measure = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", getlength)
    label = "word " * 5000
    draw_sheet("text", choose_rows({"train": [Example("1", "1", label, "text")]}, [label], "classification"), of=1)
    assert max(measured) <= 241


def test_a_tone_is_a_line_at_its_height_and_silence_is_black():
    low, high = (log_mel(tone(hz, rate_hz=16000).astype(np.float32), 16000) for hz in (300.0, 3000.0))
    rows = [int(levels.mean(axis=1).argmax()) for levels in (low, high)]
    # 64 bands between 20 and 8000 Hz, evenly in mel (31.7 to 2840): 300 Hz is 402 mel, band 7.6 of 64 from the bottom.
    mels = [2595 * np.log10(1 + hz / 700) for hz in (300.0, 3000.0)]
    expected = [63 - ((mel - 31.75) / ((2840.02 - 31.75) / 65) - 1) for mel in mels]
    assert rows == pytest.approx(expected, abs=1.0)
    assert not log_mel(np.zeros(100, np.float32), 8000).any()


@pytest.mark.parametrize(("seconds", "rate_hz"), [(0.0002, 8000), (0.5, 1000), (12.0, 48000), (0.3, 192000)])
def test_recordings_of_any_length_and_rate_make_a_picture(seconds, rate_hz):
    sound = recorded(tone(200.0, rate_hz=rate_hz, seconds=seconds), rate_hz)
    held = {"train": [Example("1", "1", "a", sound)]}
    sheet = pixels(draw_sheet("audio", choose_rows(held, ["a"], "classification"), of=1))
    cell = sheet[28:124, 8:104]
    assert cell.max() > 100
    assert (cell[..., 0] == cell[..., 2]).all()
