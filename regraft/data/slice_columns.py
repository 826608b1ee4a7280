"""Columns of the source's table by which test answers are looked at, kept beside the prepared data.

They are no input of the model, and a file of their own, data/slices.csv, so that naming another column makes no trained
model stale.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from regraft.data.records import Example
from regraft.errors import DataError
from regraft.files import write_text

_NAME = "name"


def write_slices(path: Path, columns: Sequence[str], test: Sequence[Example]) -> None:
    """Write CSV: the name of each example of the test split, and its cell in each of `columns`, in order of name."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow([_NAME, *columns])
    if columns:
        writer.writerows([example.name, *example.slices] for example in sorted(test, key=lambda example: example.name))
    write_text(path, lines.getvalue())


def read_slices(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of each column to slice by, in the order of the examples `names`.

    Raises:
        DataError: If `path` is missing, or lacks one of them.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        columns = header[1:]
        cells = {name: held for name, *held in rows}
        return {column: [cells[name][place] for name in names] for place, column in enumerate(columns)}
    except (FileNotFoundError, KeyError) as error:
        raise DataError(
            f"{path} does not say what the columns to slice by hold ({error}). Run `regraft run --force preprocess`."
        ) from None
