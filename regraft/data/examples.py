"""From raw files to examples: every image and recording decoded, every row parsed, a reason for each one set aside."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from regraft.data import audio, pairs, several
from regraft.data.grouping import NO_COLUMNS, SplitColumns
from regraft.data.images import Inspection, UnreadableImage, glance, inspect, to_png
from regraft.data.labels import LabelledFile, find_labels, read_labels, refuse_target, refuse_text
from regraft.data.records import Example
from regraft.data.sources import is_audio_name, is_image_name, is_table_name, list_files, split_of, tables_by_split
from regraft.data.tables import TARGET_NAMES, TEXT_NAMES, Table, choose_all_columns, quoted, read_table
from regraft.data.targets import CLASSIFICATION, MULTILABEL, Target, TargetReader, UnusableTarget, reader_for
from regraft.data.waveform import decode_wav
from regraft.errors import DataError
from regraft.progress import Progress

log = logging.getLogger(__name__)


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
        kind: "image", "text" or "audio".
        splits: Examples by split as the source has them; a source without splits has "train" alone.
        rejects: What was set aside, in order of name.
        ignored_files: Files of other kinds, such as a README.
        short_sides_px: Smaller of width and height of each image kept, by id.
        reencoded: Images stored as PNG because TensorFlow does not read the format they came in.
        rotated: Images whose EXIF orientation is not applied.
        columns: Table column taken for "text" (or "file" and, if there is one, "split"), for "target" (several with
            commas) and, if they are set, for "group" and "time"; empty for files in class folders.
        task: "classification", "multilabel" or "regression".
        target_names: Names of the values of every example's target; none for classes.
        seconds: Length of each recording kept, by id.
        rates_hz: Its sampling rate, by id.
        pair: The columns of the two texts, if every example is a pair of them; see `regraft.data.pairs`.
    """

    kind: str
    splits: dict[str, list[Example]]
    rejects: list[Reject]
    ignored_files: int = 0
    short_sides_px: dict[str, int] = field(default_factory=dict)
    reencoded: int = 0
    rotated: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    task: str = CLASSIFICATION
    target_names: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    rates_hz: dict[str, int] = field(default_factory=dict)
    pair: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Image:
    """An image's example with what was seen of it."""

    split: str
    example: Example
    inspection: Inspection
    was_reencoded: bool


@dataclass(frozen=True)
class _Recording:
    """A recording's example with what was heard of it."""

    split: str
    example: Example
    seconds: float
    rate_hz: int


@dataclass(frozen=True)
class _Labelled:
    """Files with their splits and targets: those to read, those that have no target, how many are not wanted."""

    work: list[LabelledFile]
    rejects: list[Reject]
    ignored: int
    columns: dict[str, str]
    reader: TargetReader


def collect(
    kind: str,
    raw: Path,
    scratch: Path,
    *,
    text_column: str | Sequence[str] | None = None,
    target_column: str | Sequence[str] | None = None,
    task: str = "auto",
    rare_below: int = 3,
    split_columns: SplitColumns = NO_COLUMNS,
) -> Collection:
    """Read raw data of a kind ("image", "text" or "audio"); see `collect_images`, `collect_texts`, `collect_audio`.

    Raw data of several sources is read source by source, and joined.

    Raises:
        DataError: If a source cannot be used, or they do not fit together; see `join`.
    """
    if folders := several.read_folders(raw):
        parts = {}
        for folder in folders:
            try:
                parts[folder] = collect(
                    kind,
                    raw / folder,
                    scratch,
                    text_column=text_column,
                    target_column=target_column,
                    task=task,
                    rare_below=rare_below,
                    split_columns=split_columns,
                )
            except DataError as error:
                raise DataError(f"source {folder}: {error}") from error
        return join(parts)
    if kind == "text":
        return collect_texts(
            raw, text_column, target_column, task=task, rare_below=rare_below, split_columns=split_columns
        )
    refuse_text(text_column)
    read_files = {"image": collect_images, "audio": collect_audio}[kind]
    return read_files(raw, scratch, target_column, task=task, rare_below=rare_below, split_columns=split_columns)


def join(parts: Mapping[str, Collection]) -> Collection:
    """Return the examples of several sources as those of one: names begin with the source's folder.

    Every source keeps the splits it has. So the missing-split rule applies to what they hold together: where one of
    them brings a test split, the others only add to train, and the test stays the one that it was.

    Args:
        parts: What each source holds, by its folder; at least one.

    Raises:
        DataError: If they differ in task, targets or columns; the message says which from which, and in what.
    """
    first = next(iter(parts))
    parts = _with_all_labels(parts)
    for folder, part in parts.items():
        for what, ours, theirs in _must_agree(parts[first], part):
            if ours != theirs:
                raise DataError(
                    f"the sources do not fit together: {what} {ours or 'none'} in {first} and {theirs or 'none'} in "
                    f"{folder}. preprocess.task, preprocess.target_column and preprocess.text_column apply to all "
                    "sources; name there what they have in common, or give their columns the same names."
                )
    splits: dict[str, list[Example]] = {}
    for folder, part in parts.items():
        for split, examples in part.splits.items():
            splits.setdefault(split, []).extend(replace(e, name=f"{folder}/{e.name}") for e in examples)
    columns: dict[str, dict[str, None]] = {}
    for role, column in ((role, column) for part in parts.values() for role, column in part.columns.items()):
        columns.setdefault(role, {})[column] = None
    rejects = [replace(r, name=f"{folder}/{r.name}") for folder, part in parts.items() for r in part.rejects]
    made: dict[str, Any] = {
        "splits": splits,
        "rejects": sorted(rejects, key=lambda reject: reject.name),
        "columns": {role: ", ".join(names) for role, names in columns.items()},
    }
    rest = [attribute.name for attribute in dataclasses.fields(Collection) if attribute.name not in made]
    return Collection(**made, **{name: _together([getattr(part, name) for part in parts.values()]) for name in rest})


def _with_all_labels(parts: Mapping[str, Collection]) -> Mapping[str, Collection]:
    """Return `parts` with the labels of all of them, where each has a set of labels in one cell, like `a|b`."""
    if any(
        part.task != MULTILABEL or part.columns.get("target") == ", ".join(part.target_names) for part in parts.values()
    ):
        return parts
    names = tuple(sorted({name for part in parts.values() for name in part.target_names}))

    def widened(part: Collection, example: Example) -> Example:
        held = {name for name, value in zip(part.target_names, example.values, strict=True) if value}
        return replace(example, values=tuple(float(name in held) for name in names))

    return {
        folder: replace(
            part,
            target_names=names,
            splits={split: [widened(part, example) for example in held] for split, held in part.splits.items()},
        )
        for folder, part in parts.items()
    }


def _must_agree(one: Collection, other: Collection) -> Iterator[tuple[str, str, str]]:
    yield "the task is", one.task, other.task
    yield "the targets are", ", ".join(one.target_names), ", ".join(other.target_names)
    for role in one.columns.keys() & other.columns.keys() & {"text", "target"}:
        yield f"the {role} column is", one.columns[role], other.columns[role]


def _together(values: Sequence[Any]) -> Any:
    """Return counts added, facts by example in one dictionary, and what all have in common as it is."""
    if isinstance(values[0], int):
        return sum(values)
    if isinstance(values[0], dict):
        return {key: fact for value in values for key, fact in value.items()}
    if any(value != values[0] for value in values):
        raise TypeError(f"no way to join {values}")  # a new attribute needs one, or a check in _must_agree
    return values[0]


def collect_images(
    raw: Path,
    scratch: Path,
    target_column: str | Sequence[str] | None = None,
    *,
    task: str = "auto",
    rare_below: int = 3,
    split_columns: SplitColumns = NO_COLUMNS,
) -> Collection:
    """Read images labelled by a table `labels.*`, or in folders: `CLASS/...` or `{train,validation,test}/CLASS/...`.

    A folder's name is a class unless `task` says that it is a number (regression) or several labels (`a|b`).

    Every image is decoded by `tf.io.decode_image`, which is what the model will use, and all but JPEG by Pillow too;
    formats that only Pillow reads are stored as PNG.

    Args:
        raw: Folder of class folders, or of images with a table of labels.
        scratch: Existing folder for re-encoded images; must outlive the use of the examples.
        target_column: Column of targets in the table of labels, or several; None guesses one.
        task: As in the settings; "auto" decides by the table's cells (see `reader_for`), folders are classes.
        rare_below: See `reader_for`.
        split_columns: Columns of groups and times, and those to slice by, in the table of labels.

    Raises:
        DataError: If the folder layout is ambiguous, the table of labels cannot be used, or targets are not what the
            task asks for.
    """
    found = _labelled_files(raw, is_image_name, target_column, task, rare_below, split_columns=split_columns)
    rejects = found.rejects
    splits: dict[str, list[Example]] = {}
    short_sides_px, reencoded, rotated = {}, 0, 0
    # Both decoders release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        glances = []
        for seen in pool.map(lambda file: _glance(raw, file, found.reader), found.work):
            if isinstance(seen, Reject):
                rejects.append(seen)
            else:
                glances.append(seen)
        fit = _read_by_tensorflow(raw, [seen.name for seen in glances if seen.inspection.suits_tensorflow])
        for result in pool.map(lambda seen: _read_image(raw, scratch, seen, is_fit=seen.name in fit), glances):
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
        ignored_files=found.ignored,
        short_sides_px=short_sides_px,
        reencoded=reencoded,
        rotated=rotated,
        columns=found.columns,
        task=found.reader.task,
        target_names=found.reader.names,
    )


def collect_audio(
    raw: Path,
    scratch: Path,
    target_column: str | Sequence[str] | None = None,
    *,
    task: str = "auto",
    rare_below: int = 3,
    split_columns: SplitColumns = NO_COLUMNS,
) -> Collection:
    """Read recordings, labelled by a table or by folders as images are: see `collect_images`.

    Every recording is decoded by libsndfile, and what will be stored, a WAV file of one channel in 16-bit PCM at the
    rate it came at, by the TensorFlow operations that the model will use. Such files are stored as they are. Silence is
    a sound like any other.

    Args:
        raw: Folder of class folders, or of recordings with a table of labels.
        scratch: Existing folder for converted recordings; must outlive the use of the examples.
        target_column: See `collect_images`.
        task: See `collect_images`.
        rare_below: See `reader_for`.
        split_columns: See `collect_images`.

    Raises:
        DataError: See `collect_images`.
    """
    found = _labelled_files(raw, is_audio_name, target_column, task, rare_below, split_columns=split_columns)
    rejects = found.rejects
    progress = Progress(log, "checking recordings", len(found.work), "recordings")
    splits: dict[str, list[Example]] = {}
    seconds, rates_hz = {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(lambda file: _read_recording(raw, scratch, file, found.reader), found.work):
            progress.advance(1)
            if isinstance(result, Reject):
                rejects.append(result)
                continue
            splits.setdefault(result.split, []).append(result.example)
            seconds[result.example.id], rates_hz[result.example.id] = result.seconds, result.rate_hz
    return Collection(
        kind="audio",
        splits=splits,
        rejects=sorted(rejects, key=lambda reject: reject.name),
        ignored_files=found.ignored,
        columns=found.columns,
        task=found.reader.task,
        target_names=found.reader.names,
        seconds=seconds,
        rates_hz=rates_hz,
    )


def _labelled_files(
    raw: Path,
    is_wanted: Callable[[str], bool],
    target_column: str | Sequence[str] | None,
    task: str,
    rare_below: int,
    *,
    split_columns: SplitColumns,
) -> _Labelled:
    """Return the files below `raw` that a table labels, or else those with wanted names in class folders."""
    names = list(list_files(raw).files)
    labels = read_labels(raw, names, target_column, split_columns)
    columns: tuple[str, ...]
    if labels is None:
        split_columns.refuse()
        refuse_target(target_column)
        tables = [name for name in names if is_table_name(name)]
        if tables and find_labels(names) is None:
            log.warning(
                "%s is not read: labels beside files stand in a table called labels.csv at the top of the source",
                quoted(tables[:3]),
            )
        work, rejects, ignored = _in_class_folders(names, is_wanted)
        columns, task = ("value",), CLASSIFICATION if task == "auto" else task
    else:
        work, ignored, columns = labels.files, len(labels.ignored), labels.target_columns
        rejects = [Reject(name, reason) for name, reason in labels.rejects]
    reader = _reader(columns, [file.targets for file in work if file.split == "train"], task, rare_below)
    return _Labelled(work, rejects, ignored, labels.columns if labels else {}, reader)


def _in_class_folders(
    names: Sequence[str], is_wanted: Callable[[str], bool]
) -> tuple[list[LabelledFile], list[Reject], int]:
    """Return the files with wanted names that are in class folders, those that are in none, and how many are ignored.

    Raises:
        DataError: If the folder layout is ambiguous.
    """
    wanted = [name for name in names if is_wanted(name)]
    has_splits = _has_split_folders(wanted)
    ignored = len(names) - len(wanted)
    work: list[LabelledFile] = []
    rejects: list[Reject] = []
    for name in wanted:
        folders = name.split("/")[:-1]
        split = "train"
        if has_splits and folders:
            named = split_of(folders.pop(0))
            if named is None:
                ignored += 1
                continue
            split = named
        if folders:
            work.append(LabelledFile(name, split, (folders[0],), ""))
        else:
            rejects.append(Reject(name, "is in no class folder and in no labels.csv, so it has no label"))
    return work, rejects, ignored


def collect_texts(
    raw: Path,
    text_column: str | Sequence[str] | None,
    target_column: str | Sequence[str] | None,
    *,
    task: str = "auto",
    rare_below: int = 3,
    split_columns: SplitColumns = NO_COLUMNS,
) -> Collection:
    """Read tables: `train.csv` with or without validation and test beside it, or a single table of any name.

    Args:
        raw: Folder of tables: .csv or .tsv (separated by comma, semicolon or tab), .jsonl or .ndjson, .parquet; UTF-8,
            byte order mark allowed.
        text_column: Column of texts; None guesses. Two columns make every example a pair of texts.
        target_column: Column of targets, or several; None guesses one.
        task: As in the settings; "auto" decides by the cells of train, see `reader_for`.
        rare_below: See `reader_for`.
        split_columns: Columns of groups and times, which other tables than train may lack; and those to slice by,
            which validation may lack.

    Raises:
        DataError: If there is no table, two are for one split, one cannot be parsed or has no rows, or a column is
            missing.
    """
    names = list(list_files(raw).files)
    # A single table may have any name and suffix.
    by_split = {"train": names[0]} if len(names) == 1 else tables_by_split(names)
    if "train" not in by_split:
        raise DataError(f"{raw} holds no train.csv; found {', '.join(names[:8]) or 'no file'}.")

    parsed = {split: read_table(raw / name) for split, name in by_split.items()}
    train = parsed["train"]
    named = [target_column] if isinstance(target_column, str) else list(dict.fromkeys(target_column or ()))
    given = [text_column] if isinstance(text_column, str) else list(text_column or ())
    if len(set(given)) < len(given):
        raise DataError(f"preprocess.text_column names {given[0]!r} twice; a pair needs two columns.")
    taken = dict.fromkeys(named, "target") | dict.fromkeys(given, "text")
    split_columns.require(train.name, train.header, taken)
    rest = split_columns.without(train.header, given)
    header = [train.header[place] for place in rest]
    rows = [fields for _, fields in train.rows]
    telling = [[fields[place] for place in rest] for fields in rows if len(fields) == len(train.header)]
    texts, targets = choose_all_columns(train.name, header, telling, given, named)
    places = [train.header.index(column) for column in targets]
    cells = [[fields[place] for place in places] for fields in rows if len(fields) == len(train.header)]
    reader = _reader(targets, cells, task, rare_below)
    text, target = texts[0], targets[0]
    if {text, target}.isdisjoint((*given, *named)) and {text.lower(), target.lower()}.isdisjoint(
        (*TEXT_NAMES, *TARGET_NAMES)
    ):
        log.warning(
            "took column %r for the text and %r for the label, judging by their values; if %s has no line of column "
            "names, its first example was taken for one: add such a line",
            text, target, train.name,
        )  # fmt: skip
    splits: dict[str, list[Example]] = {}
    rejects: list[Reject] = []
    for split, table in parsed.items():
        missing = [column for column in (*texts, *targets) if column not in table.header]
        if missing:
            raise DataError(
                f"{table.name} has no column {missing[0]!r}, which {train.name} has; its columns are "
                f"{quoted(table.header)}. Every table needs the text and the label; without labels it cannot serve as "
                f"{split} split."
            )
        if split == "test":
            split_columns.require_slices(table.name, table.header)
        for result in _read_rows(table, texts, reader, split_columns):
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                splits.setdefault(split, []).append(result)
    return Collection(
        kind="text",
        splits=splits,
        rejects=rejects,
        ignored_files=len(names) - len(by_split),
        columns={"text": ", ".join(texts), "target": ", ".join(targets)} | split_columns.names,
        task=reader.task,
        target_names=reader.names,
        pair=texts if len(texts) > 1 else (),
    )


def _reader(columns: Sequence[str], rows: Sequence[Sequence[str]], task: str, rare_below: int) -> TargetReader:
    """Return the reader of targets in `columns`, after deciding the task by the cells of train (a row an example)."""
    cells = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
    reader = reader_for(task, cells, rare_below=rare_below)
    if task == "auto" and reader.task != CLASSIFICATION:
        log.info("took %s for the task, judging by the values of %s", reader.task, quoted(columns))
    return reader


def _read_rows(
    table: Table, texts: Sequence[str], reader: TargetReader, split_columns: SplitColumns
) -> Iterator[Example | Reject]:
    text_places = [table.header.index(column) for column in texts]
    target_places = [table.header.index(column) for column in reader.columns]
    for line, fields in table.rows:
        name = f"{table.name}:{line}"
        if len(fields) != len(table.header):
            yield Reject(name, f"has {len(fields)} field(s) where the header has {len(table.header)}")
            continue
        held = [fields[place] for place in text_places]
        try:
            target = reader.read([fields[place] for place in target_places])
        except UnusableTarget as error:
            yield Reject(name, str(error))
            continue
        if not all(text.strip() for text in held):
            yield Reject(name, "has no text" if len(held) == 1 else "lacks one of its two texts", target.label)
            continue
        try:
            content = pairs.join(held) if len(held) > 1 else held[0]
        except ValueError as error:
            yield Reject(name, str(error), target.label)
            continue
        identity = hashlib.sha256(content.encode()).hexdigest()
        yield Example(identity, name, target.label, content, target.values, *split_columns.cells(table.header, fields))


def _read_target(file: LabelledFile, reader: TargetReader) -> Target | Reject:
    try:
        return reader.read(file.targets)
    except UnusableTarget as error:
        in_folder = f"is in a class folder whose name cannot be a label: it {error}"
        return Reject(file.name, f"{error} in {file.where}" if file.where else in_folder)


@dataclass(frozen=True)
class _Glance:
    """An image file with its target, its sha256 and what its head says."""

    file: LabelledFile
    target: Target
    digest: str
    inspection: Inspection

    @property
    def name(self) -> str:
        return self.file.name


def _glance(raw: Path, file: LabelledFile, reader: TargetReader) -> _Glance | Reject:
    target = _read_target(file, reader)
    if isinstance(target, Reject):
        return target
    content = (raw / file.name).read_bytes()
    try:
        return _Glance(file, target, hashlib.sha256(content).hexdigest(), glance(content))
    except UnreadableImage as error:
        return Reject(file.name, str(error), target.label)


def _read_by_tensorflow(raw: Path, names: Sequence[str]) -> set[str]:
    """Return which of the image files `names` in `raw` are decoded by `tf.io.decode_image`, which the model uses."""
    progress = Progress(log, "checking images", len(names), "images")

    def decode(number: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return number, tf.size(tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False))

    paths = tf.constant([str(raw / name) for name in names], tf.string)
    files = tf.data.Dataset.from_tensor_slices((tf.range(len(names)), paths))
    numbers = files.map(decode, tf.data.AUTOTUNE, deterministic=False).ignore_errors().batch(256)
    read: set[str] = set()
    for batch, _ in numbers.as_numpy_iterator():
        read.update(names[number] for number in batch.tolist())
        progress.advance(len(batch))
    return read


def _read_image(raw: Path, scratch: Path, seen: _Glance, *, is_fit: bool) -> _Image | Reject:
    name, digest, label, stored = seen.name, seen.digest, seen.target.label, raw / seen.name
    if not (is_fit and seen.inspection.is_jpeg):
        content = stored.read_bytes()
        try:
            inspect(content)
            if not is_fit:
                png = to_png(content)
                if not tensorflow_reads(png):
                    return Reject(name, "cannot be decoded by TensorFlow", label)
                stored = scratch / f"{digest}.png"
                _write_once(stored, png)
        except UnreadableImage as error:
            return Reject(name, str(error), label)
    file = seen.file
    example = Example(digest, name, label, stored, seen.target.values, file.group, file.time, file.slices)
    return _Image(file.split, example, seen.inspection, was_reencoded=not is_fit)


def _read_recording(raw: Path, scratch: Path, file: LabelledFile, reader: TargetReader) -> _Recording | Reject:
    target = _read_target(file, reader)
    if isinstance(target, Reject):
        return target
    name, stored = file.name, raw / file.name
    content = stored.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        recording = audio.decode(content)
    except audio.UnreadableAudio as error:
        return Reject(name, str(error), target.label)
    if not (recording.is_plain and _tensorflow_hears(content)):
        wav = recording.to_wav()
        if not _tensorflow_hears(wav):
            return Reject(name, "cannot be decoded by TensorFlow", target.label)
        stored = scratch / f"{digest}.wav"
        _write_once(stored, wav)
    example = Example(digest, name, target.label, stored, target.values, file.group, file.time, file.slices)
    return _Recording(file.split, example, recording.seconds, recording.rate_hz)


def _tensorflow_hears(wav: bytes) -> bool:
    try:
        decode_wav(tf.constant(wav))
    except tf.errors.OpError:
        return False
    return True


def tensorflow_reads(content: bytes) -> bool:
    """Return whether `tf.io.decode_image`, which the model uses, decodes an image file."""
    try:
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return True


def _write_once(path: Path, content: bytes) -> None:
    """Write `content` to `path`; copies of one file, met by two threads, may both come here with the same bytes."""
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
            f"the source has {quoted(sorted(tops))} and no folder `train`; add one with what is to train on."
        )
    if "train" not in folders or not all(tops[top] for top in folders["train"]):
        return False
    for split, same in folders.items():
        if len(same) > 1:
            raise DataError(f"the source has {quoted(same)}, which both stand for the {split} split; merge them.")
    return True
