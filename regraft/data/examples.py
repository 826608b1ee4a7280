"""From raw files to examples: every image and recording decoded, every row parsed, a reason for each one set aside."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow as tf

from regraft.data import audio
from regraft.data.images import Inspection, UnreadableImage, inspect, to_png
from regraft.data.records import Example
from regraft.data.sources import TABLE_SUFFIXES, is_audio_name, is_image_name, list_files, split_of
from regraft.data.tables import TARGET_NAMES, TEXT_NAMES, Table, choose_columns, quoted, read_table
from regraft.data.targets import UnusableTarget, class_name
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
        columns: Table column taken for "text" and for "target"; empty for images.
        seconds: Length of each recording kept, by id.
        rates_hz: Its sampling rate, by id.
    """

    kind: str
    splits: dict[str, list[Example]]
    rejects: list[Reject]
    ignored_files: int = 0
    short_sides_px: dict[str, int] = field(default_factory=dict)
    reencoded: int = 0
    rotated: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rates_hz: dict[str, int] = field(default_factory=dict)


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
class _ClassFolders:
    """Files in class folders: (name, split, class folder) of each, what is in none, and how many were not wanted."""

    work: list[tuple[str, str, str]]
    rejects: list[Reject]
    ignored: int


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
    found = _class_folders(raw, is_image_name)
    work, rejects, ignored = found.work, found.rejects, found.ignored
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


def collect_audio(raw: Path, scratch: Path) -> Collection:
    """Read class folders of recordings: `CLASS/...` or `{train,validation,test}/CLASS/...`.

    Every recording is decoded by libsndfile, and what will be stored, a WAV file of one channel in 16-bit PCM at the
    rate it came at, by the TensorFlow operations that the model will use. Such files are stored as they are. Silence is
    a sound like any other.

    Args:
        raw: Folder of class folders.
        scratch: Existing folder for converted recordings; must outlive the use of the examples.

    Raises:
        DataError: If the folder layout is ambiguous.
    """
    found = _class_folders(raw, is_audio_name)
    rejects = found.rejects
    progress = Progress(log, "checking recordings", len(found.work), "recordings")
    splits: dict[str, list[Example]] = {}
    seconds, rates_hz = {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(lambda item: _read_recording(raw, scratch, *item), found.work):
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
        seconds=seconds,
        rates_hz=rates_hz,
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

    parsed = {split: read_table(raw / name) for split, name in by_split.items()}
    train = parsed["train"]
    text, target = choose_columns(
        train.name, train.header, [fields for _, fields in train.rows], text_column, target_column
    )
    if {text, target}.isdisjoint((text_column, target_column, *TEXT_NAMES, *TARGET_NAMES)):
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
                f"{quoted(table.header)}. Every table needs the text and the label; without labels it cannot serve as "
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


def _read_rows(table: Table, text: str, target: str) -> Iterator[Example | Reject]:
    text_place, target_place = table.header.index(text), table.header.index(target)
    for line, fields in table.rows:
        name = f"{table.name}:{line}"
        if len(fields) != len(table.header):
            yield Reject(name, f"has {len(fields)} field(s) where the header has {len(table.header)}")
            continue
        content = fields[text_place]
        try:
            label = class_name(fields[target_place])
        except UnusableTarget as error:
            yield Reject(name, str(error))
            continue
        if content.strip():
            yield Example(hashlib.sha256(content.encode()).hexdigest(), name, label, content)
        else:
            yield Reject(name, "has no text", label)


def _read_image(raw: Path, scratch: Path, name: str, split: str, target: str) -> _Image | Reject:
    content = (raw / name).read_bytes()
    try:
        label = class_name(target)
    except UnusableTarget as error:
        return Reject(name, f"is in a class folder whose name cannot be a label: it {error}")
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


def _read_recording(raw: Path, scratch: Path, name: str, split: str, target: str) -> _Recording | Reject:
    content = (raw / name).read_bytes()
    try:
        label = class_name(target)
    except UnusableTarget as error:
        return Reject(name, f"is in a class folder whose name cannot be a label: it {error}")
    digest = hashlib.sha256(content).hexdigest()
    try:
        recording = audio.decode(content)
    except audio.UnreadableAudio as error:
        return Reject(name, str(error), label)
    stored = raw / name
    if not (recording.is_plain and _tensorflow_hears(content)):
        wav = recording.to_wav()
        if not _tensorflow_hears(wav):
            return Reject(name, "cannot be decoded by TensorFlow", label)
        stored = scratch / f"{digest}.wav"
        _write_once(stored, wav)
    return _Recording(split, Example(digest, name, label, stored), recording.seconds, recording.rate_hz)


def _tensorflow_hears(wav: bytes) -> bool:
    try:
        decode_wav(tf.constant(wav))
    except tf.errors.OpError:
        return False
    return True


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


def _class_folders(raw: Path, is_wanted: Callable[[str], bool]) -> _ClassFolders:
    """Return the files below `raw` whose names are wanted, with the split and the class folder of each.

    Raises:
        DataError: If the folder layout is ambiguous.
    """
    names = list(list_files(raw).files)
    wanted = [name for name in names if is_wanted(name)]
    has_splits = _has_split_folders(wanted)
    ignored = len(names) - len(wanted)
    work: list[tuple[str, str, str]] = []
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
            work.append((name, split, folders[0]))
        else:
            rejects.append(Reject(name, "is in no class folder, so it has no label"))
    return _ClassFolders(work, rejects, ignored)


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
