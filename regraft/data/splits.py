"""Splits: pure functions of the examples' ids, so that adding data moves no example and copies stay together.

Splits by time are the one exception: their borders move on as newer examples come in.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from regraft.data.grouping import Time
from regraft.data.records import SPLITS, Example
from regraft.errors import DataError


def complete(
    own: Mapping[str, Sequence[Example]],
    *,
    validation_fraction: float,
    test_fraction: float,
    groups: Mapping[str, str] | None = None,
    times: Mapping[str, Time] | None = None,
) -> dict[str, list[Example]]:
    """Return train, validation and test, keeping the source's own splits and taking missing ones out of its train.

    Each id has a fixed place in [0, 1). Ids below `test_fraction` are test, the next `validation_fraction` validation,
    the rest train, so an example stays where it is whatever is added. Copies share an id, hence a split. A group of ids
    has one place, that of its key, hence one split; see `group`. One exception: a class with enough different examples
    (or groups) for every split (three, if two splits are made) and none in one of them gives it the one whose place is
    nearest; when such a tiny class grows, that example may go back.

    Where `times` are given, they decide and not the place: see `assign_by_time`.

    Args:
        own: The source's splits; "train" among them, unless there is no example at all.
        validation_fraction: Share of the source's train split for validation, in (0, 0.5).
        test_fraction: Share of it for test, in (0, 0.5).
        groups: The key of the group an id of "train" belongs to; ids that are not in it stand alone.
        times: The time of each example of "train", by name.

    Raises:
        DataError: If there are too few different times for all the splits.
    """
    fractions = {"test": test_fraction, "validation": validation_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if not own.get(split)}
    train = own.get("train", ())
    if times is None:
        chosen = assign(train, fractions, tuple(missing), groups)
    else:
        chosen = assign_by_time(train, missing, times, groups)
    splits: dict[str, list[Example]] = {split: list(own.get(split, ())) for split in SPLITS}
    splits["train"] = []
    for example in train:
        splits[chosen[example.id]].append(example)
    return splits


def group(
    ids: Iterable[str], copies: Iterable[tuple[str, str]], keys: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Return a group key for each of `ids` that must share its split with another: a copy, or one with the same key.

    A group that has `keys` (a speaker, a patient) goes by the smallest of them, any other by its smallest id. So adding
    examples moves none of a group with a key, and none without copies. Where a new copy joins a group, two groups
    become one, and one of them must go where the other is: the one with the larger key moves, unless both fall in one
    split anyway. Nothing but the data at hand decides, not the order in which it came.

    Args:
        ids: The ids to group; copies by the byte share one.
        copies: Pairs of ids that are copies of each other. An id that is not among `ids` (of another split) links those
            it is a copy of, and no group goes by it.
        keys: Ids with what else they may have in common; of copies by the byte, each may have another.
    """
    own = Counter(ids)
    parent = {identity: identity for identity in own}

    def root(identity: str) -> str:
        parent.setdefault(identity, identity)
        while parent[identity] != identity:
            parent[identity] = parent[parent[identity]]
            identity = parent[identity]
        return identity

    for one, other in copies:
        parent[root(one)] = root(other)
    first_with: dict[str, str] = {}
    smallest: dict[str, str] = {}
    for identity, key in keys:
        if identity in own:
            parent[root(identity)] = root(first_with.setdefault(key, identity))
            smallest[identity] = min(key, smallest.get(identity, key))
    members: dict[str, list[str]] = {}
    for identity in own:
        members.setdefault(root(identity), []).append(identity)
    groups: dict[str, str] = {}
    for held in members.values():
        named = [f"key {smallest[identity]}" for identity in held if identity in smallest]
        if named or sum(own[identity] for identity in held) > 1:
            groups |= dict.fromkeys(held, min(named or held))
    return groups


def assign(
    examples: Sequence[Example],
    fractions: Mapping[str, float],
    wanted: Sequence[str],
    groups: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return "train" or one of the `wanted` splits for each id.

    Args:
        examples: Labelled examples; copies, and the members of a group, count once, under the first of their labels.
        fractions: Share of [0, 1) for each split, in this order from 0; also of splits that are not wanted, whose share
            then belongs to train. So a split does not move when another one arrives with the source.
        wanted: Splits to make.
        groups: The key of the group an id belongs to, if it belongs to one.
    """
    groups = groups or {}
    classes: dict[str, list[str]] = {}
    label_of: dict[str, str] = {}
    for example in examples:
        unit = groups.get(example.id, example.id)
        label = "" if example.values else example.label  # values are no classes: their examples are one group
        label_of[unit] = min(label, label_of.get(unit, label))
    for identity, label in label_of.items():
        classes.setdefault(label, []).append(identity)

    chosen: dict[str, str] = {}
    for identities in classes.values():
        ordered = sorted(identities, key=lambda identity: (place(identity), identity))
        for identity in ordered:
            chosen[identity] = _band(place(identity), fractions, wanted)
        if len(ordered) <= len(wanted):  # too few for every split; a class must at least be learnt
            chosen[ordered[-1]] = "train"
        else:
            _fill_empty(ordered, chosen, fractions, wanted)
    return {example.id: chosen[groups.get(example.id, example.id)] for example in examples}


def assign_by_time(
    examples: Sequence[Example],
    wanted: Mapping[str, float],
    times: Mapping[str, Time],
    groups: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return "train" or one of the `wanted` splits for each id: the newest examples are test, the oldest train.

    A split begins at a time: examples of one time share it, so it may be larger than its fraction asks for. The members
    of a group share one too, that of the newest among them. So nothing in train is newer than where validation begins,
    while validation and test may hold older members of a group. Every split gets one time at least.

    Borders move with the data, unlike the places of `assign`: as newer examples come in, a split begins later, and
    what was in test may become validation and then train. It never goes back, as long as no example is taken away, no
    older one comes late, and no newer one joins its group.

    Args:
        examples: With a time each.
        wanted: Splits to make, the newest first, with the share of `examples` for each.
        times: By name of example.
        groups: The key of the group an id belongs to, if it belongs to one.

    Raises:
        DataError: If there are fewer different times than splits.
    """
    if not wanted or not examples:
        return {example.id: "train" for example in examples}
    groups = groups or {}
    newest: dict[str, Time] = {}
    for example in examples:
        unit, time = groups.get(example.id, example.id), times[example.name]
        newest[unit] = max(time, newest.get(unit, time))
    at_time = Counter(newest[groups.get(example.id, example.id)] for example in examples)
    ordered = sorted(at_time)
    if len(ordered) <= len(wanted):
        raise DataError(
            f"the examples to split have {len(ordered)} different time(s) (of a group the newest counts), and "
            f"{' and '.join(wanted)} and train need one each, so preprocess.time_column cannot divide them."
        )
    split_at: dict[Time, str] = {}
    share, held, start = 0.0, 0, len(ordered)
    for number, (split, fraction) in enumerate(wanted.items()):
        share += fraction
        needed, end = math.ceil(share * len(examples) - 1e-9), start
        while start > len(wanted) - number and (held < needed or start == end):  # older splits need a time each
            start -= 1
            held += at_time[ordered[start]]
            split_at[ordered[start]] = split
    return {example.id: split_at.get(newest[groups.get(example.id, example.id)], "train") for example in examples}


def place(identity: str) -> float:
    """Return a number in [0, 1) that depends on `identity` alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(f"regraft split {identity}".encode()).digest()[:8]) / 2**64


def _band(position: float, fractions: Mapping[str, float], wanted: Sequence[str]) -> str:
    end = 0.0
    for split, fraction in fractions.items():
        end += fraction
        if position < end:
            return split if split in wanted else "train"
    return "train"


def _fill_empty(
    ordered: Sequence[str], chosen: dict[str, str], fractions: Mapping[str, float], wanted: Sequence[str]
) -> None:
    """Give each split without an example of this class the nearest one from a split that has two or more."""
    for split in (*wanted, "train"):
        held = {name: [identity for identity in ordered if chosen[identity] == name] for name in (*wanted, "train")}
        if not held[split]:
            middle = _middle(split, fractions)
            spare = [identity for name in held if len(held[name]) > 1 for identity in held[name]]
            chosen[min(spare, key=lambda identity: (abs(place(identity) - middle), identity))] = split


def _middle(split: str, fractions: Mapping[str, float]) -> float:
    start = 0.0
    for name, fraction in fractions.items():
        if name == split:
            return start + fraction / 2
        start += fraction
    return (start + 1.0) / 2
