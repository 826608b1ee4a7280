"""Auditing a project: its prepared data, or its source if nothing is prepared yet."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from regraft.data import sources
from regraft.data.audit import Audit, Content, Member, audit, find_copies
from regraft.data.examples import collect
from regraft.data.fetch import common_kind, fetch_all
from regraft.data.grouping import SplitColumns
from regraft.data.records import Split, open_split, read_info
from regraft.errors import DataError
from regraft.paths import Paths
from regraft.settings import Settings, load_settings

_ROWS_AT_ONCE = {"image": 256, "text": 256, "audio": 8}  # recordings can be long


def audit_project(paths: Paths, *, near: bool = True) -> Audit:
    """Return what the audit of the project's prepared data finds, or else of its source in its own splits.

    Args:
        paths: The project.
        near: Whether to look for near copies too.

    Raises:
        RegraftError: If settings, source or prepared data cannot be used.
    """
    settings = load_settings(paths.params)
    if paths.prepared.is_dir():
        return _audit_prepared(paths.prepared, near=near)
    paths.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.scratch, prefix="audit-") as scratch:
        return _audit_source(settings, paths, Path(scratch), near=near)


def _audit_prepared(prepared: Path, *, near: bool) -> Audit:
    info = read_info(prepared)
    splits = {split: open_split(prepared, split) for split in info.counts}
    copies = find_copies(info.kind, _contents(list(splits.values())), near=near)
    places = [(split, row) for split, rows in splits.items() for row in range(len(rows))]
    members = [
        Member(splits[split].names[row], split, splits[split].target(row), content)
        for (split, row), content in zip(places, copies.contents, strict=True)
    ]
    return audit(members, copies.near)


def _contents(splits: Sequence[Split]) -> Iterator[Content]:
    """Yield every row's content in order, a few read at a time."""
    for split in splits:
        step = _ROWS_AT_ONCE[split.kind]
        for start in range(0, len(split), step):
            yield from split.inputs(range(start, min(start + step, len(split))))


def _audit_source(settings: Settings, paths: Paths, scratch: Path, *, near: bool) -> Audit:
    raw = paths.raw
    named = sources.parse_all(settings.download.sources, paths.root)
    found = {folder: sources.at_hand(source, paths.root, paths.state) for folder, source in named.items()}
    if not raw.is_dir():
        raw = scratch / "raw"
        raw.mkdir()
        fetch_all(found, raw)
    (scratch / "converted").mkdir()
    collection = collect(
        common_kind(found),
        raw,
        scratch / "converted",
        text_column=settings.preprocess.text_column,
        target_column=settings.preprocess.target_column,
        task=settings.preprocess.task,
        rare_below=settings.preprocess.min_examples_per_class,
        split_columns=SplitColumns(settings.preprocess.group_column, settings.preprocess.time_column),
    )
    places = [(split, example) for split, held in collection.splits.items() for example in held]
    if not places:
        raise DataError(f"source {', '.join(settings.download.sources)} holds no example that can be used.")
    copies = find_copies(collection.kind, (example.content for _, example in places), near=near)
    members = [
        Member(example.name, split, example.label, content)
        for (split, example), content in zip(places, copies.contents, strict=True)
    ]
    return audit(members, copies.near)
