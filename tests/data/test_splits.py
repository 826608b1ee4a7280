"""Making the splits that a source lacks."""

import hashlib
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from regraft.data.records import Example
from regraft.data.splits import assign, assign_by_time, complete, group, place
from regraft.errors import DataError

FRACTIONS: Any = {"validation_fraction": 0.15, "test_fraction": 0.2}


def examples(label, count, start=0):
    return [
        Example(hashlib.sha256(f"{label}{number}".encode()).hexdigest(), f"{label}/{number}", label, "x")
        for number in range(start, start + count)
    ]


def where(splits):
    return {example.name: split for split, held in splits.items() for example in held}


def test_shares_are_near_the_fractions():
    splits = complete({"train": examples("a", 4000) + examples("b", 4000)}, **FRACTIONS)
    assert len(splits["test"]) / 8000 == pytest.approx(0.2, abs=0.02)
    assert len(splits["validation"]) / 8000 == pytest.approx(0.15, abs=0.02)


def test_adding_examples_moves_none():
    few = where(complete({"train": examples("a", 100) + examples("b", 100)}, **FRACTIONS))
    many = where(complete({"train": examples("b", 150) + examples("c", 50) + examples("a", 300)}, **FRACTIONS))
    assert {name: many[name] for name in few} == few


def test_the_order_of_examples_does_not_matter():
    both = examples("a", 30) + examples("b", 3)
    assert where(complete({"train": both}, **FRACTIONS)) == where(complete({"train": both[::-1]}, **FRACTIONS))


@pytest.mark.parametrize("count", range(3, 12))
def test_a_class_of_three_or_more_is_in_every_split(count):
    for seed in range(40):
        splits = complete({"train": examples(f"class{seed}", count)}, **FRACTIONS)
        assert all(splits.values())


def test_own_splits_are_kept_as_they_are():
    own = {"train": examples("a", 50), "validation": examples("a", 5, 50), "test": examples("a", 5, 60)}
    assert complete(own, **FRACTIONS) == own


def test_only_the_missing_split_is_made():
    own = {"train": examples("a", 200), "test": examples("a", 5, 500)}
    splits = complete(own, **FRACTIONS)
    assert splits["test"] == own["test"]
    assert len(splits["train"]) + len(splits["validation"]) == 200
    assert 10 < len(splits["validation"]) < 60


def test_validation_stays_put_when_the_source_gains_a_test_split():
    train = examples("a", 200)
    before = complete({"train": train}, **FRACTIONS)
    after = complete({"train": train, "test": examples("a", 5, 500)}, **FRACTIONS)
    assert before["validation"] == after["validation"]


def test_copies_stay_together_even_with_other_labels():
    train = examples("a", 60)
    copies = [Example(example.id, f"copy/{example.name}", "b", "x") for example in train]
    splits = complete({"train": train + copies + examples("b", 5)}, **FRACTIONS)
    held = {split: {example.id for example in held} for split, held in splits.items()}
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    assert not held["validation"] & held["test"]
    assert sum(map(len, splits.values())) == 125


def test_three_copies_are_one_example_and_cannot_be_spread():
    same = examples("a", 1) * 3
    assert len(set(assign(same, {"test": 0.2, "validation": 0.15}, ("test", "validation")).values())) == 1


def test_no_examples_give_empty_splits():
    assert complete({}, **FRACTIONS) == {"train": [], "validation": [], "test": []}


def test_places_are_fixed_for_ever():
    # A change of this number would move the examples of every project: it was worked out with sha256sum, in the shell.
    # printf 'regraft split abc' | sha256sum | cut -c1-16
    assert place("abc") == 0x465A9D3CC0F51B4E / 2**64


def chain(examples_, length):
    """Pairs that link the examples in runs of `length`."""
    return [(one.id, other.id) for number, (one, other) in enumerate(pairwise(examples_), start=1) if number % length]


def grouped(train, pairs, keys=()):
    return where(complete({"train": train}, **FRACTIONS, groups=group([e.id for e in train], pairs, keys)))


def test_near_copies_stay_together():
    train = examples("a", 300) + examples("b", 300)
    pairs = chain(train, 5)
    held = grouped(train, pairs)
    name_of = {example.id: example.name for example in train}
    assert all(held[name_of[one]] == held[name_of[other]] for one, other in pairs)
    assert set(held.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("seed", range(5))
def test_adding_examples_and_groups_moves_nobody_where_no_groups_merge(seed):
    old = examples(f"a{seed}", 100) + examples("b", 100)
    new = examples("b", 50, 100) + examples(f"a{seed}", 50, 100) + examples("c", 20)
    before = grouped(old, chain(old, 3))
    after = grouped(new + old, chain(old, 3) + chain(new, 4))
    assert before.items() <= after.items()


def test_a_copy_that_joins_moves_at_most_the_group_it_joins():
    old = examples("a", 200)
    before = grouped(old, chain(old, 2))
    for added in examples("a", 20, 200):
        after = grouped([*old, added], [*chain(old, 2), (old[6].id, added.id)])
        assert {name for name in before if after[name] != before[name]} <= {old[6].name, old[7].name}
        assert after[added.name] == after[old[6].name]


def test_examples_of_one_key_stay_together_and_new_ones_move_none_of_them():
    train = examples("a", 200) + examples("b", 200)
    keys = {example.id: f"speaker {number % 40}" for number, example in enumerate(train)}
    few = grouped(train[:-100], [], keys.items())
    many = grouped(train, [], keys.items())
    assert few.items() <= many.items()
    splits_of: dict[str, set[str]] = {}
    for example in train:
        splits_of.setdefault(keys[example.id], set()).add(many[example.name])
    assert all(len(held) == 1 for held in splits_of.values())


def test_groups_are_what_copies_and_keys_connect():
    # a-b by copy, b and c by key, d-e by copy, g-h through a copy in another split, f alone but for such a copy.
    pairs = [("b", "a"), ("e", "d"), ("f", "Y"), ("X", "h"), ("g", "X")]
    groups = group("abcdefgh", pairs, [("b", "k2"), ("c", "k2")])
    assert groups == {"a": "key k2", "b": "key k2", "c": "key k2", "d": "d", "e": "d", "g": "g", "h": "g"}


def test_a_copy_to_the_byte_links_the_groups_of_both_its_owners():
    groups = group("abc", [], [("a", "k2"), ("b", "k2"), ("b", "k1"), ("c", "k1")])
    assert groups == {"a": "key k1", "b": "key k1", "c": "key k1"}


@dataclass
class _World:
    """Random examples with copies and owners; `units` says which are bound together."""

    train: list[Example]
    pairs: list[tuple[str, str]]
    keys: list[tuple[str, str]]
    units: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self):
        # Worked out by spreading numbers until nothing changes, not by the union-find under test.
        held = {example.id for example in self.train}
        number = {identity: place for place, identity in enumerate(sorted(held))}
        owned: dict[str, list[str]] = {}
        for identity, key in self.keys:
            owned.setdefault(key, []).append(identity)
        links = [pair for pair in self.pairs if held.issuperset(pair)]
        links += [pair for ids in owned.values() for pair in pairwise(ids)]
        changed = True
        while changed:
            changed = False
            for one, other in links:
                if number[one] != number[other]:
                    number[one] = number[other] = min(number[one], number[other])
                    changed = True
        members: dict[int, set[str]] = {}
        for identity, root in number.items():
            members.setdefault(root, set()).add(identity)
        self.units = {identity: frozenset(members[root]) for identity, root in number.items()}

    def without(self, gone):
        train = [example for example in self.train if example.name not in gone]
        held = {example.id for example in train}
        return _World(
            train,
            [pair for pair in self.pairs if held.issuperset(pair)],
            [(identity, key) for identity, key in self.keys if identity in held],
        )

    def splits(self):
        return grouped(self.train, self.pairs, self.keys)


def _random_world(seed):
    rng = random.Random(seed)  # noqa: S311
    # Classes are large: a tiny one may move an example to have one in every split, as `complete` says.
    train = [e for label in "abc"[: rng.randint(2, 3)] for e in examples(f"{label}{seed}.", rng.randint(120, 160))]
    # Copies to the byte, some under another name and label.
    train += [Example(e.id, f"again/{e.name}", rng.choice(train).label, "x") for e in rng.sample(train, 10)]
    ids = [example.id for example in train]
    pairs = [(rng.choice(ids), rng.choice(ids)) for _ in range(rng.choice([0, 5, 30]))]
    owners = rng.choice([0, 10, 80])
    keys = [(example.id, f"owner {rng.randrange(owners)} of {example.label}") for example in train[: owners * 2]]
    return _World(train, pairs, keys), rng


@pytest.mark.parametrize("block", range(8))
def test_taking_examples_away_moves_only_those_that_were_bound_to_one_of_them(block):
    moved = alike = 0
    for seed in range(50 * block, 50 * block + 50):
        full, rng = _random_world(seed)
        gone = {example.name for example in rng.sample(full.train, rng.choice([1, 5, 20]))}
        less = full.without(gone)
        before, after = full.splits(), less.splits()
        for example in less.train:
            if before[example.name] != after[example.name]:
                assert less.units[example.id] != full.units[example.id], (seed, example.name)
                moved += 1
            alike += 1
        for world, splits in ((full, before), (less, after)):
            of_unit: dict[frozenset[str], set[str]] = {}
            for example in world.train:
                of_unit.setdefault(world.units[example.id], set()).add(splits[example.name])
            assert all(len(held) == 1 for held in of_unit.values()), seed
    assert moved < 0.02 * alike


def dated(times, start=0):
    made = examples("a", len(times), start)
    return made, {example.name: time for example, time in zip(made, times, strict=True)}


def by_time(times, wanted=None, **groups):
    made, time_of = dated(times)
    chosen = assign_by_time(made, {"test": 0.2, "validation": 0.15} if wanted is None else wanted, time_of, **groups)
    return [chosen[example.id] for example in made]


def test_the_oldest_are_train_and_the_newest_test():
    assert by_time(list(range(20))) == ["train"] * 13 + ["validation"] * 3 + ["test"] * 4
    assert by_time([4, 2, 5, 1, 3]) == ["validation", "train", "test", "train", "train"]
    assert by_time([1, 2, 3, 4], {"validation": 0.15}) == ["train", "train", "train", "validation"]


def test_examples_of_one_time_share_a_split_and_every_split_gets_a_time():
    assert by_time([1, 1, 2, 2, 2, 2, 3, 3, 3, 3]) == ["train"] * 2 + ["validation"] * 4 + ["test"] * 4
    assert by_time([1] * 98 + [2, 3]) == ["train"] * 98 + ["validation", "test"]
    assert by_time([1, 2] + [3] * 98) == ["train", "validation"] + ["test"] * 98


def test_fewer_times_than_splits_are_an_error():
    with pytest.raises(DataError, match=r"2 different time\(s\).*test and validation and train need one each"):
        by_time([1, 1, 2, 2])


def test_a_group_stands_where_its_newest_member_does():
    made, times = dated(range(20))
    groups = {made[0].id: "key k", made[18].id: "key k"}
    chosen = assign_by_time(made, {"test": 0.2, "validation": 0.15}, times, groups)
    assert chosen[made[0].id] == chosen[made[18].id] == "test"
    assert max(times[e.name] for e in made if chosen[e.id] == "train") < 15


@pytest.mark.parametrize("block", range(4))
def test_newer_examples_move_older_ones_towards_train_and_never_back(block):
    order = ("train", "validation", "test")
    for seed in range(50 * block, 50 * block + 50):
        rng = random.Random(seed)  # noqa: S311
        span = rng.choice([5, 30, 1000])
        old, times = dated([rng.randrange(span) for _ in range(rng.randint(30, 120))])
        new, newer = dated([span - 1 + rng.randrange(span) for _ in range(rng.choice([1, 7, 90]))], start=500)
        wanted: Any = rng.choice([{"test": 0.2, "validation": 0.15}, {"test": 0.3}, {"validation": 0.05}])
        before = assign_by_time(old, wanted, times)
        after = assign_by_time(rng.sample(old + new, len(old + new)), wanted, times | newer)
        assert all(order.index(after[e.id]) <= order.index(before[e.id]) for e in old), seed
        spreads = [[(times | newer)[e.name] for e in old + new if after[e.id] == split] for split in order]
        held = [spread for spread in spreads if spread]
        assert all(max(one) < min(other) for one, other in pairwise(held)), seed
