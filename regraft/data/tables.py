"""Tables as people keep them: parsed whole or refused with the line at fault, and the columns that matter found."""

import codecs
import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.errors import DataError

TEXT_NAMES = (
    "text", "sentence", "message", "content", "review", "comment", "utterance", "question", "query", "tweet",
    "body", "document", "description", "sms", "headline", "title",
)  # fmt: skip
TARGET_NAMES = ("label", "target", "class", "category", "intent", "labels", "sentiment", "topic", "tag", "y")
_DELIMITERS = (",", ";", "\t")
_SNIFFED_ROWS = 200
_LARGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """A parsed table: rows are (line on which the row starts, fields)."""

    name: str
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: Path) -> Table:
    """Read the table at `path`.

    Raises:
        DataError: If it is not UTF-8, is empty or has no row below its column names.
    """
    header, rows = parse_csv(path.name, path.read_bytes())
    if not rows:
        raise DataError(f"{path.name} has column names ({quoted(header)}) and no rows below them.")
    return Table(path.name, header, rows)


def choose_columns(
    name: str, header: Sequence[str], rows: Sequence[Sequence[str]], text_column: str | None, target_column: str | None
) -> tuple[str, str]:
    """Return the names of the text and the target column of a table.

    A column named in the settings must exist. Otherwise a telling name decides (`text`, `message`, ...; `label`,
    `class`, ...); failing that the text is the column of longest mean length that is not numbers, and the target is the
    remaining column with the fewest distinct values, of which it needs two.

    Raises:
        DataError: If a named column is missing, or none is fit to be guessed; the message lists the columns.
    """
    for setting, column in (("text_column", text_column), ("target_column", target_column)):
        if column is not None and column not in header:
            close = difflib.get_close_matches(column, header, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"preprocess.{setting} is {column!r}, and {name} has no such column; its columns are "
                f"{quoted(header)}.{hint}"
            )
    if text_column is not None and text_column == target_column:
        raise DataError(
            f"preprocess.text_column and preprocess.target_column are both {text_column!r}; they must differ."
        )
    values = {
        column: [row[place].strip() for row in rows if len(row) == len(header)] for place, column in enumerate(header)
    }
    text = text_column or _by_name(header, TEXT_NAMES, except_for=target_column)
    target = target_column or _by_name(header, TARGET_NAMES, except_for=text)
    if text is None:
        wordy = [column for column in header if column != target and not all(map(_is_number, values[column]))]
        if not wordy:
            raise DataError(
                f"{name} has no column that looks like text; its columns are {quoted(header)}. "
                "Name the one to use in preprocess.text_column."
            )
        text = max(wordy, key=lambda column: sum(map(len, values[column])))
    if target is None:
        distinct = {column: len(set(values[column]) - {""}) for column in header if column != text}
        fit = [column for column, count in distinct.items() if count >= 2] or list(distinct)
        if not fit:
            raise DataError(
                f"{name} has the one column {header[0]!r}; a table needs a text and a label. If columns are separated "
                "by something else than comma, semicolon or tab, convert it first."
            )
        target = min(fit, key=lambda column: distinct[column])
    return text, target


def parse_csv(name: str, content: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Parse a table: the header, and the rows with the line on which each starts. Blank lines are passed over.

    Raises:
        DataError: If it is not UTF-8, is empty, repeats a column name, or leaves a quotation mark open.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        raise DataError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} on line {line}. Save it as UTF-8; "
            f"`iconv -f {encoding} -t UTF-8 {name}` may do it."
        ) from None
    if not text.strip():
        raise DataError(f"{name} is empty; it needs a line of column names and a line for each example.")
    csv.field_size_limit(_LARGEST_FIELD)
    rows: list[tuple[int, list[str]]] = []
    delimiter = _sniff_delimiter(text)
    for line, fields in _records(text, delimiter):
        if fields:
            rows.append((line, fields))
    _refuse_open_quote(name, text, delimiter, rows[-1][0])
    header = [column.strip() for column in rows[0][1]]
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(f"{name} has more than one column called {quoted(repeated)}; give each its own name.")
    return header, rows[1:]


def _by_name(header: Sequence[str], names: Sequence[str], *, except_for: str | None) -> str | None:
    """Return the column that bears the first of `names` to occur, ignoring case."""
    by_name = {column.lower(): column for column in reversed(header) if column != except_for}
    return next((by_name[name] for name in names if name in by_name), None)


def _sniff_delimiter(text: str) -> str:
    """Return the delimiter under which the header has columns and most rows have as many; a comma if none does."""

    def fit(delimiter: str) -> tuple[bool, float]:
        widths = [len(fields) for _, fields in _records(text, delimiter, _SNIFFED_ROWS) if fields]
        return widths[0] > 1, sum(width == widths[0] for width in widths) / len(widths)

    return max(_DELIMITERS, key=fit)


def _records(text: str, delimiter: str, limit: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each record starts, and its fields."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    line = 1
    for count, fields in enumerate(reader):
        if limit is not None and count >= limit:
            return
        yield line, fields
        line = reader.line_num + 1


def _refuse_open_quote(name: str, text: str, delimiter: str, last_line: int) -> None:
    """Raise if the last record runs into the end of the file inside quotation marks: it has swallowed rows."""
    lines = io.StringIO(text, newline="").readlines()[last_line - 1 :]
    try:
        for _ in csv.reader(lines, delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(
                f"{name}, line {last_line}: a quotation mark opens here and is never closed, so the rest of the file "
                'would be one field. Close it; a quotation mark inside a field is written "".'
            ) from None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return not value
    return True


def quoted(names: Iterable[str]) -> str:
    """Return `names` in quotation marks, with commas between them."""
    return ", ".join(repr(name) for name in names)
