"""From raw files to examples: every image decoded, every row parsed, and a reason for each one that is set aside."""

import codecs
import csv
import difflib
import hashlib
import io
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow as tf

from regraft.data.images import Inspection, UnreadableImage, inspect, to_png
from regraft.data.records import Example
from regraft.data.sources import TABLE_SUFFIXES, is_image_name, list_files, split_of
from regraft.errors import DataError
from regraft.progress import Progress

log = logging.getLogger(__name__)

_TEXT_NAMES = (
    "text", "sentence", "message", "content", "review", "comment", "utterance", "question", "query", "tweet",
    "body", "document", "description", "sms", "headline", "title",
)  # fmt: skip
_TARGET_NAMES = ("label", "target", "class", "category", "intent", "labels", "sentiment", "topic", "tag", "y")
_DELIMITERS = (",", ";", "\t")
_SNIFFED_ROWS = 200
_LARGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Reject:
    """Something set aside: `name` says where it is, `reason` why, `label` its class if that is known."""

    name: str
    reason: str
    label: str | None = None


@dataclass(frozen=True)
class Collection:
    """What raw data holds.

    Attributes:
        kind: "image" or "text".
        splits: Examples by split as the source has them; a source without splits has "train" alone.
        rejects: What was set aside, in order of name.
        ignored_files: Files of other kinds, such as a README.
        short_sides_px: Smaller of width and height of each image kept, by id.
        reencoded: Images stored as PNG because TensorFlow does not read the format they came in.
        rotated: Images whose EXIF orientation is not applied.
        columns: Table column taken for "text" and for "target"; empty for images.
    """

    kind: str
    splits: dict[str, list[Example]]
    rejects: list[Reject]
    ignored_files: int = 0
    short_sides_px: dict[str, int] = field(default_factory=dict)
    reencoded: int = 0
    rotated: int = 0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Image:
    """An image's example with what was seen of it."""

    split: str
    example: Example
    inspection: Inspection
    was_reencoded: bool


@dataclass(frozen=True)
class _Table:
    """A parsed table: rows are (line on which the row starts, fields)."""

    name: str
    header: list[str]
    rows: list[tuple[int, list[str]]]


def collect_images(raw: Path, scratch: Path) -> Collection:
    """Read class folders of images: `CLASS/...` or `{train,validation,test}/CLASS/...`.

    Every image is decoded twice, by Pillow (which notices truncation) and by `tf.io.decode_image` (which is what the
    model will use); formats that only Pillow reads are stored as PNG.

    Args:
        raw: Folder of class folders.
        scratch: Existing folder for re-encoded images; must outlive the use of the examples.

    Raises:
        DataError: If the folder layout is ambiguous.
    """
    names = list(list_files(raw).files)
    images = [name for name in names if is_image_name(name)]
    has_splits = _has_split_folders(images)
    rejects: list[Reject] = []
    ignored = len(names) - len(images)
    work: list[tuple[str, str, str]] = []
    for name in images:
        folders = name.split("/")[:-1]
        split = "train"
        if has_splits and folders:
            named = split_of(folders.pop(0))
            if named is None:
                ignored += 1
                continue
            split = named
        if folders:
            work.append((name, split, _normalise(folders[0])))
        else:
            rejects.append(Reject(name, "is in no class folder, so it has no label"))

    progress = Progress(log, "checking images", len(work), "images")
    splits: dict[str, list[Example]] = {}
    short_sides_px, reencoded, rotated = {}, 0, 0
    # Both decoders release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(lambda item: _read_image(raw, scratch, *item), work):
            progress.advance(1)
            if isinstance(result, Reject):
                rejects.append(result)
                continue
            splits.setdefault(result.split, []).append(result.example)
            short_sides_px[result.example.id] = min(result.inspection.width_px, result.inspection.height_px)
            reencoded += result.was_reencoded
            rotated += result.inspection.is_rotated
    return Collection(
        kind="image",
        splits=splits,
        rejects=sorted(rejects, key=lambda reject: reject.name),
        ignored_files=ignored,
        short_sides_px=short_sides_px,
        reencoded=reencoded,
        rotated=rotated,
    )


def collect_texts(raw: Path, text_column: str | None, target_column: str | None) -> Collection:
    """Read tables: `train.csv` with or without validation and test beside it, or a single table of any name.

    Args:
        raw: Folder of tables (.csv or .tsv; separated by comma, semicolon or tab; UTF-8, byte order mark allowed).
        text_column: Column of texts; None guesses.
        target_column: Column of class names; None guesses.

    Raises:
        DataError: If there is no table, one is not UTF-8 or has no rows, or a column is missing.
    """
    names = list(list_files(raw).files)
    tables = [name for name in names if Path(name).suffix.lower() in TABLE_SUFFIXES]
    if len(names) == 1:
        by_split = {"train": names[0]}  # a single table may have any name and suffix
    else:
        by_split = {split: name for name in tables if (split := split_of(Path(name).stem)) is not None}
    if "train" not in by_split:
        raise DataError(f"{raw} holds no train.csv; found {', '.join(names[:8]) or 'no file'}.")

    parsed = {split: _parse_table(raw / name) for split, name in by_split.items()}
    train = parsed["train"]
    text, target = choose_columns(
        train.name, train.header, [fields for _, fields in train.rows], text_column, target_column
    )
    if {text, target}.isdisjoint((text_column, target_column, *_TEXT_NAMES, *_TARGET_NAMES)):
        log.warning(
            "took column %r for the text and %r for the label, judging by their values; if %s has no line of column "
            "names, its first example was taken for one: add such a line",
            text, target, train.name,
        )  # fmt: skip
    splits: dict[str, list[Example]] = {}
    rejects: list[Reject] = []
    for split, table in parsed.items():
        missing = [column for column in (text, target) if column not in table.header]
        if missing:
            raise DataError(
                f"{table.name} has no column {missing[0]!r}, which {train.name} has; its columns are "
                f"{_quoted(table.header)}. Every table needs the text and the label; without labels it cannot serve as "
                f"{split} split."
            )
        for result in _read_rows(table, text, target):
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                splits.setdefault(split, []).append(result)
    return Collection(
        kind="text",
        splits=splits,
        rejects=rejects,
        ignored_files=len(names) - len(by_split),
        columns={"text": text, "target": target},
    )


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
                f"{_quoted(header)}.{hint}"
            )
    if text_column is not None and text_column == target_column:
        raise DataError(
            f"preprocess.text_column and preprocess.target_column are both {text_column!r}; they must differ."
        )
    values = {
        column: [row[place].strip() for row in rows if len(row) == len(header)] for place, column in enumerate(header)
    }
    text = text_column or _by_name(header, _TEXT_NAMES, except_for=target_column)
    target = target_column or _by_name(header, _TARGET_NAMES, except_for=text)
    if text is None:
        wordy = [column for column in header if column != target and not all(map(_is_number, values[column]))]
        if not wordy:
            raise DataError(
                f"{name} has no column that looks like text; its columns are {_quoted(header)}. "
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
    for line, fields in _records(text, _sniff_delimiter(text)):
        if fields:
            rows.append((line, fields))
    _refuse_open_quote(name, text, rows[-1][0])
    header = [column.strip() for column in rows[0][1]]
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(f"{name} has more than one column called {_quoted(repeated)}; give each its own name.")
    return header, rows[1:]


def _parse_table(path: Path) -> _Table:
    header, rows = parse_csv(path.name, path.read_bytes())
    if not rows:
        raise DataError(f"{path.name} has column names ({_quoted(header)}) and no rows below them.")
    return _Table(path.name, header, rows)


def _read_rows(table: _Table, text: str, target: str) -> Iterator[Example | Reject]:
    text_place, target_place = table.header.index(text), table.header.index(target)
    for line, fields in table.rows:
        name = f"{table.name}:{line}"
        if len(fields) != len(table.header):
            yield Reject(name, f"has {len(fields)} field(s) where the header has {len(table.header)}")
            continue
        content, label = fields[text_place], _normalise(fields[target_place].strip())
        if not label:
            yield Reject(name, "has no label")
        elif len(label.splitlines()) > 1:
            yield Reject(name, "has a line break in its label")
        elif not content.strip():
            yield Reject(name, "has no text", label)
        else:
            yield Example(hashlib.sha256(content.encode()).hexdigest(), name, label, content)


def _read_image(raw: Path, scratch: Path, name: str, split: str, label: str) -> _Image | Reject:
    content = (raw / name).read_bytes()
    if len(label.splitlines()) > 1:
        return Reject(name, "is in a class folder with a line break in its name")
    digest = hashlib.sha256(content).hexdigest()
    try:
        inspection = inspect(content)
        stored = raw / name
        suits_tensorflow = inspection.suits_tensorflow and _tensorflow_reads(content)
        if not suits_tensorflow:
            png = to_png(content)
            if not _tensorflow_reads(png):
                return Reject(name, "cannot be decoded by TensorFlow", label)
            stored = scratch / f"{digest}.png"
            _write_once(stored, png)
    except UnreadableImage as error:
        return Reject(name, str(error), label)
    return _Image(split, Example(digest, name, label, stored), inspection, not suits_tensorflow)


def _tensorflow_reads(content: bytes) -> bool:
    try:
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return True


def _write_once(path: Path, content: bytes) -> None:
    """Write `content` to `path`; copies of one image, met by two threads, may both come here with the same bytes."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        pass


def _has_split_folders(images: Iterable[str]) -> bool:
    """Return whether the folders at the top are splits rather than classes.

    They are if `train` (or another name of it) is among them, holds class folders, and stands beside nothing but
    splits; or beside another split, whatever else there is. `train` between `bus` and `car` is a class.

    Raises:
        DataError: If there are validation or test folders alone, or two folders for one split.
    """
    tops: dict[str, bool] = {}
    for name in images:
        top, *below = name.split("/")
        if below:
            tops[top] = tops.get(top, False) or len(below) > 1
    folders: dict[str, list[str]] = {}
    for top in tops:
        if (split := split_of(top)) is not None:
            folders.setdefault(split, []).append(top)
    others = sum(map(len, folders.values())) < len(tops)
    if not folders or (others and len(folders) == 1):
        return False
    if "train" not in folders and not others:
        raise DataError(
            f"the source has {_quoted(sorted(tops))} and no folder `train`; add one with the images to train on."
        )
    if "train" not in folders or not all(tops[top] for top in folders["train"]):
        return False
    for split, same in folders.items():
        if len(same) > 1:
            raise DataError(f"the source has {_quoted(same)}, which both stand for the {split} split; merge them.")
    return True


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


def _refuse_open_quote(name: str, text: str, last_line: int) -> None:
    """Raise if the last record runs into the end of the file inside quotation marks: it has swallowed rows."""
    lines = io.StringIO(text, newline="").readlines()[last_line - 1 :]
    try:
        for _ in csv.reader(lines, strict=True):
            pass
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(
                f"{name}, line {last_line}: a quotation mark opens here and is never closed, so the rest of the file "
                'would be one field. Close it; a quotation mark inside a field is written "".'
            ) from None


def _normalise(label: str) -> str:
    """Return `label` with its accents composed (NFC): file systems and editors differ in how they spell an é."""
    return unicodedata.normalize("NFC", label)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return not value
    return True


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
