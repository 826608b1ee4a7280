"""The leakage audit: which examples are copies of which, across splits and with other labels.

Exact copies have the same decoded content: pixels, samples, or text. Near copies are one content changed a little; what
counts as little is said in the module of each kind. This module knows no kind beyond calling it, and no file.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data import audio, audio_copies, image_copies, text_copies

# Files held encoded, so that memory stays bounded; recordings can be long.
_AT_ONCE = {"image": 256, "audio": 8}
_RANKS = {"test": 2, "validation": 1, "train": 0}

Content = str | bytes | Path


@dataclass(frozen=True)
class Copies:
    """Which of a sequence of examples are copies.

    Attributes:
        contents: For each example the number of its content, counted from 0; exact copies share one.
        near: Pairs of contents that are near copies, in order.
        bonds: Pairs of contents that must share a split whatever else there is, in order; see `text_copies.NearCopies`.
    """

    contents: list[int]
    near: list[tuple[int, int]]
    bonds: list[tuple[int, int]]

    def id_pairs(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of ids that must share a split, given the examples' ids in the same order."""
        first: dict[int, str] = {}
        pairs = []
        for identity, content in zip(ids, self.contents, strict=True):
            if first.setdefault(content, identity) != identity:
                pairs.append((first[content], identity))
        return [*pairs, *((first[one], first[other]) for one, other in self.bonds)]


@dataclass(frozen=True)
class Member:
    """An example as the audit sees it; `content` is its number in `Copies`."""

    name: str
    split: str
    label: str
    content: int


Pair = tuple[Member, Member]


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Attributes:
        members: How many examples there are.
        exact: Of k exact copies, the first by name with each of the k - 1 others.
        near: Near copies, each content by its first member.
        to_drop: Members of a train or validation split that have a copy in one that must stay clean of it: train gives
            way to validation and to test, validation to test.
    """

    members: int
    exact: list[Pair]
    near: list[Pair]
    to_drop: list[Member]

    @property
    def conflicts(self) -> list[Pair]:
        """Exact copies with different labels."""
        return [pair for pair in self.exact if pair[0].label != pair[1].label]

    @property
    def near_conflicts(self) -> list[Pair]:
        """Near copies with different labels."""
        return [pair for pair in self.near if pair[0].label != pair[1].label]

    @property
    def across(self) -> list[Pair]:
        """Exact and near copies in different splits."""
        return [pair for pair in (*self.exact, *self.near) if pair[0].split != pair[1].split]

    def across_by_splits(self) -> dict[str, int]:
        """Return how many pairs there are across each two splits, as `train and test`."""
        both = (sorted((one.split, other.split), key=lambda split: _RANKS[split]) for one, other in self.across)
        return dict(sorted(Counter(" and ".join(splits) for splits in both).items()))

    def as_json(self) -> dict[str, Any]:
        """Return all pairs by name: what `regraft data audit --json` prints."""
        return {
            "exact": names(self.exact),
            "near": names(self.near),
            "conflicts": names(self.conflicts),
            "across_splits": len(self.across),
        }

    def report(self, policy: str, dropped: Sequence[str], limit: int = 1000) -> dict[str, Any]:
        """Return what reports/data.json says of leakage: counts, and at most `limit` names in each list."""
        lists = {
            "exact": self.exact,
            "near": self.near,
            "conflicts": self.conflicts,
            "near_conflicts": self.near_conflicts,
            "across": self.across,
        }
        return {
            **{kind: {"pairs": len(pairs), "listed": names(pairs[:limit])} for kind, pairs in lists.items()},
            "across_splits": len(self.across),
            "across_by_splits": self.across_by_splits(),
            "policy": policy,
            "dropped": {"examples": len(dropped), "listed": sorted(dropped)[:limit]},
        }


def names(pairs: Iterable[Pair]) -> list[list[str]]:
    """Return the names of `pairs`."""
    return [[one.name, other.name] for one, other in pairs]


def find_copies(kind: str, contents: Iterable[Content], *, near: bool = True) -> Copies:
    """Return which of `contents` are copies; they are read once, a few at a time.

    Args:
        kind: "image", "text" or "audio".
        contents: Texts; or encoded pictures or recordings, or the files holding them.
        near: Whether to look for near copies too.

    Raises:
        ValueError: If there is no such kind.
        UnreadableImage: If a picture cannot be decoded.
        UnreadableAudio: If a recording cannot be decoded.
    """
    if kind == "text":
        return _texts(contents, near=near)
    if kind == "image":
        return _images(contents, near=near)
    if kind == "audio":
        return _sounds(contents, near=near)
    raise ValueError(f"kind must be 'image', 'text' or 'audio', got {kind!r}")


def audit(members: Sequence[Member], near: Iterable[tuple[int, int]]) -> Audit:
    """Return the pairs of copies among `members`, given the near copies among their contents.

    A near pair needs a member of both contents. Its splits are those of the members shown, which stand first by name;
    that others of them stand elsewhere shows in the exact pairs.
    """
    holding: dict[int, list[Member]] = {}
    for member in sorted(members, key=lambda member: (member.name, member.split)):
        holding.setdefault(member.content, []).append(member)
    near = [(one, other) for one, other in near if one in holding and other in holding]
    rank = {content: max(_RANKS[member.split] for member in held) for content, held in holding.items()}
    highest = dict(rank)
    for one, other in near:
        highest[one] = max(highest[one], rank[other])
        highest[other] = max(highest[other], rank[one])
    return Audit(
        members=len(members),
        exact=sorted(((held[0], other) for held in holding.values() for other in held[1:]), key=_by_name),
        near=sorted((_ordered(holding[one][0], holding[other][0]) for one, other in near), key=_by_name),
        to_drop=[
            member for held in holding.values() for member in held if _RANKS[member.split] < highest[member.content]
        ],
    )


def _ordered(one: Member, other: Member) -> Pair:
    return (one, other) if one.name <= other.name else (other, one)


def _by_name(pair: Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


def _texts(contents: Iterable[Content], *, near: bool) -> Copies:
    numbers: dict[bytes, int] = {}
    different: list[str] = []
    found = []
    for content in contents:
        text = str(content)
        number = numbers.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), len(numbers))
        if near and number == len(different):
            different.append(text)
        found.append(number)
    copies = text_copies.near_copies(different) if near else text_copies.NearCopies([], [])
    return Copies(found, copies.pairs, copies.bonds)


def _images(contents: Iterable[Content], *, near: bool) -> Copies:
    numbers: dict[bytes, int] = {}
    thumbnails: list[image_copies.Pixels] = []
    found = []
    waiting = iter(contents)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        while chunk := list(islice(waiting, _AT_ONCE["image"])):
            for sketch in pool.map(image_copies.sketch, chunk):
                number = numbers.setdefault(sketch.digest, len(numbers))
                if near and number == len(thumbnails):
                    thumbnails.append(sketch.thumbnail)
                found.append(number)
    if not near or not thumbnails:
        return Copies(found, [], [])
    pairs = image_copies.near_copies(np.stack(thumbnails))
    return Copies(found, pairs, pairs)


def _sounds(contents: Iterable[Content], *, near: bool) -> Copies:
    numbers: dict[bytes, int] = {}
    waves: list[audio_copies.Wave] = []
    found = []
    waiting = iter(contents)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(waiting, _AT_ONCE["audio"])):
            for fingerprint in pool.map(_fingerprint, chunk):
                number = numbers.setdefault(fingerprint.digest, len(numbers))
                if near and number == len(waves):
                    waves.append(fingerprint.wave)
                found.append(number)
    pairs = audio_copies.near_copies(waves) if near else []
    return Copies(found, pairs, pairs)


def _fingerprint(content: bytes | Path) -> audio_copies.Fingerprint:
    recording = audio.decode(content.read_bytes() if isinstance(content, Path) else content)
    return audio_copies.fingerprint(recording.samples, recording.rate_hz)
