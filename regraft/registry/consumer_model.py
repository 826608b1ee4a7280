"""The registered model as consumers load it: raw images, recordings or texts in, labels or values out.

MLflow stores this file with every version ("models from code") and runs it in the consumer's process, where this
project is not installed. So it imports only mlflow, numpy, pandas and tensorflow (and tensorflow_text for most texts);
TensorFlow only when the model is loaded, because registering a version runs this file too.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model

BATCH_ROWS = 64
MOST_PIXELS = (
    100_000_000  # of an image, or of those decoded together: 3 bytes each, and a small file can claim any number
)
SEPARATOR = " ||| "  # between the two texts of a pair, as regraft.data.pairs has it
SERVER = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow's server sets it in its own process
EXPECTED = {"image": "the bytes of an image file", "audio": "the bytes of a WAV file", "text": "a string"}
BASE64 = (
    "This looks like base64, which MLflow's server decodes in `dataframe_records` and `dataframe_split`, not in "
    "`inputs` and `instances`."
)
READABLE = {
    "image": "an image that can be read ({}). Whole JPEG, PNG, GIF and BMP files are, as they are on disk.",
    "audio": "a recording that can be read ({}). Whole WAV files are, as they are on disk, of any sampling rate and "
    "number of channels, in PCM of 8, 16, 24 or 32 bits or floating point; convert FLAC, MP3 and others to WAV.",
}


class RawInputModel(mlflow.pyfunc.PythonModel):
    """Answers rows of the column `image` (JPEG, PNG, GIF or BMP), `audio` (WAV), both as bytes of a file, or `text`."""

    def load_context(self, context: Any) -> None:
        """Load the exported TensorFlow model and its labels."""
        folder = Path(context.artifacts["serving"])
        facts = json.loads((folder / "labels.json").read_text("utf-8"))
        self.kind: str = facts["kind"]
        self.labels: list[str] = facts["labels"]
        self.task: str = facts.get("task", "classification")
        self.pair: list[str] = facts.get("pair", [])
        self.conformal: dict[str, Any] = facts.get("conformal", {})
        self.doubt: dict[str, Any] = facts.get("doubt", {})
        self.says_unusual: bool = "unusual" in facts
        import tensorflow as tf

        if facts.get("tensorflow_text", self.kind == "text"):
            import tensorflow_text  # noqa: F401  (registers the tokenizer's operations)
        self.tf = tf
        self.exported = tf.saved_model.load(str(folder / "saved_model"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer every row.

        Args:
            context: Unused; MLflow passes it.
            model_input: One column, `image`, `audio` or `text`; of a model of pairs of texts one for each of the two,
                named as in the data it learnt from. MLflow has checked it against the signature.
            params: Unused; MLflow passes it.

        Returns:
            One row for each row of `model_input`, in its order and with its index. A model of classes answers `label`
            (string), `probability` of that label (double, in (0, 1]) and `probabilities` (every label with its
            probability). One that gives several labels at once: `labels` (those with a probability of 0.5 or more, a
            list of strings) and `probabilities`. One of real values: `value` (double, in the target's own unit); for
            several targets a column for each, named like it.

            If validation supports it, there is more, which holds the truth as often as `evaluate.coverage` asked
            (`labels.json` says how often): `set`, a list of classes, the most probable first and never empty, or of the
            labels that cannot be ruled out; `low` and `high` of a value, for several targets `NAME low`, `NAME high`.
            If `evaluate.risk` was set: `is_sure` (boolean), false where it is better to say "do not know". Unless
            validation is tiny: `unusual` (double, 0 or more), how far the input is from training data; of inputs like
            those of validation, 95% have at most 1.

        Raises:
            MlflowException: If a row is empty, of another type, or an image or recording that cannot be decoded; the
                message names the row. MLflow's model server answers it with status 400.
        """
        columns = [
            [self._checked(row, value, name) for row, value in enumerate(_rows(model_input[name]))]
            for name in self.pair or [self.kind]
        ]
        if self.pair and len(columns[0]) != len(columns[1]):
            first, second = map(len, columns)
            raise MlflowException.invalid_parameter_value(
                f"each row needs two texts: column `{self.pair[0]}` holds {first} and column `{self.pair[1]}` {second}"
            )
        values = [_joined(*texts) for texts in zip(*columns, strict=True)] if self.pair else columns[0]
        answers = np.empty((len(values), len(self.labels) + self.says_unusual), np.float32)
        for rows in _batches([_pixels(value) if isinstance(value, bytes) else 0 for value in values]):
            answers[rows] = self._answer(values[rows], rows.start)
        index = model_input.index if len(model_input) == len(values) else None
        told = self._columns(answers[:, : len(self.labels)])
        if self.says_unusual and "unusual" not in told:  # a target of that name keeps its column
            told["unusual"] = answers[:, -1].astype(np.float64)
        return pd.DataFrame(told, index=index)

    def _columns(self, answers: np.ndarray) -> dict[str, Any]:
        """Return what consumers get, by column, from answers of shape (rows, outputs)."""
        if self.task == "regression":
            wide = answers.T.astype(np.float64)
            names = self.labels if len(self.labels) > 1 else ["value"]
            columns = dict(zip(names, wide, strict=True))
            widths = self.conformal.get("half_widths", [])
            ends: dict[str, Any] = {}
            for name, values, width in zip(names, wide, widths, strict=bool(widths)):
                prefix = f"{name} " if len(names) > 1 else ""
                ends |= {f"{prefix}low": values - width, f"{prefix}high": values + width}
            # A target that is itself called `NAME low` keeps its column.
            return columns | {name: values for name, values in ends.items() if name not in columns}
        probabilities = [dict(zip(self.labels, map(float, row), strict=True)) for row in answers]
        if self.task == "multilabel":
            held = [[name for name, share in row.items() if share >= 0.5] for row in probabilities]
            return {"labels": held, "probabilities": probabilities, **self._certainty(answers)}
        best = answers.argmax(axis=1) if len(answers) else np.empty(0, np.int64)
        return {
            "label": [self.labels[place] for place in best],
            "probability": [float(row[place]) for row, place in zip(answers, best, strict=True)],
            "probabilities": probabilities,
            **self._certainty(answers),
        }

    def _certainty(self, answers: np.ndarray) -> dict[str, Any]:
        """Return the columns `set` and `is_sure`, those that the model has."""
        columns = self._sets(answers) if self.conformal else {}
        if self.doubt:
            wide = answers.astype(np.float64)
            many = self.task == "multilabel"
            sure = np.maximum(wide, 1.0 - wide).prod(axis=1) if many else wide.max(axis=1)
            columns["is_sure"] = list(map(bool, sure >= self.doubt["least_sure"]))
        return columns

    def _sets(self, answers: np.ndarray) -> dict[str, Any]:
        """Return the column `set`."""
        held = answers >= self.conformal["least_probability"]
        if self.task != "multilabel":
            held |= answers == answers.max(axis=1, keepdims=True)
        order = np.argsort(-answers, axis=1, kind="stable")
        return {"set": [[self.labels[k] for k in ranked if row[k]] for ranked, row in zip(order, held, strict=True)]}

    def _checked(self, row: int, value: Any, column: str) -> bytes | str:
        if self.kind != "text" and isinstance(value, bytes | bytearray | memoryview) and len(value):
            content = bytes(value)
            if self.kind == "image" and _has_colour_table(content):
                raise MlflowException.invalid_parameter_value(
                    f"row {row} of column `image` is a BMP file with a table of colours, which TensorFlow takes for "
                    "shades of grey; save it as PNG, or as BMP with 24 bits a pixel"
                )
            if self.kind == "image" and (pixels := _pixels(content)) > MOST_PIXELS:
                raise MlflowException.invalid_parameter_value(
                    f"row {row} of column `image` has {pixels / 1e6:.0f} million pixels, and at most "
                    f"{MOST_PIXELS / 1e6:.0f} million are decoded; make it smaller"
                )
            return content
        if self.kind == "text" and isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise MlflowException.invalid_parameter_value(
                    f"row {row} of column `{column}` is no text: it has half of a surrogate pair (\\ud800 to \\udfff)"
                ) from None
            if not value.strip():
                raise MlflowException.invalid_parameter_value(
                    f"row {row} of column `{column}` has no text; examples without any taught the model nothing"
                )
            return value
        is_bytes = isinstance(value, bytes | bytearray)
        received = f"{len(value)} bytes" if is_bytes else f"{type(value).__name__} {value!r:.60}"
        raise MlflowException.invalid_parameter_value(
            f"row {row} of column `{column}` must be {EXPECTED[self.kind]}, got {received}"
        )

    def _answer(self, batch: list[bytes | str], start: int) -> np.ndarray:
        """Return probabilities or values, float32 (len(batch), K), and in a column more how unusual each row is.

        `start` is the row number of the first; the last column is there if the model says so.
        """
        names = ["values" if self.task == "regression" else "probabilities", *(["unusual"] * self.says_unusual)]
        try:
            reply = self.exported.serve(self.tf.constant(batch, self.tf.string))
            return np.column_stack([reply[name] for name in names])
        except self.tf.errors.InvalidArgumentError as error:
            if self.kind != "text" and len(batch) == 1:
                received = f"{len(batch[0])} bytes, beginning {batch[0][:8]!r}"
                raise MlflowException.invalid_parameter_value(
                    f"row {start} of column `{self.kind}` is not {READABLE[self.kind].format(received)}"
                    + (
                        f" {BASE64}"
                        if isinstance(batch[0], bytes) and re.fullmatch(rb"[A-Za-z0-9+/=_-]{4,}", batch[0])
                        else ""
                    )
                ) from error
            if len(batch) == 1:
                raise
        # One of them is at fault, and TensorFlow does not say which.
        return np.concatenate([self._answer([value], start + place) for place, value in enumerate(batch)])


def _batches(pixels: list[int]) -> Iterator[slice]:
    """Yield the rows to answer together: at most BATCH_ROWS, of at most MOST_PIXELS, or a single one."""
    start, held = 0, 0
    for row, more in enumerate(pixels):
        if row > start and (row - start == BATCH_ROWS or held + more > MOST_PIXELS):
            yield slice(start, row)
            start, held = row, 0
        held += more
    if start < len(pixels):
        yield slice(start, len(pixels))


def _pixels(content: bytes) -> int:
    """Return width times height as the header of a PNG, GIF, BMP or JPEG file says; 0 if it says nothing.

    Of a GIF the first picture is answered, but all are unpacked, to a byte a pixel; so it counts for a third of them
    all where that is more.
    """
    if content.startswith(b"\x89PNG") and len(content) >= 24:
        return int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    if content.startswith(b"GIF8") and len(content) >= 10:
        canvas = int.from_bytes(content[6:8], "little") * int.from_bytes(content[8:10], "little")
        return max(canvas, _pixels_of_frames(content) // 3)
    if content.startswith(b"BM") and len(content) >= 26:
        width, height = (int.from_bytes(content[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width * height)
    if not content.startswith(b"\xff\xd8"):
        return 0
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: all but tables and extensions
            height, width = (int.from_bytes(content[place + at : place + at + 2], "big") for at in (5, 7))
            return width * height
        # Bytes of 0xFF may fill the space before a marker.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return 0


def _pixels_of_frames(content: bytes) -> int:
    """Return width times height of all pictures in a GIF file, as far as it can be followed."""
    place = 13 + _colours(content[10:11])
    found = 0
    while content[place : place + 1] in (b"!", b","):
        if content[place : place + 1] == b"!":  # an extension: what it is, then blocks
            place += 2
        else:
            width, height = (int.from_bytes(content[place + at : place + at + 2], "little") for at in (5, 7))
            found += width * height
            place += 11 + _colours(content[place + 9 : place + 10])
        while content[place : place + 1] not in (b"\0", b""):
            place += 1 + content[place]
        place += 1
    return found


def _colours(flags: bytes) -> int:
    """Return the size in bytes of the table of colours that a flag of a GIF file announces."""
    return 3 << (1 + (flags[0] & 7)) if flags and flags[0] & 0x80 else 0


def _has_colour_table(content: bytes) -> bool:
    """Return whether an image file is a BMP whose pixels are numbers of colours in a table, not plain greys."""
    if content[:2] != b"BM" or int.from_bytes(content[28:30], "little") > 8:
        return False
    begin, end = 14 + int.from_bytes(content[14:18], "little"), int.from_bytes(content[10:14], "little")
    table = np.frombuffer(content[begin:end], np.uint8)
    entries = table[: len(table) // 4 * 4].reshape(-1, 4)[:, :3]
    return not np.array_equal(entries, np.arange(256)[:, None].repeat(3, axis=1))


def _joined(first: Any, second: Any) -> Any:
    """Return a pair of texts as the exported graph takes it; bars in a text are not taken for the separator."""
    return SEPARATOR.join(text.replace(SEPARATOR.strip(), " ") for text in (first, second))


def _rows(column: pd.Series) -> list[Any]:
    """Return the cells of `column`, one a row.

    `predict({"text": ["a", "b"]})` reaches us from MLflow as a single cell, a list. Its server takes lists of `inputs`
    apart by itself, so there such a cell is what somebody put into a record, and no text.
    """
    cells = column.tolist()
    if len(cells) == 1 and isinstance(cells[0], list | np.ndarray) and SERVER not in os.environ:
        return list(cells[0])
    return cells


set_model(RawInputModel())
