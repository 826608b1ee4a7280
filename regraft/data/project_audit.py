"""Auditing a project: its prepared data, or its source if nothing is prepared yet; alone, or against another source."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from regraft.data import sources
from regraft.data.against import Against, compare, read_others
from regraft.data.audit import Audit, Content, Member, audit, find_copies
from regraft.data.examples import collect
from regraft.data.fetch import fetch, fetch_all
from regraft.data.grouping import SplitColumns
from regraft.data.records import Split, open_split, read_info
from regraft.errors import DataError
from regraft.paths import Paths
from regraft.settings import Settings, load_settings

_ROWS_AT_ONCE = {"image": 256, "text": 256, "audio": 8}  # recordings can be long


@dataclass(frozen=True)
class _Examples:
    """The project's examples: name, split and label of each, and their contents in the same order, read anew at a call.

    Attributes:
        kind: "image", "text" or "audio".
        rows: (name, split, label) of each.
        contents: Returns their contents.
    """

    kind: str
    rows: list[tuple[str, str, str]]
    contents: Callable[[], Iterable[Content]]

    def members(self, contents: Sequence[int]) -> list[Member]:
        """Return the rows with the number of each one's content."""
        return [Member(*row, content) for row, content in zip(self.rows, contents, strict=True)]


def audit_project(paths: Paths, *, near: bool = True) -> Audit:
    """Return what the audit of the project's prepared data finds, or else of its source in its own splits.

    Args:
        paths: The project.
        near: Whether to look for near copies too.

    Raises:
        RegraftError: If settings, source or prepared data cannot be used.
    """
    with _examples(paths, load_settings(paths.params)) as examples:
        copies = find_copies(examples.kind, examples.contents(), near=near)
        return audit(examples.members(copies.contents), copies.near)


def audit_against(paths: Paths, source: str, *, near: bool = True) -> Against:
    """Return which of the project's examples have copies in `source`, say the data a backbone was pretrained on.

    A folder or table is read where it lies; an archive, a package or a TFDS dataset is unpacked for the time being.

    Args:
        paths: The project.
        source: As in `download.source`; relative paths start at the current folder. Labels in it do not matter.
        near: Whether to look for near copies too.

    Raises:
        RegraftError: If settings, prepared data or either source cannot be used.
    """
    settings = load_settings(paths.params)
    other = sources.parse(source, Path.cwd(), paths.root)
    if other.url is not None:
        raise DataError(f"source {source!r} is not on this machine; fetch it, and name the folder or file.")
    with _examples(paths, settings) as examples, _scratch(paths) as scratch:
        raw = other.path
        if other.is_archive or other.scheme in ("package", "tfds"):
            raw = scratch
            fetch(other, raw)
        others = read_others(examples.kind, raw, settings.preprocess.text_column)
        members = examples.members([0] * len(examples.rows))
        return compare(examples.kind, members, examples.contents(), others, source=source, near=near)


@contextmanager
def _scratch(paths: Paths) -> Iterator[Path]:
    paths.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.scratch, prefix="audit-") as scratch:
        yield Path(scratch)


@contextmanager
def _examples(paths: Paths, settings: Settings) -> Iterator[_Examples]:
    """Yield the examples that are prepared, or else those of the source."""
    if paths.prepared.is_dir():
        yield _prepared(paths.prepared)
        return
    with _scratch(paths) as scratch:
        yield _collected(settings, paths, scratch)


def _prepared(prepared: Path) -> _Examples:
    info = read_info(prepared)
    splits = {name: open_split(prepared, name) for name in info.counts}
    rows = [(split.names[row], name, split.target(row)) for name, split in splits.items() for row in range(len(split))]
    return _Examples(info.kind, rows, lambda: _contents(list(splits.values())))


def _contents(splits: Sequence[Split]) -> Iterator[Content]:
    """Yield every row's content in order, a few read at a time."""
    for split in splits:
        step = _ROWS_AT_ONCE[split.kind]
        for start in range(0, len(split), step):
            yield from split.inputs(range(start, min(start + step, len(split))))


def _collected(settings: Settings, paths: Paths, scratch: Path) -> _Examples:
    raw = paths.raw
    if not raw.is_dir():
        named = sources.parse_all(settings.download.sources, paths.root)
        found = {folder: sources.at_hand(source, paths.root, paths.state) for folder, source in named.items()}
        raw = scratch / "raw"
        raw.mkdir()
        fetch_all(found, raw)
    (scratch / "converted").mkdir()
    collection = collect(
        sources.kind_of_files(sources.list_files(raw).files) or "text",
        raw,
        scratch / "converted",
        text_column=settings.preprocess.text_column,
        target_column=settings.preprocess.target_column,
        task=settings.preprocess.task,
        rare_below=settings.preprocess.min_examples_per_class,
        split_columns=SplitColumns(
            settings.preprocess.group_column,
            settings.preprocess.time_column,
            tuple(settings.preprocess.slice_columns),
        ),
    )
    places = [(split, example) for split, held in collection.splits.items() for example in held]
    if not places:
        raise DataError(f"source {', '.join(settings.download.sources)} holds no example that can be used.")
    rows = [(example.name, split, example.label) for split, example in places]
    return _Examples(collection.kind, rows, lambda: (example.content for _, example in places))
