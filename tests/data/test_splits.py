"""Making the splits that a source lacks."""

import hashlib
from itertools import pairwise
from typing import Any

import pytest

from regraft.data.records import Example
from regraft.data.splits import assign, complete, group, place

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


def grouped(train, pairs, keys=None):
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
    few = grouped(train[:-100], [], keys)
    many = grouped(train, [], keys)
    assert few.items() <= many.items()
    splits_of: dict[str, set[str]] = {}
    for example in train:
        splits_of.setdefault(keys[example.id], set()).add(many[example.name])
    assert all(len(held) == 1 for held in splits_of.values())


def test_groups_are_what_copies_and_keys_connect():
    # a-b by copy, b and c by key, d-e by copy, g-h through a copy in another split, f alone but for such a copy.
    pairs = [("b", "a"), ("e", "d"), ("f", "Y"), ("X", "h"), ("g", "X")]
    groups = group("abcdefgh", pairs, {"b": "k2", "c": "k2"})
    assert groups == {"a": "key k2", "b": "key k2", "c": "key k2", "d": "d", "e": "d", "g": "g", "h": "g"}
