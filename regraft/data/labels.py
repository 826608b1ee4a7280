"""A table of labels beside the files it labels: which files, of which split, with which target.

What kind the files are of (images, recordings) does not matter here; nothing is opened but the table.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.data.grouping import NO_COLUMNS, SplitColumns
from regraft.data.sources import is_table_name, split_of
from regraft.data.tables import Table, choose_all_columns, quoted, read_table
from regraft.errors import DataError

log = logging.getLogger(__name__)

FILE_NAMES = (
    "file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_id", "img",
    "picture", "photo", "audio", "audio_path", "recording", "wav", "name",
)  # fmt: skip
SPLIT_NAMES = ("split", "subset", "partition")


@dataclass(frozen=True)
class LabelledFile:
    """A file, its split, and the cells of its target as written.

    `where` is its row (`labels.csv:17`), or empty without a table; `group`, `time` and `slices` are cells, too, or
    empty.
    """

    name: str
    split: str
    targets: tuple[str, ...]
    where: str
    group: str = ""
    time: str = ""
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """What a table of labels says.

    Attributes:
        files: One entry for each file that is named and exists, in the order of the table.
        rejects: Rows that label no file: (the file or the row, the reason in words that fit after it).
        ignored: Files that no row names, the table itself not among them.
        columns: The columns taken for "file", "target" (several with commas) and, if there is one, "split", "group" and
            "time".
        target_columns: The columns of targets, in the order of each file's cells.
    """

    files: list[LabelledFile]
    rejects: list[tuple[str, str]]
    ignored: list[str]
    columns: dict[str, str]
    target_columns: tuple[str, ...]


def find_labels(names: Iterable[str]) -> str | None:
    """Return the table called `labels` at the top among the files `names`, e.g. `labels.csv`.

    Raises:
        DataError: If there are two.
    """
    found = [name for name in names if is_table_name(name) and Path(name.lower()).stem == "labels" and "/" not in name]
    if len(found) > 1:
        raise DataError(f"the source has {quoted(found)}, and one table must say what the labels are; keep one.")
    return found[0] if found else None


def refuse_target(target_column: str | Sequence[str] | None) -> None:
    """Raise if a column of targets is named: no table says what the labels of the files are.

    Raises:
        DataError: With what to do instead.
    """
    _refuse(
        "target_column",
        target_column,
        "the source has no labels.csv that names its files: its class folders would be the labels. Put one beside the "
        "files, with a column called file and those of the targets",
    )


def refuse_text(text_column: str | Sequence[str] | None) -> None:
    """Raise if a column of texts is named for files.

    Raises:
        DataError: With what to do instead.
    """
    _refuse("text_column", text_column, "the source is a folder of files. Name a table with `csv:FILE`")


def _refuse(setting: str, columns: str | Sequence[str] | None, why: str) -> None:
    if columns:
        named = quoted([columns] if isinstance(columns, str) else columns)
        raise DataError(f"preprocess.{setting} is {named}, and {why}; or leave preprocess.{setting} at null.")


def read_labels(
    raw: Path,
    names: Sequence[str],
    target_column: str | Sequence[str] | None,
    split_columns: SplitColumns = NO_COLUMNS,
) -> Labels | None:
    """Return what the table `labels.*` in the folder `raw` says; None if there is none, or it names no file.

    The column of files is the one with most cells that are relative paths of files. If none has any, names without
    folder or suffix will do in a column called `file`, `image`, ..., provided that half of them mean one file alone.
    Splits come from a column called `split`, else from folders called after splits, if all files are in such.

    Args:
        raw: The folder.
        names: All files in it, relative to it.
        target_column: Column of targets, or several; None guesses one, as for tables of texts.
        split_columns: Columns of groups and times, and those to slice by.

    Raises:
        DataError: If there are two such tables, it cannot be parsed, a column named in the settings is missing, a cell
            of the split column names no split, or none names train.
    """
    table_name = find_labels(names)
    if table_name is None:
        return None
    read = read_table(raw / table_name)
    table = Table(read.name, read.header, [row for row in read.rows if len(row[1]) == len(read.header)])
    rejects = [
        (f"{read.name}:{line}", f"has {len(fields)} field(s) where the header has {len(read.header)}")
        for line, fields in read.rows
        if len(fields) != len(read.header)
    ]
    others = [name for name in names if name != table_name]
    found = _file_column(table, others)
    if found is None:
        log.warning(
            "%s is left out: no column of it (%s) names files beside it%s",
            table_name, quoted(table.header), f", such as {others[0]!r}" if others else "",
        )  # fmt: skip
        return None
    column, meant = found
    split = next((name for name in table.header if name.lower() in SPLIT_NAMES and name != column), None)
    named = [target_column] if isinstance(target_column, str) else list(dict.fromkeys(target_column or ()))
    split_columns.require(table.name, table.header, {column: "file", **dict.fromkeys(named, "target")})
    apart = {*split_columns.names.values(), *split_columns.slices, *([split] if split else [])}
    targets = tuple(_target_column(table, column, split, apart, name) for name in named)
    targets = targets or (_target_column(table, column, split, apart, None),)
    file_place, target_places = table.header.index(column), [table.header.index(target) for target in targets]
    files_named = {line: meant[cell] for line, fields in table.rows if (cell := fields[file_place].strip()) in meant}
    splits = _splits(table, split, files_named)

    files: list[LabelledFile] = []
    first: dict[str, str] = {}
    for line, fields in table.rows:
        where, cell, name = f"{table.name}:{line}", fields[file_place].strip(), files_named.get(line)
        if name is not None and name not in first:
            first[name] = where
            cells = tuple(fields[place] for place in target_places)
            files.append(LabelledFile(name, splits[line], cells, where, *split_columns.cells(table.header, fields)))
        elif name is not None:
            rejects.append((where, f"names {name!r} again, after {first[name]}"))
        elif cell:
            rejects.append((cell, f"is named in {where}, and there is no such file, or more than one it could mean"))
        else:
            rejects.append((where, "names no file"))
    columns = {"file": column, "target": ", ".join(targets)} | ({"split": split} if split else {}) | split_columns.names
    return Labels(files, rejects, [name for name in others if name not in first], columns, targets)


def _file_column(table: Table, names: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """Return the column that names files, and the file that each of its cells means; None if no column does."""
    cells = {column: {fields[place].strip() for _, fields in table.rows} for place, column in enumerate(table.header)}
    telling = [column for name in FILE_NAMES for column in table.header if column.lower() == name]
    exact = {_spelled(name): name for name in names}
    hits = {column: sum(_spelled(cell) in exact for cell in held) for column, held in cells.items()}
    loose = _loose_names(names)
    if any(hits.values()):
        column = max([*telling, *table.header], key=lambda column: hits[column])  # the first of those with most
    else:
        found = {column: sum(_spelled(cell).casefold() in loose for cell in cells[column]) for column in telling}
        fit = [column for column in telling if found[column] and 2 * found[column] >= len(cells[column])]
        if not fit:
            return None
        column = fit[0]
    meant = {cell: exact.get(_spelled(cell)) or loose.get(_spelled(cell).casefold()) for cell in cells[column]}
    return column, {cell: name for cell, name in meant.items() if name is not None}


def _spelled(name: str) -> str:
    """Return a path as Unicode composes it (file systems differ), with `/` between folders and no `./` before it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _loose_names(names: Sequence[str]) -> dict[str, str]:
    """Return each file by the shorter spellings that mean it alone: in lower case, without folder, without suffix."""
    meant: dict[str, set[str]] = {}
    for name in names:
        full = _spelled(name).casefold()
        without_folder = full.rpartition("/")[2]
        for spelling in {full, without_folder, _without_suffix(full), _without_suffix(without_folder)}:
            meant.setdefault(spelling, set()).add(name)
    return {spelling: files.pop() for spelling, files in meant.items() if len(files) == 1}


def _without_suffix(name: str) -> str:
    return name[: len(name) - len(Path(name).suffix)]


def _target_column(table: Table, file: str, split: str | None, apart: set[str], chosen: str | None) -> str:
    """Return the column of targets: the `chosen` one, or what a guess finds among those that are not `apart`."""
    if chosen is not None and chosen in (file, split):
        role = "file" if chosen == file else "split"
        raise DataError(
            f"preprocess.target_column is {chosen!r}, which {table.name} uses for the {role}; its columns are "
            f"{quoted(table.header)}."
        )
    rest = [column for column in table.header if column not in apart]
    if len(rest) < 2:
        raise DataError(f"{table.name} has no column beside {file!r} that could hold labels; add one, called `label`.")
    places = [table.header.index(column) for column in rest]
    rows = [[fields[place] for place in places] for _, fields in table.rows]
    return choose_all_columns(table.name, rest, rows, [file], [chosen] if chosen else [])[1][0]


def _splits(table: Table, split: str | None, names: dict[int, str]) -> dict[int, str]:
    """Return the split of each row by its line, given the files that rows name."""
    if split is None:
        tops = {line: split_of(name.partition("/")[0]) if "/" in name else None for line, name in names.items()}
        has_splits = None not in tops.values() and "train" in tops.values()
        return {line: (top if has_splits and top else "train") for line, top in tops.items()}
    place = table.header.index(split)
    given = {line: split_of(fields[place]) for line, fields in table.rows}
    unknown = Counter(fields[place].strip() for line, fields in table.rows if given[line] is None)
    if unknown:
        shown = ", ".join(f"{value!r} ({count} row(s))" for value, count in sorted(unknown.items())[:10])
        raise DataError(
            f"{table.name}: column {split!r} has values that are no split: {shown}. Write train, validation or test, "
            "or give the column another name."
        )
    splits = {line: value for line, value in given.items() if value is not None}
    if splits and "train" not in splits.values():
        raise DataError(f"{table.name}: column {split!r} names {quoted(sorted(set(splits.values())))} and never train.")
    return splits
