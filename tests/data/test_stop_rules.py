"""What stops the run before training, and what the message says."""

import hashlib
from typing import Any

import pytest

from regraft.data.audit import Member
from regraft.data.examples import Collection, Reject
from regraft.data.records import Example
from regraft.data.validation import Doubts, check, find_doubts
from regraft.errors import DataError


def examples(label, count, prefix=""):
    return [
        Example(hashlib.sha256(f"{prefix}{label}{i}".encode()).hexdigest(), f"{prefix}{label}/{i}.png", label, "x")
        for i in range(count)
    ]


def problems(splits, rejects=(), kind="image", columns=None, allowed=0.02):
    collection = Collection(kind, splits, list(rejects), columns=columns or {})
    with pytest.raises(DataError) as caught:
        check(
            collection,
            splits,
            min_examples_per_class=3,
            max_rejected_fraction=allowed,
            rejects_file="reports/data.json",
        )
    return str(caught.value)


def three_splits(**counts):
    return {
        split: [example for label, numbers in counts.items() for example in examples(label, numbers[place], split)]
        for place, split in enumerate(("train", "validation", "test"))
    }


def test_good_data_passes():
    splits = three_splits(a=(5, 0, 2), b=(5, 2, 1))
    collection = Collection("image", splits, [])
    check(collection, splits, min_examples_per_class=3, max_rejected_fraction=0.0, rejects_file="reports/data.json")


def test_one_unreadable_example_of_few_does_not_stop_a_run_unless_none_may_be():
    splits = three_splits(a=(5, 1, 1), b=(5, 1, 1))
    cut = Reject("a/9.png", "is broken", "a")
    rules: Any = {"min_examples_per_class": 3, "rejects_file": "reports/data.json"}
    check(Collection("image", splits, [cut]), splits, max_rejected_fraction=0.02, **rules)
    assert "1 of 15 examples" in problems(splits, [cut], allowed=0.0)
    assert "2 of 16 examples" in problems(splits, [cut, cut])


def test_every_problem_is_reported_at_once():
    message = problems(three_splits(a=(5, 1, 1), b=(0, 0, 4), c=(4, 1, 0), d=(1, 0, 1)))
    assert "class 'b' occurs in test and not in train" in message
    assert "class 'c' has no example in test" in message
    assert "class 'd' has 2 different example(s)" in message
    assert "'a'" not in message


def test_one_class_is_not_enough():
    assert "the one class 'a'" in problems(three_splits(a=(5, 1, 1)))


def test_a_source_that_points_one_level_too_high_is_recognised():
    splits = {"train": examples("photos", 3, "photos/cat"), "validation": [], "test": []}
    splits["train"] = [
        Example(str(i), f"photos/{animal}/{i}.png", "photos", "x") for i, animal in enumerate(["cat", "dog"] * 4)
    ]
    assert "'cat', 'dog' inside it are the classes" in problems(splits)


def test_copies_do_not_make_a_class_large_enough():
    splits = three_splits(a=(5, 1, 1), b=(1, 0, 0))
    splits["test"] += splits["train"][-1:] * 4
    assert "class 'b' has 1 different example(s)" in problems(splits)


def test_rejects_beyond_the_limit_are_counted_and_the_first_ten_shown():
    rejects = [Reject(f"a/bad{i:02d}.png", "is empty (0 bytes)", "a") for i in range(12)]
    message = problems(three_splits(a=(50, 10, 10), b=(50, 10, 10)), rejects)
    assert "12 of 152 examples (7.9%) cannot be used" in message
    assert "a/bad09.png is empty (0 bytes)" in message
    assert "a/bad10.png" not in message
    assert "... and 2 more" in message
    assert "reports/data.json" in message


def test_a_class_all_of_whose_images_are_broken_is_named():
    rejects = [Reject("c/1.png", "is empty (0 bytes)", "c")]
    message = problems(three_splits(a=(50, 10, 10), b=(50, 10, 10)), rejects, allowed=0.5)
    assert "class 'c': none of its 1 example(s) can be used" in message


def test_no_example_at_all_says_what_is_expected():
    assert "one folder per class" in problems({})
    assert "no usable example is left" in problems({}, [Reject("a/1.png", "is empty (0 bytes)", "a")])


def test_a_column_of_identifiers_is_not_taken_for_classes():
    splits = {"train": [e for i in range(40) for e in examples(f"id{i}", 1)], "validation": [], "test": []}
    message = problems(splits, kind="text", columns={"text": "text", "target": "id"})
    assert "column 'id' was taken for the label and has 40 different values" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("point", [".", ","])
def test_real_values_are_not_taken_for_classes(point):
    values = [f"{i / 7:.2f}".replace(".", point) for i in range(40)]
    splits = {"train": [e for value in values for e in examples(value, 1)], "validation": [], "test": []}
    assert "different real numbers" in problems(splits, kind="text", columns={"text": "text", "target": "score"})


def test_data_without_an_example_for_validation_is_refused():
    message = problems(three_splits(a=(2, 0, 2), b=(2, 0, 2)))
    assert "no example for validation" in message


def limited(doubts, **limits):
    splits = three_splits(a=(50, 10, 10), b=(50, 10, 10))
    rules: Any = {"min_examples_per_class": 3, "max_rejected_fraction": 0.0, "rejects_file": "reports/data.json"}
    check(Collection("image", splits, []), splits, doubts=doubts, **rules, **limits)


def test_leaked_and_conflicting_examples_stop_the_run_only_beyond_their_limits():
    doubts = Doubts([f"t{n:02}" for n in range(12)], [f"c{n}" for n in range(7)])
    limited(doubts)
    limited(doubts, max_leak_fraction=0.6, max_conflict_fraction=0.05)
    limited(Doubts(), max_leak_fraction=0.0, max_conflict_fraction=0.0)
    with pytest.raises(DataError) as caught:
        limited(doubts, max_leak_fraction=0.59, max_conflict_fraction=0.0)
    message = str(caught.value)
    assert "12 of 20 (60.0%) test examples have a copy" in message
    assert "max_leak_fraction allows 59.0%" in message
    assert "t09\n    ... and 2 more" in message
    assert "7 of 140 (5.0%) examples are exact copies of one with another label" in message
    assert "max_conflict_fraction allows 0.0%" in message
    assert message.endswith("c6")


def test_leaked_are_test_examples_with_a_copy_or_a_group_elsewhere_and_conflicting_are_exact_copies():
    members = [
        Member("exact", "test", "a", 0), Member("train0", "train", "b", 0),
        Member("near", "test", "a", 1), Member("validation0", "validation", "b", 2),
        Member("grouped", "test", "a", 3), Member("train1", "train", "a", 4),
        Member("twice", "test", "a", 5), Member("again", "test", "a", 5), Member("clean", "test", "b", 6),
    ]  # fmt: skip
    doubts = find_doubts(members, [(1, 2), (5, 6)], {"grouped": "g", "train1": "g", "clean": "h"})
    assert doubts.leaked == ["exact", "near", "grouped"]
    assert doubts.conflicting == ["exact", "train0"]
