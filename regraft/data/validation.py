"""Stop rules: what data cannot be trained on, said all at once and with complete lists."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.data.audit import Member
from regraft.data.examples import Collection
from regraft.data.records import Example
from regraft.data.targets import CLASSIFICATION, REGRESSION
from regraft.errors import DataError

_SHOWN = 10
_REAL_VALUES = 10


@dataclass(frozen=True)
class Doubts:
    """Names of the examples that make a result doubtful.

    Attributes:
        leaked: Test examples that have a copy, exact or near, or a member of their group in train or validation.
        conflicting: Exact copies of an example with another label.
    """

    leaked: Sequence[str] = ()
    conflicting: Sequence[str] = ()


def find_doubts(members: Sequence[Member], near: Iterable[tuple[int, int]], groups: Mapping[str, str]) -> Doubts:
    """Return the doubtful ones among `members`.

    Args:
        members: The examples of all splits.
        near: Pairs of contents that are near copies.
        groups: The group of each member that has one, by its name.
    """
    seen = {member.content for member in members if member.split != "test"}
    seen_groups = {groups[member.name] for member in members if member.split != "test" and member.name in groups}
    close: dict[int, set[int]] = {}
    for one, other in near:
        close.setdefault(one, set()).add(other)
        close.setdefault(other, set()).add(one)
    first_label: dict[int, str] = {}
    several = {m.content for m in members if first_label.setdefault(m.content, m.label) != m.label}
    leaked = [
        member.name
        for member in members
        if member.split == "test"
        and (
            member.content in seen
            or not seen.isdisjoint(close.get(member.content, ()))
            or groups.get(member.name) in seen_groups
        )
    ]
    return Doubts(leaked, [member.name for member in members if member.content in several])


def check(
    collection: Collection,
    splits: Mapping[str, Sequence[Example]],
    *,
    min_examples_per_class: int,
    max_rejected_fraction: float,
    rejects_file: str,
    doubts: Doubts = Doubts(),
    max_leak_fraction: float | None = None,
    max_conflict_fraction: float | None = None,
) -> None:
    """Raise if `collection`, divided into `splits`, cannot be trained on and measured.

    Rules: at least one example; no more than `max_rejected_fraction` set aside (but one may be, unless that is 0); two
    or more classes; every class has `min_examples_per_class` different examples over all splits, and at least one in
    train and one in test (without the first it cannot be learned, without the second not measured; validation may lack
    a class). Copies count once.
    Real values must differ in train and in test. Of several labels each must hold for `min_examples_per_class`
    different examples, and in train neither for all nor for none. `doubts` must stay within their limits, if there are.

    Args:
        collection: What the raw data holds, with its rejects.
        splits: The examples by split: train, validation, test.
        min_examples_per_class: Fewest different examples of a class.
        max_rejected_fraction: Largest share of examples that may be set aside, in [0, 1).
        rejects_file: Where the whole list of rejects is written, for the message.
        doubts: Of the examples in `splits`.
        max_leak_fraction: Largest share of test examples that may be leaked, in [0, 1); None for no limit.
        max_conflict_fraction: Largest share of all examples that may be conflicting, likewise.

    Raises:
        DataError: If a rule is broken; the message lists every problem.
    """
    problems = [
        *_rejects(collection, max_rejected_fraction, rejects_file),
        *_too_many(
            "max_leak_fraction",
            max_leak_fraction,
            doubts.leaked,
            len(splits.get("test", ())),
            "test examples have a copy, or one of their group, in train or validation; remove it, or set `leaks: drop`",
        ),
        *_too_many(
            "max_conflict_fraction",
            max_conflict_fraction,
            doubts.conflicting,
            sum(map(len, splits.values())),
            "examples are exact copies of one with another label; correct the labels, or take them out",
        ),
        *(_targets(collection, splits, min_examples_per_class) if any(splits.values()) else _nothing(collection)),
    ]
    if problems:
        raise DataError("the data cannot be used:\n  " + "\n  ".join(problems))


def _nothing(collection: Collection) -> list[str]:
    if collection.rejects:
        return ["no usable example is left"]
    layout = (
        "images and recordings stand in one folder per class (CLASS/picture.jpg, or train/CLASS/sound.wav) or beside a "
        "labels.csv"
        if collection.kind != "text"
        else "a table needs a line of column names and a line for each example"
    )
    return [f"there is no example in it ({collection.ignored_files} file(s) of other kinds were ignored); {layout}"]


def _rejects(collection: Collection, allowed: float, rejects_file: str) -> list[str]:
    rejects = collection.rejects
    total = len(rejects) + sum(map(len, collection.splits.values()))
    if len(rejects) <= (max(1.0, allowed * total) if allowed else 0.0):
        return []
    return [
        f"{len(rejects)} of {total} examples ({100 * len(rejects) / total:.1f}%) cannot be used, and "
        f"preprocess.max_rejected_fraction allows {100 * allowed:.1f}%; the whole list is in {rejects_file}. "
        f"Repair or remove them, or raise the limit:{_list([f'{one.name} {one.reason}' for one in rejects])}"
    ]


def _too_many(setting: str, allowed: float | None, names: Sequence[str], total: int, what: str) -> list[str]:
    """Return the problem, if there is one, that more than a share of `total` examples are `names`."""
    if allowed is None or len(names) <= allowed * total:
        return []
    return [
        f"{len(names)} of {total} ({100 * len(names) / total:.1f}%) {what}. preprocess.{setting} allows "
        f"{100 * allowed:.1f}%; `regraft data audit` lists copies with their partners:{_list(sorted(names))}"
    ]


def _list(lines: Sequence[str]) -> str:
    """Return the first of `lines`, each on one of its own and indented, and how many more there are."""
    rest = f"\n    ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "".join(f"\n    {line}" for line in lines[:_SHOWN]) + rest


def _targets(collection: Collection, splits: Mapping[str, Sequence[Example]], minimum: int) -> list[str]:
    if collection.task == CLASSIFICATION:
        return _classes(collection, splits, minimum)
    empty = [split for split, examples in splits.items() if not examples]
    if empty:
        return [f"no example is left for {', '.join(empty)}; add some, or let larger splits be made"]
    if collection.task == REGRESSION:
        return _real_values(collection.target_names, splits)
    return _labels(collection.target_names, splits, minimum)


def _real_values(names: Sequence[str], splits: Mapping[str, Sequence[Example]]) -> list[str]:
    problems = []
    for split, need in (("train", "nothing can be learned from it"), ("test", "nothing can be measured by it")):
        values = np.array([example.values for example in splits[split]], np.float32)
        problems += [
            f"target {name!r} is {column[0]:g} in every example of {split} (as float32), so {need}"
            for name, column in zip(names, values.T, strict=True)
            if (column == column[0]).all()
        ]
    return problems


def _labels(names: Sequence[str], splits: Mapping[str, Sequence[Example]], minimum: int) -> list[str]:
    problems = []
    distinct = {example.id: example.values for held in splits.values() for example in held}
    totals = np.array(list(distinct.values())).sum(axis=0)
    shares = np.array([example.values for example in splits["train"]]).mean(axis=0)
    for name, total, share in zip(names, totals, shares, strict=True):
        if total < minimum:
            problems.append(
                f"label {name!r} has {total:.0f} different example(s), and preprocess.min_examples_per_class wants "
                f"{minimum}: add some or leave the label out"
            )
        elif share in (0.0, 1.0):
            held = "all examples" if share else "no example"
            problems.append(f"label {name!r} holds for {held} of train, so it cannot be learned")
    return problems


def _classes(collection: Collection, splits: Mapping[str, Sequence[Example]], minimum: int) -> list[str]:
    distinct = {
        split: Counter(label for _, label in {(e.id, e.label) for e in examples}) for split, examples in splits.items()
    }
    labels = sorted({label for counts in distinct.values() for label in counts})
    lost = Counter(
        reject.label for reject in collection.rejects if reject.label is not None and reject.label not in labels
    )
    problems = [f"class {label!r}: none of its {count} example(s) can be used" for label, count in sorted(lost.items())]
    if len(labels) < 2:
        below = _folders_below(splits, labels[0])
        hint = f"; if {below} inside it are the classes, let the source point there" if below else ""
        problems.append(f"it has the one class {labels[0]!r}, and telling classes apart takes two or more{hint}")
    totals = Counter(label for _, label in {(e.id, e.label) for held in splits.values() for e in held})
    few = [label for label in labels if totals[label] < minimum]
    if few and _are_real_values(labels):
        return [
            *problems,
            f"the labels are {len(labels)} different real numbers ({labels[0]}, {labels[1]}, ...), most of them too "
            "rare to be classes: set preprocess.task to regression if they are measured values, or name another column "
            "in preprocess.target_column",
        ]
    if len(few) > len(labels) / 2 and collection.columns:
        return [
            *problems,
            f"column {collection.columns['target']!r} was taken for the label and has {len(labels)} different values, "
            f"most of them fewer than {minimum} times; if another column holds the class, name it in "
            "preprocess.target_column",
        ]
    problems += [
        f"class {label!r} has {totals[label]} different example(s), and preprocess.min_examples_per_class wants "
        f"{minimum}: add some or remove the class"
        for label in few
    ]
    if few and all(label.isdecimal() for label in labels):
        problems.append("if these are counts or measured values and no classes, set preprocess.task to regression")
    if not few and not splits.get("validation"):
        problems.append(
            "there is no example for validation: the train split has too few to spare any (copies, and groups "
            "that stay together, count once); add some to it, or add a validation split"
        )
    for label in labels:
        if label in few:
            continue
        if not distinct["train"][label]:
            held = ", ".join(split for split in ("validation", "test") if distinct[split][label])
            problems.append(f"class {label!r} occurs in {held} and not in train, so it cannot be learned")
        elif not distinct["test"][label]:
            problems.append(f"class {label!r} has no example in test, so it cannot be measured")
    return problems


def _folders_below(splits: Mapping[str, Sequence[Example]], label: str) -> str:
    """Return the folders inside the class folder `label`, to tell a source that points one level too high."""
    inside = set()
    for examples in splits.values():
        for example in examples:
            folders = example.name.split("/")[:-1]
            if label in folders[:-1]:
                inside.add(folders[folders.index(label) + 1])
    return ", ".join(map(repr, sorted(inside)[:5]))


def _are_real_values(labels: Sequence[str]) -> bool:
    """Return whether the labels are many, all numbers, and some of them with a fraction."""
    if len(labels) < _REAL_VALUES:
        return False
    try:
        return any(not float(label.replace(",", ".")).is_integer() for label in labels)
    except ValueError:
        return False
