"""Splits: pure functions of the examples' ids, so that adding data moves no example and copies stay together."""

import hashlib
from collections.abc import Mapping, Sequence

from regraft.data.records import SPLITS, Example


def complete(
    own: Mapping[str, Sequence[Example]], *, validation_fraction: float, test_fraction: float
) -> dict[str, list[Example]]:
    """Return train, validation and test, keeping the source's own splits and taking missing ones out of its train.

    Each id has a fixed place in [0, 1). Ids below `test_fraction` are test, the next `validation_fraction` validation,
    the rest train, so an example stays where it is whatever is added. Copies share an id, hence a split. One exception:
    a class with enough different examples for every split (three, if two splits are made) and none in one of them gives
    it the one whose place is nearest; when such a tiny class grows, that example may go back.

    Args:
        own: The source's splits; "train" among them, unless there is no example at all.
        validation_fraction: Share of the source's train split for validation, in (0, 0.5).
        test_fraction: Share of it for test, in (0, 0.5).
    """
    fractions = {"test": test_fraction, "validation": validation_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if not own.get(split)}
    chosen = assign(own.get("train", ()), fractions, tuple(missing))
    splits: dict[str, list[Example]] = {split: list(own.get(split, ())) for split in SPLITS}
    splits["train"] = []
    for example in own.get("train", ()):
        splits[chosen[example.id]].append(example)
    return splits


def assign(examples: Sequence[Example], fractions: Mapping[str, float], wanted: Sequence[str]) -> dict[str, str]:
    """Return "train" or one of the `wanted` splits for each id.

    Args:
        examples: Labelled examples; copies count once, under the first of their labels.
        fractions: Share of [0, 1) for each split, in this order from 0; also of splits that are not wanted, whose share
            then belongs to train. So a split does not move when another one arrives with the source.
        wanted: Splits to make.
    """
    classes: dict[str, list[str]] = {}
    label_of: dict[str, str] = {}
    for example in examples:
        label = "" if example.values else example.label  # values are no classes: their examples are one group
        label_of[example.id] = min(label, label_of.get(example.id, label))
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
    return chosen


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
