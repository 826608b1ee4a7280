"""Targets: what an example is to be answered with, from the cells of a table or the name of a folder.

Three tasks: one class of several (classification), any number of labels at once (multilabel), real values (regression).
"""

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.errors import DataError

log = logging.getLogger(__name__)

CLASSIFICATION, MULTILABEL, REGRESSION = "classification", "multilabel", "regression"
TASKS = (CLASSIFICATION, MULTILABEL, REGRESSION)
SEPARATOR = "|"

# A column is taken for numbers if this share of its cells are; the others are set aside, with a reason each.
_NUMERIC_SHARE = 0.95
# More distinct numbers than this, some with a fraction, are measured and not classes (ratings by halves make 9 or 19).
_FRACTIONS = 20
# Whole numbers: classes, unless there are more of them than this and these shares of them are too rare to be classes,
# the smaller one if they leave gaps: counts thin out at their ends, while classes are numbered without gaps.
_WHOLE_NUMBERS = 10
_MOST, _MANY = 0.5, 0.2
# How programs write marks of labels in place of 0 and 1.
_WORDS = {"false": 0.0, "true": 1.0}
# Targets are stored and learned as float32.
_LARGEST = 3.4e38


class UnusableTarget(Exception):
    """The cell or folder name is no target; the message says why, in words that fit after an example's name."""


@dataclass(frozen=True)
class Target:
    """What one example is to be answered with.

    Attributes:
        label: The class; for the other tasks the values in words, by which people and copies are compared.
        values: One number for each target: real values, or 1 for a label that holds and 0 for one that does not; empty
            for a class.
    """

    label: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class TargetReader:
    """Turns an example's cells into its target.

    Attributes:
        task: "classification", "multilabel" or "regression".
        columns: Where the cells come from, in their order.
        names: Names of the values: the columns, or the labels found in cells of the form `a|b`; none for classes.
        is_separated: Whether cells have the form `a|b`.
    """

    task: str
    columns: tuple[str, ...]
    names: tuple[str, ...] = ()
    is_separated: bool = False

    def read(self, cells: Sequence[str]) -> Target:
        """Return the target that `cells`, one for each column, stand for.

        Raises:
            UnusableTarget: If a cell is empty or not what the task asks for.
        """
        if self.task == CLASSIFICATION:
            return Target(class_name(cells[0]))
        if self.task == REGRESSION:
            values = tuple(_number(column, cell) for column, cell in zip(self.columns, cells, strict=True))
            return Target(value_list(values), values)
        if self.is_separated:
            held = set(split_labels(cells[0]))
            values = tuple(float(name in held) for name in self.names)
        else:
            values = tuple(_mark(column, cell) for column, cell in zip(self.columns, cells, strict=True))
        return Target(label_set(self.names, values), values)


def class_name(text: str) -> str:
    """Return the class that `text` names: trimmed, with its accents composed (NFC).

    File systems and editors differ in how they spell an é.

    Raises:
        UnusableTarget: If nothing is left, or it has a line break in it.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if not name:
        raise UnusableTarget("has no label")
    if len(name.splitlines()) > 1:
        raise UnusableTarget("has a line break in its label")
    return name


def split_labels(cell: str) -> list[str]:
    """Return the labels in a cell of the form `a|b`, each as `class_name` spells it; none of `|` alone.

    Raises:
        UnusableTarget: If the cell is empty, or a label has a line break in it.
    """
    if not cell.strip():
        raise UnusableTarget(f"has no label (where none holds, write `{SEPARATOR}`)")
    return [class_name(part) for part in cell.split(SEPARATOR) if part.strip()]


def label_set(names: Sequence[str], values: Sequence[float]) -> str:
    """Return the names whose value is 1, in words: `a|b`, or nothing if there is none."""
    return SEPARATOR.join(name for name, value in zip(names, values, strict=True) if value)


def value_list(values: Sequence[float]) -> str:
    """Return real values in words: `2.5, 3`."""
    return ", ".join(f"{value:g}" for value in values)


def reader_for(task: str, cells: Mapping[str, Sequence[str]], *, rare_below: int) -> TargetReader:
    """Return the reader of targets in the columns `cells`, after deciding the task if `task` is "auto".

    Several columns: marks of labels if every cell is 0 or 1 (or false or true), else real values. One column: real
    values if it holds numbers, of which either some have a fraction and more than 20 are distinct, or more than 10 are
    distinct and occur as counts do and numbered classes do not: most fewer than `rare_below` times, or a fifth of them
    while there are gaps between them; else classes.

    Args:
        task: "auto", "classification", "multilabel" or "regression".
        cells: All cells of each target column of the training data, at least one column.
        rare_below: A class needs so many examples.

    Raises:
        DataError: If the columns cannot be what the task asks for.
    """
    columns = tuple(cells)
    if task == "auto":
        task = _task_of_several(cells) if len(columns) > 1 else _task_of(next(iter(cells.values())), rare_below)
        several = next((cell for cell in cells[columns[0]] if SEPARATOR in cell), None)
        if task == CLASSIFICATION and several is not None:
            log.warning(
                "took each cell of column %r for one class, also %r; if these are several labels, set preprocess.task "
                "to multilabel",
                columns[0], several,
            )  # fmt: skip
    if task == CLASSIFICATION:
        if len(columns) > 1:
            raise DataError(
                f"preprocess.target_column names {len(columns)} columns ({', '.join(columns)}), and a class stands in "
                "one. Name that one, or set preprocess.task to multilabel or regression."
            )
        return TargetReader(CLASSIFICATION, columns)
    if task == MULTILABEL and len(columns) == 1 and not _are_marks(cells[columns[0]]):
        if not any(SEPARATOR in cell for cell in cells[columns[0]]):
            log.warning(
                "no cell of column %r holds more than one label, such as %r: they are separated by `%s`",
                columns[0], next(iter(cells[columns[0]]), ""), SEPARATOR,
            )  # fmt: skip
        return TargetReader(MULTILABEL, columns, _separated_names(cells[columns[0]]), is_separated=True)
    wanted, is_fit = ("0 or 1 (or false or true)", _are_marks) if task == MULTILABEL else ("a number", _are_numbers)
    unfit = [column for column in columns if not is_fit(cells[column])]
    if unfit:
        odd = _first_unfit(cells[unfit[0]], marks=task == MULTILABEL)
        advice = (
            "Write numbers with a decimal point."
            if task == REGRESSION and _as_number(odd.replace(",", ".")) is not None
            else "Name other columns in preprocess.target_column, or set preprocess.task to classification."
        )
        raise DataError(
            f"the task is {task}, so every target must be {wanted}, and column {unfit[0]!r} holds {odd!r}. {advice}"
        )
    return TargetReader(task, columns, columns)


def _task_of_several(cells: Mapping[str, Sequence[str]]) -> str:
    return MULTILABEL if all(map(_are_marks, cells.values())) else REGRESSION


def _task_of(cells: Sequence[str], rare_below: int) -> str:
    if not _are_numbers(cells):
        return CLASSIFICATION
    counts = Counter(value for cell in cells if (value := _as_number(cell)) is not None and math.isfinite(value))
    if not counts:
        return REGRESSION  # nothing but nan and inf: every example will be set aside with that for its reason
    if any(not value.is_integer() for value in counts):
        return REGRESSION if len(counts) > _FRACTIONS else CLASSIFICATION
    rare = sum(count < rare_below for count in counts.values()) / len(counts)
    has_gaps = max(counts) - min(counts) >= len(counts)
    are_counts = rare > _MOST or (rare >= _MANY and has_gaps)
    return REGRESSION if len(counts) > _WHOLE_NUMBERS and are_counts else CLASSIFICATION


def _separated_names(cells: Sequence[str]) -> tuple[str, ...]:
    names: set[str] = set()
    for cell in cells:
        try:
            names.update(split_labels(cell))
        except UnusableTarget:
            continue  # it will be set aside with its reason when the example is read
    return tuple(sorted(names))


def _are_marks(cells: Sequence[str]) -> bool:
    """Return whether every cell that is not empty is 0 or 1, false or true."""
    return all(_as_mark(cell) is not None for cell in cells if cell.strip())


def _are_numbers(cells: Sequence[str]) -> bool:
    """Return whether the cells that are not empty are numbers, but for a few."""
    filled = [cell for cell in cells if cell.strip()]
    numbers = sum(_as_number(cell) is not None for cell in filled)
    return numbers > 0 and numbers >= _NUMERIC_SHARE * len(filled)


def _first_unfit(cells: Sequence[str], *, marks: bool) -> str:
    return next(
        (cell for cell in cells if cell.strip() and (_as_mark if marks else _as_number)(cell) is None),
        "nothing",
    )


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _as_mark(cell: str) -> float | None:
    """Return 1 for a label that holds, 0 for one that does not; None for anything else."""
    value = _WORDS.get(cell.strip().lower(), _as_number(cell))
    return value if value in (0.0, 1.0) else None


def _number(column: str, cell: str) -> float:
    if not cell.strip():
        raise UnusableTarget(f"has no {column}")
    value = _as_number(cell)
    if value is None:
        raise UnusableTarget(f"has {cell.strip()[:40]!r} as {column}, which is not a number")
    if not abs(value) <= _LARGEST:  # true for NaN as well
        raise UnusableTarget(f"has {cell.strip()[:40]!r} as {column}, which is not a finite number (of float32)")
    return value


def _mark(column: str, cell: str) -> float:
    if not cell.strip():
        raise UnusableTarget(f"has no {column}")
    value = _as_mark(cell)
    if value is None:
        raise UnusableTarget(f"has {cell.strip()[:40]!r} as {column}, which is neither 0 nor 1")
    return value
