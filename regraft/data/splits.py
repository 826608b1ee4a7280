"""Splits: pure functions of the examples' ids, so that adding data moves no example and copies stay together."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from regraft.data.records import SPLITS, Example


def complete(
    own: Mapping[str, Sequence[Example]],
    *,
    validation_fraction: float,
    test_fraction: float,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[Example]]:
    """Return train, validation and test, keeping the source's own splits and taking missing ones out of its train.

    Each id has a fixed place in [0, 1). Ids below `test_fraction` are test, the next `validation_fraction` validation,
    the rest train, so an example stays where it is whatever is added. Copies share an id, hence a split. A group of ids
    has one place, that of its key, hence one split; see `group`. One exception: a class with enough different examples
    (or groups) for every split (three, if two splits are made) and none in one of them gives it the one whose place is
    nearest; when such a tiny class grows, that example may go back.

    Args:
        own: The source's splits; "train" among them, unless there is no example at all.
        validation_fraction: Share of the source's train split for validation, in (0, 0.5).
        test_fraction: Share of it for test, in (0, 0.5).
        groups: The key of the group an id of "train" belongs to; ids that are not in it stand alone.
    """
    fractions = {"test": test_fraction, "validation": validation_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if not own.get(split)}
    chosen = assign(own.get("train", ()), fractions, tuple(missing), groups or {})
    splits: dict[str, list[Example]] = {split: list(own.get(split, ())) for split in SPLITS}
    splits["train"] = []
    for example in own.get("train", ()):
        splits[chosen[example.id]].append(example)
    return splits


def group(
    ids: Iterable[str], copies: Iterable[tuple[str, str]], keys: Mapping[str, str] | None = None
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
        keys: What else ids may have in common, by id.
    """
    own, keys = dict.fromkeys(ids), keys or {}
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
    for identity in own:
        if identity in keys:
            parent[root(identity)] = root(first_with.setdefault(keys[identity], identity))
    members: dict[str, list[str]] = {}
    for identity in own:
        members.setdefault(root(identity), []).append(identity)
    groups: dict[str, str] = {}
    for held in members.values():
        named = [f"key {keys[identity]}" for identity in held if identity in keys]
        if named or len(held) > 1:
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
