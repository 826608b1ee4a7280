"""Copies between a project's examples and another source, such as the data that a backbone was pretrained on."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from regraft.data import audio, images, pairs
from regraft.data.audit import Content, Member, find_copies
from regraft.data.records import SPLITS
from regraft.data.sources import describe_suffixes, is_audio_name, is_image_name, is_table_name, list_files
from regraft.data.tables import choose_columns, quoted, read_table
from regraft.errors import DataError

Match = tuple[Member, str]


@dataclass(frozen=True)
class Others:
    """What another source holds, its labels left aside.

    Attributes:
        names: Of each example: a file, or a line of a table as `train.csv:17`.
        contents: Its text, or the file of it.
        unreadable: How many files or lines hold no example that can be read.
    """

    names: list[str]
    contents: list[Content]
    unreadable: int


@dataclass(frozen=True)
class Against:
    """Which of a project's examples have copies in another source.

    Attributes:
        source: That source, as it was named.
        examples: How many examples it holds.
        unreadable: How many more could not be read.
        exact: Members of the project with the first exact copy of theirs in the source.
        near: Members with a near copy there.
    """

    source: str
    examples: int
    unreadable: int
    exact: list[Match]
    near: list[Match]

    def by_split(self) -> dict[str, int]:
        """Return how many examples of each of the project's splits have a copy in the source."""
        counts = Counter(member.split for member, _ in (*self.exact, *self.near))
        return {split: counts[split] for split in SPLITS}

    def as_json(self) -> dict[str, Any]:
        """Return all pairs by name: what `regraft data audit --against SOURCE --json` adds."""
        return {
            "source": self.source,
            "examples": self.examples,
            "unreadable": self.unreadable,
            "exact": [[member.name, name] for member, name in self.exact],
            "near": [[member.name, name] for member, name in self.near],
            "examples_with_copies": self.by_split(),
        }


def read_others(kind: str, raw: Path, text_column: str | Sequence[str] | None) -> Others:
    """Return the examples of a kind ("image", "text" or "audio") in the folder or table `raw`, whatever their labels.

    Files count wherever they lie, with or without class folders. Of a table the column `text_column` is taken if there
    is one (two for pairs of texts), else the column that looks like text.

    Raises:
        DataError: If it holds none, or a table cannot be parsed.
    """
    folder, names = (raw.parent, [raw.name]) if raw.is_file() else (raw, list(list_files(raw).files))
    is_wanted = {"image": is_image_name, "audio": is_audio_name, "text": is_table_name}[kind]
    # A single table may have any name and suffix.
    wanted = names if kind == "text" and raw.is_file() else [name for name in names if is_wanted(name)]
    others = _rows(folder, wanted, text_column) if kind == "text" else _files(kind, folder, wanted)
    if not others.names:
        raise DataError(
            f"{raw} holds no {kind} example to compare with; found {describe_suffixes(names)}"
            + (f", {others.unreadable} of which cannot be read." if others.unreadable else ".")
        )
    return others


def compare(
    kind: str, members: Sequence[Member], contents: Iterable[Content], others: Others, *, source: str, near: bool = True
) -> Against:
    """Return which of `members` have copies among `others`; copies within either are not looked at.

    Args:
        kind: "image", "text" or "audio".
        members: The project's examples.
        contents: Their contents, in the same order.
        others: The examples of the source.
        source: Its name.
        near: Whether to look for near copies too.
    """
    # The others come first: of several copies the first is paired with each, so it must be one of theirs.
    stored = map(_as_stored, others.contents) if kind == "audio" else others.contents
    copies = find_copies(kind, chain(stored, contents), near=near)
    first_other: dict[int, str] = {}
    for name, content in zip(others.names, copies.contents, strict=False):
        first_other.setdefault(content, name)
    beside: dict[int, list[int]] = {}
    for one, other in copies.near:
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    exact, similar = [], []
    for member, content in zip(members, copies.contents[len(others.names) :], strict=True):
        if content in first_other:
            exact.append((member, first_other[content]))
            continue
        found = [first_other[other] for other in beside.get(content, ()) if other in first_other]
        if found:
            similar.append((member, min(found)))
    return Against(
        source, len(others.names), others.unreadable, sorted(exact, key=_by_names), sorted(similar, key=_by_names)
    )


def _as_stored(content: Content) -> Content:
    """Return a recording as prepared data would hold it: copies are told by what is heard after that."""
    raw = content.read_bytes() if isinstance(content, Path) else content
    recording = audio.decode(raw.encode() if isinstance(raw, str) else raw)
    return content if recording.is_plain else recording.to_wav()


def _by_names(match: Match) -> tuple[str, str]:
    return match[0].name, match[1]


def _files(kind: str, folder: Path, names: Sequence[str]) -> Others:
    def is_readable(name: str) -> bool:
        try:
            content = (folder / name).read_bytes()
            if kind == "image":
                images.to_rgb(content)
            else:
                audio.decode(content)
        except (images.UnreadableImage, audio.UnreadableAudio):
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kept = [name for name, readable in zip(names, pool.map(is_readable, names), strict=True) if readable]
    return Others(kept, [folder / name for name in kept], len(names) - len(kept))


def _rows(folder: Path, names: Sequence[str], text_column: str | Sequence[str] | None) -> Others:
    found: list[str] = []
    texts: list[Content] = []
    unreadable = 0
    for name in names:
        table = read_table(folder / name)
        columns = [text_column] if isinstance(text_column, str) else list(text_column or ())
        lacking = [column for column in columns if column not in table.header]
        if lacking and len(columns) > 1:
            raise DataError(
                f"{name} has no column {lacking[0]!r}, and pairs of texts can only be compared with pairs; its columns "
                f"are {quoted(table.header)}."
            )
        if not columns or lacking:
            rows = [fields for _, fields in table.rows]
            try:
                columns = (
                    table.header
                    if len(table.header) == 1
                    else [choose_columns(name, table.header, rows, None, None)[0]]
                )
            except DataError:
                if len(names) == 1:
                    raise
                unreadable += len(rows)  # a table of numbers among others
                continue
        places = [table.header.index(column) for column in columns]
        for line, fields in table.rows:
            held = [fields[place] for place in places] if len(fields) == len(table.header) else [""]
            if all(text.strip() for text in held):
                found.append(f"{name}:{line}")
                texts.append(pairs.SEPARATOR.join(held))
            else:
                unreadable += 1
    return Others(found, texts, unreadable)
