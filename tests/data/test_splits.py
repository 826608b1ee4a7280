"""Making the splits that a source lacks."""

import hashlib
from typing import Any

import pytest

from regraft.data.records import Example
from regraft.data.splits import assign, complete, place

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
