"""Tables as people keep them: parsed whole or refused with the line at fault, and the columns that matter found."""

import codecs
import csv
import difflib
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import DataError

log = logging.getLogger(__name__)

TEXT_NAMES = (
    "text", "sentence", "message", "content", "review", "comment", "utterance", "question", "query", "tweet",
    "body", "document", "description", "sms", "headline", "title",
)  # fmt: skip
TARGET_NAMES = ("label", "target", "class", "category", "intent", "labels", "sentiment", "topic", "tag", "y")
_DELIMITERS = (",", ";", "\t")
_SNIFFED_ROWS = 200
_LARGEST_FIELD = 2**31 - 1
_LARGEST_WHOLE = 2**53  # beyond it a float is no longer sure to be the whole number somebody wrote
# Other ways to keep a table, which would pass for a very odd CSV.
_OTHER_SUFFIXES = frozenset((".json", ".xls", ".xlsx", ".ods", ".xml", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"))


@dataclass(frozen=True)
class Table:
    """A parsed table: rows are (line on which the row starts, fields); of Parquet the number of the row, from 1."""

    name: str
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: Path) -> Table:
    """Read the table at `path`: JSON Lines or Parquet if its suffix says so, else CSV (or TSV).

    Raises:
        DataError: If it cannot be parsed, or has no column or no row.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHER_SUFFIXES:
        raise DataError(
            f"{path.name} is not a table that can be read here; save it as CSV, TSV, JSON Lines (.jsonl) or Parquet."
        )
    parse = {".jsonl": parse_jsonl, ".ndjson": parse_jsonl, ".parquet": parse_parquet}.get(suffix, parse_csv)
    header, rows = parse(path.name, path.read_bytes())
    if not header:
        raise DataError(f"{path.name} has no columns; it needs a text and a label for each example.")
    if not rows:
        raise DataError(f"{path.name} has column names ({quoted(header)}) and no rows below them.")
    return Table(path.name, header, rows)


def choose_columns(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_column: str | None,
    target_column: str | None,
    *,
    taken: Sequence[str] = (),
) -> tuple[str, str]:
    """Return the names of the text and the target column of a table.

    A column named in the settings must exist. Otherwise a telling name decides (`text`, `message`, ...; `label`,
    `class`, ...); failing that the text is the column of longest mean length that is not numbers, and the target is the
    remaining column with the fewest distinct values, of which it needs two. Columns that are `taken` are not guessed.

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
    target = None if target in taken and target_column is None else target
    if text is None:
        wordy = [column for column in header if column != target and not all(map(_is_number, values[column]))]
        if not wordy:
            raise DataError(
                f"{name} has no column that looks like text; its columns are {quoted(header)}. "
                "Name the one to use in preprocess.text_column."
            )
        text = max(wordy, key=lambda column: sum(map(len, values[column])))
    if target is None:
        distinct = {column: len(set(values[column]) - {""}) for column in header if column not in (text, *taken)}
        fit = [column for column, count in distinct.items() if count >= 2] or list(distinct)
        if not fit:
            raise DataError(
                f"{name} has the one column {header[0]!r}; a table needs a text and a label. If columns are separated "
                "by something else than comma, semicolon or tab, convert it first."
            )
        target = min(fit, key=lambda column: distinct[column])
    return text, target


def choose_all_columns(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: Sequence[str],
    target_columns: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the text column, or of the two of a pair, and of the target columns; see `choose_columns`.

    A target that is guessed by its values is announced, if it might be another one.

    Args:
        name: What to call the table.
        header: Its columns.
        rows: Its cells.
        text_columns: Those named in the settings; none guesses one.
        target_columns: Likewise.

    Raises:
        DataError: See `choose_columns`.
    """
    first_text, first_target = (named[0] if named else None for named in (text_columns, target_columns))
    text, target = choose_columns(name, header, rows, first_text, first_target, taken=text_columns[1:])
    rest = [column for column in header if column not in (text, *text_columns)]
    if not target_columns and target.lower() not in TARGET_NAMES and len(rest) > 1:
        log.warning(
            "took column %r of %s for the label, as it has the fewest different values of %s; if it is another one, or "
            "there are several, name them in preprocess.target_column",
            target, name, quoted(rest),
        )  # fmt: skip
    for other in target_columns[1:]:
        choose_columns(name, header, rows, text, other)  # it must exist, and be another one
    for other in text_columns[1:]:
        choose_columns(name, header, rows, other, target)
    return (text, *text_columns[1:]), (target, *target_columns[1:])


def parse_csv(name: str, content: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Parse a table: the header, and the rows with the line on which each starts. Blank lines are passed over.

    Raises:
        DataError: If it is not UTF-8, is empty, repeats a column name, or leaves a quotation mark open.
    """
    text = _decode(name, content)
    if not text.strip():
        raise DataError(f"{name} is empty; it needs a line of column names and a line for each example.")
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        raise DataError(f"{name} is a web page and no table; name the address of the table itself.")
    csv.field_size_limit(_LARGEST_FIELD)
    rows: list[tuple[int, list[str]]] = []
    delimiter = _sniff_delimiter(text)
    for line, fields in _records(text, delimiter):
        if fields and not (line == 1 and fields[0].lower() == "sep="):  # by which Excel tells itself the delimiter
            rows.append((line, fields))
    if not rows:
        raise DataError(f"{name} has no line of column names; it needs one, and a line for each example.")
    _refuse_open_quote(name, text, delimiter, rows[-1][0])
    header = [column.strip() for column in rows[0][1]]
    _refuse_repeated(name, header)
    return header, rows[1:]


def parse_jsonl(name: str, content: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Parse a table of one JSON object a line; the columns are all keys that occur, in the order of their appearance.

    Numbers are kept as they are written; true and false are those words; null, NaN and a missing key give "".

    Raises:
        DataError: If it is not UTF-8, is empty, or a line is no object of plain values; the message names the line.
    """
    objects: list[tuple[int, dict[str, str]]] = []
    header: dict[str, None] = {}
    for line, text in enumerate(_decode(name, content).split("\n"), 1):
        if text.strip():
            try:
                values = _OBJECTS.decode(text)
                cells = {key.strip(): _json_cell(key, value) for key, value in _pairs(values)}
                "".join((*cells, *cells.values())).encode()
            except UnicodeEncodeError:
                raise DataError(f"{name}, line {line}: has half of a surrogate pair (\\ud800 to \\udfff).") from None
            except RecursionError:
                raise DataError(f"{name}, line {line}: is nested too deeply.") from None
            except ValueError as error:  # JSONDecodeError is one too
                raise DataError(f"{name}, line {line}: {error}. Each line must be one JSON object.") from None
            objects.append((line, cells))
            header.update(dict.fromkeys(cells))
    if not objects:
        raise DataError(f"{name} is empty; it needs a line with a JSON object for each example.")
    return list(header), [(line, [cells.get(key, "") for key in header]) for line, cells in objects]


def parse_parquet(name: str, content: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Parse a Parquet file; rows are numbered from 1.

    Whole numbers are written as such even in a column of floats (pandas makes those where a value is missing), true and
    false are those words, null and NaN give "".

    Raises:
        DataError: If it is no Parquet file, is damaged, or has a column of nested values or bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        table.validate(full=True)
        columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # an OSError of bytes in memory is of them
        raise DataError(
            f"{name} is no Parquet file that can be read ({str(error).splitlines()[0]}); write it again, or use CSV."
        ) from None
    for column in table.schema:
        if pa.types.is_nested(column.type) or _holds_bytes(pa, column.type):
            raise DataError(
                f"{name}: column {column.name!r} holds {column.type}, and a cell must be a text, a number or true or "
                "false; write the file again without it."
            )
    header = [column.strip() for column in table.column_names]
    _refuse_repeated(name, header)
    return header, [(number, list(cells)) for number, cells in enumerate(zip(*columns, strict=True), 1)]


def _decode(name: str, content: bytes) -> str:
    """Return `content` as text.

    Raises:
        DataError: If it is not UTF-8 (a byte order mark is allowed); the message names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        raise DataError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} on line {line}. Save it as UTF-8; "
            f"`iconv -f {encoding} -t UTF-8 {name}` may do it."
        ) from None


def _refuse_repeated(name: str, header: Sequence[str]) -> None:
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(f"{name} has more than one column called {quoted(repeated)}; give each its own name.")


class _Pairs(tuple[tuple[str, Any], ...]):
    """The keys and values of a JSON object, repeated keys and all; told from an array by its type."""

    __slots__ = ()


_OBJECTS = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_int=str,
    parse_float=str,
    parse_constant=lambda constant: None if constant == "NaN" else constant,
)


def _pairs(value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, _Pairs):
        raise ValueError("holds no object")  # noqa: TRY004 (the input is wrong, not a call)
    keys = [key.strip() for key, _ in value]
    if len(set(keys)) < len(keys):
        raise ValueError(f"has a key twice: {quoted(sorted({key for key in keys if keys.count(key) > 1}))}")
    return value


def _json_cell(key: str, value: Any) -> str:
    if isinstance(value, _Pairs | list):
        raise ValueError(  # noqa: TRY004
            f"{key!r} holds {'an object' if isinstance(value, _Pairs) else 'an array'}, and a cell must be a text, a "
            "number, true, false or null"
        )
    return _cell(value)


def _cell(value: Any) -> str:
    """Return a plain value as a table's cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return str(int(value))
    return str(value)


def _holds_bytes(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


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
