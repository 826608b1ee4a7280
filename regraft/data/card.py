"""The data card's picture: a few examples of each class in each split, the same bytes for the same data."""

import heapq
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from regraft.data import audio
from regraft.data.images import to_rgb
from regraft.data.records import SPLITS, Example
from regraft.data.targets import CLASSIFICATION, MULTILABEL

_ROWS = 12
_PER_ROW = 8
_PER_SPLIT = {"train": 4, "validation": 2, "test": 2}
_VALUE_BANDS = ("lowest", "second", "third", "highest")
_SHORT_TEXT = 240

_CELL_PX = 96
_GAP_PX = 8
_TITLE_PX = 20
_LINE_PX = 16
_SURFACE, _INK, _MUTED, _EMPTY = "#ffffff", "#1c2126", "#5f6872", "#f0f1f3"

# Sounds are drawn as the model sees them, more or less: this picture is for people, and no model depends on it.
_MEL_BANDS = 64
_FRAME_S = 0.025
_LONGEST_S = 10.0
_RANGE_DB = 50.0


@dataclass(frozen=True)
class Row:
    """Examples shown beside each other: what they have in common, and each with its split."""

    title: str
    examples: list[tuple[str, Example]]


def choose_rows(splits: Mapping[str, Sequence[Example]], labels: Sequence[str], task: str) -> list[Row]:
    """Return examples to show: at most 12 rows of at most 8, with some of every split.

    A row is a class, or a label; where there are more, those with most training examples have one. Real values have a
    row for each quarter of the range of ranks of the first. Within a row the examples with the smallest ids are taken,
    which is as good as at random, and each content once.

    Args:
        splits: Examples by split.
        labels: Names of classes or labels, in their order; or of values.
        task: "classification", "multilabel" or "regression".
    """
    held: dict[str, list[tuple[str, Example]]] = {}
    everything = [(split, example) for split in SPLITS for example in splits.get(split, ())]
    if task == CLASSIFICATION:
        for split, example in everything:
            held.setdefault(example.label, []).append((split, example))
    elif task == MULTILABEL:
        for split, example in everything:
            for name, value in zip(labels, example.values, strict=True):
                if value:
                    held.setdefault(name, []).append((split, example))
    else:
        ordered = sorted(everything, key=lambda pair: (pair[1].values[0], pair[1].id, pair[1].name))
        quarter = math.ceil(len(ordered) / len(_VALUE_BANDS))
        for number, band in enumerate(_VALUE_BANDS):
            if part := ordered[number * quarter : (number + 1) * quarter]:
                ends = f"{part[0][1].values[0]:g} to {part[-1][1].values[0]:g}"
                held[f"{labels[0]}, {band} quarter: {ends}"] = part
        labels = list(held)
    in_train = {name: sum(split == "train" for split, _ in held.get(name, ())) for name in labels}
    shown = sorted(labels, key=lambda name: -in_train[name])[:_ROWS]  # sorting keeps the order of equals
    return [Row(name, _pick(held[name])) for name in labels if name in set(shown) and name in held]


def _pick(held: Iterable[tuple[str, Example]]) -> list[tuple[str, Example]]:
    """Return at most 8 of the examples: so many of each split as it is due, then others, in the order of splits."""
    by_split: dict[str, dict[str, Example]] = {}
    for split, example in held:
        first = by_split.setdefault(split, {}).setdefault(example.id, example)
        if example.name < first.name:
            by_split[split][example.id] = example
    ordered = {
        split: [found[identity] for identity in heapq.nsmallest(_PER_ROW, found)] for split, found in by_split.items()
    }
    due = {split: ordered.get(split, [])[:number] for split, number in _PER_SPLIT.items()}
    for split in SPLITS:
        room = _PER_ROW - sum(map(len, due.values()))
        due[split] += ordered.get(split, [])[len(due[split]) :][:room]
    return [(split, example) for split in SPLITS for example in due[split]]


def describe_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what reports/data.json says of the examples shown: name, label and split, of texts their beginning."""
    return [
        {
            "title": row.title,
            "examples": [
                {
                    "name": example.name,
                    "label": example.label,
                    "split": split,
                    **({"text": _shorten(example.content)} if isinstance(example.content, str) else {}),
                }
                for split, example in row.examples
            ],
        }
        for row in rows
    ]


def draw_sheet(kind: str, rows: Sequence[Row], *, of: int) -> bytes:
    """Draw the examples in `rows` as one PNG: pictures, sounds as log-mel pictures, texts as lines.

    Args:
        kind: "image", "text" or "audio".
        rows: What to show.
        of: How many rows there could be, which is said if there are more.
    """
    width = _GAP_PX + _PER_ROW * (_CELL_PX + _GAP_PX)
    heights = [
        _TITLE_PX + (_LINE_PX * len(row.examples) if kind == "text" else _CELL_PX + _LINE_PX) + _GAP_PX for row in rows
    ]
    sheet = Image.new("RGB", (width, _GAP_PX + sum(heights) + _TITLE_PX), _SURFACE)
    draw = ImageDraw.Draw(sheet)
    title_font, small_font = _font(14, bold=True), _font(11)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        draw.text((_GAP_PX, top), _fit(row.title, title_font, width - 2 * _GAP_PX), _INK, title_font)
        for place, (split, example) in enumerate(row.examples):
            if kind == "text":
                at = (_GAP_PX, top + _TITLE_PX + place * _LINE_PX)
                draw.text(at, split, _MUTED, small_font)
                text = _fit(_shorten(str(example.content)), small_font, width - 3 * _GAP_PX - 70)
                draw.text((at[0] + 70, at[1]), text, _INK, small_font)
                continue
            left = _GAP_PX + place * (_CELL_PX + _GAP_PX)
            picture = _picture(kind, example)
            draw.rectangle((left, top + _TITLE_PX, left + _CELL_PX - 1, top + _TITLE_PX + _CELL_PX - 1), _EMPTY)
            middle = (left + (_CELL_PX - picture.width) // 2, top + _TITLE_PX + (_CELL_PX - picture.height) // 2)
            sheet.paste(picture, middle)
            caption = split if example.label == row.title else f"{split}: {example.label or 'no label'}"
            draw.text((left, top + _TITLE_PX + _CELL_PX), _fit(caption, small_font, _CELL_PX), _MUTED, small_font)
        top += height
    if len(rows) < of:
        draw.text((_GAP_PX, top), f"{len(rows)} of {of}, those with most training examples", _MUTED, small_font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(kind: str, example: Example) -> Image.Image:
    """Return an image or a sound, no larger than a cell; small images are enlarged by a whole factor."""
    content = example.content.read_bytes() if isinstance(example.content, Path) else example.content
    if isinstance(content, str):
        raise TypeError(f"a {kind} is not a text")
    if kind == "audio":
        recording = audio.decode(content)
        levels = log_mel(recording.samples, recording.rate_hz)
        return Image.fromarray(levels).convert("RGB").resize((_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR)
    image = to_rgb(content)
    factor = _CELL_PX // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_CELL_PX, _CELL_PX))
    return image


def log_mel(samples: NDArray[np.floating], rate_hz: int) -> NDArray[np.uint8]:
    """Return a sound as grey levels, shape (bands, frames): pitch upwards in mel bands, time to the right.

    White is the loudest moment, black `_RANGE_DB` below it; silence is black. Of a long sound the beginning is drawn.

    Args:
        samples: Shape (N,), N >= 1.
        rate_hz: Samples a second.
    """
    frame = max(round(_FRAME_S * rate_hz), 16)
    wave = np.asarray(samples[: round(_LONGEST_S * rate_hz)], np.float64)
    wave = np.pad(wave, (0, max(0, frame - len(wave))))
    hop = max((len(wave) - frame) // (2 * _CELL_PX), frame // 4, 1)
    frames = np.lib.stride_tricks.sliding_window_view(wave, frame)[::hop] * np.hanning(frame)
    size = 2 ** math.ceil(math.log2(4 * frame))
    power = np.abs(np.fft.rfft(frames, size)) ** 2  # (frames, frequencies)
    lowest_mel, highest_mel = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (20.0, rate_hz / 2))
    edges_hz = 700.0 * (10.0 ** (np.linspace(lowest_mel, highest_mel, _MEL_BANDS + 2) / 2595.0) - 1.0)
    frequencies = np.fft.rfftfreq(size, 1.0 / rate_hz)
    low, middle, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    # Not `@`: the threads of a matrix product cost more than they save here, and its last bits depend on their number.
    loudness = np.einsum("bf,tf->bt", np.maximum(np.minimum(rising, falling), 0.0), power)  # (bands, frames)
    loudest = loudness.max()
    if not loudest > 0.0:
        return np.zeros(loudness.shape, np.uint8)
    below = 10.0 * np.log10(np.maximum(loudness / loudest, 1e-12))
    return np.round(255.0 * np.clip(1.0 + below[::-1] / _RANGE_DB, 0.0, 1.0)).astype(np.uint8)


def _font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font that is the same on every machine and knows more alphabets than Pillow's own."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), size_px, layout_engine=ImageFont.Layout.BASIC)


def _fit(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """Return `text` on one line, cut where it would be wider than `width_px`."""
    text = " ".join(text[:_SHORT_TEXT].split())
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHORT_TEXT else text[: _SHORT_TEXT - 1] + "…"
