"""What tables say of examples beside their target: whose they are, when they came about, what else they differ in.

Groups and times decide how splits may be made; other columns are for looking at a model's answers by. They stand beside
the target, or, a group only, in the names of files. Nothing is opened here.
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import regex

from regraft.data.records import SPLITS, Example
from regraft.data.tables import quoted
from regraft.errors import DataError

Time = int | float | datetime
SEARCH_TIMEOUT_S = 1  # of processor time for a file name, in which a usual pattern is found in microseconds


@dataclass(frozen=True)
class SplitColumns:
    """The columns of a table that hold each example's group and its time, None for none; and those to slice by."""

    group: str | None = None
    time: str | None = None
    slices: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """The columns of groups and times that are set, by their role, "group" or "time"."""
        return {role: column for role, column in (("group", self.group), ("time", self.time)) if column is not None}

    def without(self, header: Sequence[str], kept: Sequence[str] = ()) -> list[int]:
        """Return the places of columns in which a text or target may be looked for: the `kept`, and all of no role."""
        aside = {*self.names.values(), *self.slices}.difference(kept)
        return [place for place, column in enumerate(header) if column not in aside]

    def require(self, name: str, header: Sequence[str], taken: Mapping[str, str] | None = None) -> None:
        """Raise unless the table `name` has the columns, and they serve for nothing else.

        Args:
            name: What to call the table.
            header: Its columns.
            taken: Columns that have another use, with a word for it. A text may be the group, too: pairs that share a
                premise, or a question.

        Raises:
            DataError: With the columns there are.
        """
        for role, column, setting in self._settings():
            _require(column, setting, name, header)
            if taken and column in taken and (role, taken[column]) != ("group", "text"):
                raise DataError(f"{setting}, which {name} uses for the {taken[column]}; they must differ.")

    def require_slices(self, name: str, header: Sequence[str]) -> None:
        """Raise unless the table `name`, which is the test split, has the columns to slice by.

        Raises:
            DataError: With the columns there are.
        """
        for role, column, setting in self._settings():
            if role == "slice":
                _require(column, setting, name, header)

    def refuse(self) -> None:
        """Raise if a column is set: the source has no table that could hold it.

        Raises:
            DataError: With what to do instead.
        """
        for role, column, setting in self._settings():
            other = ", or set preprocess.group_pattern if the names of the files say it" if role == "group" else ""
            raise DataError(
                f"{setting}, and class folders have no columns. Put a labels.csv beside the files, with the columns "
                f"file, label and {column}{other}."
            )

    def cells(self, header: Sequence[str], fields: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """Return the group, the time and what to slice by in a row, as written but trimmed; "" where there is none."""
        row = dict(zip(header, fields, strict=True))
        group, time = (row.get(column, "") if column is not None else "" for column in (self.group, self.time))
        return group.strip(), time.strip(), tuple(row.get(column, "").strip() for column in self.slices)

    def _settings(self) -> Iterator[tuple[str, str, str]]:
        """Yield role and name of each column, and the words that say which setting asks for it."""
        for role, column in self.names.items():
            yield role, column, f"preprocess.{role}_column is {column!r}"
        for column in self.slices:
            yield "slice", column, f"preprocess.slice_columns names {column!r}"


def _require(column: str, setting: str, name: str, header: Sequence[str]) -> None:
    if column not in header:
        close = difflib.get_close_matches(column, header, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{setting}, and {name} has no such column; its columns are {quoted(header)}.{hint}")


NO_COLUMNS = SplitColumns()


def group_in_name(pattern: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the group that each name holds: what the one group of the regular expression `pattern` matches.

    Names without a match have no group.

    Args:
        pattern: Searched for in each name.
        names: Names of files, by what to call them in the answer.

    Raises:
        DataError: If there are names and none has one, or the search in one takes longer than `SEARCH_TIMEOUT_S`.
    """
    expression = regex.compile(pattern)
    found = {}
    for key, name in names.items():
        try:
            match = expression.search(name, timeout=SEARCH_TIMEOUT_S)
        except TimeoutError:
            raise DataError(
                f"preprocess.group_pattern is {pattern!r}, and after {SEARCH_TIMEOUT_S} s it is still being searched "
                f"for in {name!r}. Repetitions inside a repetition can be tried in too many ways: write it with fewer."
            ) from None
        if match and match[1]:
            found[key] = match[1]
    if names and not found:
        example = next(iter(names.values()))
        raise DataError(
            f"preprocess.group_pattern is {pattern!r}, and it finds a group in no file name; one is {example!r}. It is "
            "a regular expression, searched for in each name, with one pair of parentheses around the group."
        )
    return found


def parse_times(cells: Mapping[str, str]) -> tuple[dict[str, Time], dict[str, str]]:
    """Return the times in `cells`, by the same keys, and the reason for each cell that holds none.

    All are numbers, or all are dates with or without a time of day (ISO 8601; without an offset they count as UTC):
    what most cells are decides, and numbers if as many are each, such as 20240131.
    """
    numbers = {key: number for key, cell in cells.items() if (number := _number(cell)) is not None}
    dates = {key: date for key, cell in cells.items() if (date := _date(cell)) is not None}
    times: Mapping[str, Time] = numbers if len(numbers) >= len(dates) else dates
    wanted = "a finite number" if times is numbers else "an ISO date or time such as 2024-01-31 or 2024-01-31T12:00"
    reasons = {
        key: f"has {cell[:40]!r} for its time, and the others have {wanted}" if cell else "has no time"
        for key, cell in cells.items()
        if key not in times
    }
    return dict(times), reasons


def _number(cell: str) -> int | float | None:
    for parse in (int, float):  # whole numbers of any length are compared exactly
        try:
            value = parse(cell)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return None


def _date(cell: str) -> datetime | None:
    try:
        date = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def groups_across(splits: Mapping[str, Iterable[Example]]) -> dict[str, dict[str, int]]:
    """Return for each group that stands in two splits or more how many examples each of them has, in order of name."""
    counts: dict[str, Counter[str]] = {}
    for split, examples in splits.items():
        for example in examples:
            if example.group:
                counts.setdefault(example.group, Counter())[split] += 1
    return {group: dict(held) for group, held in sorted(counts.items()) if len(held) > 1}


def outranked(splits: Mapping[str, Sequence[Example]], across: Mapping[str, Mapping[str, int]]) -> set[str]:
    """Return the names of examples whose group (one of `across`) stands in a split that must stay clean of them.

    Train gives way to validation and to test, validation to test.
    """
    last = {group: max(held, key=SPLITS.index) for group, held in across.items()}
    return {
        example.name
        for split, examples in splits.items()
        for example in examples
        if example.group in last and last[example.group] != split
    }
