import csv

import pytest

from benchmarks.subsample import choose, subsample_folder, subsample_table

KEYS = [f"{number}.png" for number in range(30)]
LABELS = ["cat" if number < 20 else "dog" for number in range(30)]


def test_each_class_keeps_as_many_as_asked_or_all_it_has():
    kept = [LABELS[row] for row in choose(KEYS, LABELS, 12, seed=0)]
    assert (kept.count("cat"), kept.count("dog")) == (12, 10)


def test_more_examples_a_class_add_to_the_fewer():
    assert set(choose(KEYS, LABELS, 3, seed=0)) < set(choose(KEYS, LABELS, 8, seed=0))


def test_the_order_of_rows_does_not_change_the_choice():
    there = {KEYS[row] for row in choose(KEYS, LABELS, 4, seed=0)}
    assert {KEYS[::-1][row] for row in choose(KEYS[::-1], LABELS[::-1], 4, seed=0)} == there


def test_another_seed_chooses_others():
    assert choose(KEYS, LABELS, 4, seed=0) != choose(KEYS, LABELS, 4, seed=1)


def test_none_a_class_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        choose(KEYS, LABELS, 0, seed=0)


def test_a_folder_keeps_its_whole_test_split(tmp_path):
    for split, count in (("train", 5), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(b"x")
    assert subsample_folder(tmp_path / "source", tmp_path / "few", 2, seed=0) == 4
    assert len(list((tmp_path / "few").glob("train/*/*"))) == 4
    assert len(list((tmp_path / "few").glob("test/*/*"))) == 8
    with pytest.raises(FileExistsError):
        subsample_folder(tmp_path / "source", tmp_path / "few", 2, seed=1)


def test_a_copied_row_of_a_table_takes_one_place(tmp_path):
    table = 'text,label\n"one, two",x\n"one, two",x\nthree,x\nfour,y\n'
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(table, "utf-8")
    assert subsample_table(tmp_path, tmp_path / "few", 2, seed=0) == 3
    with (tmp_path / "few" / "train.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(row["text"] for row in csv.DictReader(file)) == ["four", "one, two", "three"]
    assert (tmp_path / "few" / "test.csv").read_text("utf-8") == table
