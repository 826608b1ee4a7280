"""What the cells of a target column mean: classes, several labels, or real values."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from regraft.data.examples import Collection, collect_texts
from regraft.data.records import Example, open_split, read_info, write_prepared
from regraft.data.splits import complete
from regraft.data.targets import UnusableTarget, reader_for
from regraft.data.validation import check
from regraft.errors import DataError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.settings import PreprocessSettings
from tasks import preprocess


def task_of(*columns, task="auto"):
    return reader_for(task, {f"c{place}": cells for place, cells in enumerate(columns)}, rare_below=3).task


def numbers(count, *, step=1.0, times=1):
    return [f"{number * step:g}" for number in range(count) for _ in range(times)]


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ([["cat", "dog"] * 20], "classification"),
        ([numbers(10, times=9)], "classification"),  # digits
        ([numbers(40, times=9)], "classification"),  # forty whole numbers, all of them frequent
        ([numbers(40)], "regression"),  # forty whole numbers that occur once
        ([[*numbers(20, times=9), "22", "25", "25", "26", "29", "31"]], "regression"),  # counts, thin at one end
        ([[*numbers(20, times=9), "20", "21", "22", "23", "24", "25"]], "classification"),  # classes, some of them new
        ([numbers(9)], "classification"),  # too few numbers to be measurements; the classes are refused later
        ([numbers(20, step=0.5, times=9)], "classification"),  # ratings by halves
        ([numbers(21, step=0.5, times=9)], "regression"),
        ([[*numbers(97, step=0.1), "n/a", "", "nan"]], "regression"),  # what is no number is set aside
        ([[*numbers(50, step=0.1), *["high"] * 10]], "classification"),
        ([["0", "1"] * 9, ["1", "1"] * 9], "multilabel"),
        ([["False", "True"] * 9, ["true", "false"] * 9], "multilabel"),
        ([["False", "True"] * 9], "classification"),
        ([["0", "1"] * 9, ["1", "2"] * 9], "regression"),
        ([["0", "1"] * 9], "classification"),  # yes or no
        ([["nan", "inf"] * 9], "regression"),  # none of them can be used
    ],
)
def test_the_values_decide_the_task(columns, task):
    assert task_of(*columns) == task


def test_the_setting_overrules_the_values():
    assert task_of(numbers(10, times=9), task="regression") == "regression"
    assert task_of(numbers(40), task="classification") == "classification"


@pytest.mark.parametrize(
    ("columns", "task", "says"),
    [
        ([["happy", "sad"]], "regression", r"every target must be a number, and column 'c0' holds 'happy'"),
        ([["1", "2"], ["a", "b"]], "auto", r"column 'c1' holds 'a'"),
        ([["3,5", "2,0"]], "regression", r"column 'c0' holds '3,5'\. Write numbers with a decimal point"),
        ([["0", "1"], ["1", "7"]], "multilabel", r"must be 0 or 1 .*, and column 'c1' holds '7'"),
        ([["a"], ["b"]], "classification", r"names 2 columns \(c0, c1\)"),
    ],
)
def test_values_that_cannot_be_the_task_are_refused_with_the_first_of_them(columns, task, says):
    with pytest.raises(DataError, match=says):
        task_of(*columns, task=task)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("", "has no size"),
        ("  ", "has no size"),
        ("nan", "not a finite number"),
        ("-inf", "not a finite number"),
        ("1e39", "not a finite number"),  # beyond float32
        ("3,5", "'3,5' as size, which is not a number"),
    ],
)
def test_a_value_that_cannot_be_learned_is_set_aside_with_its_reason(cell, says):
    reader = reader_for("regression", {"size": ["1", "2"]}, rare_below=3)
    with pytest.raises(UnusableTarget, match=says):
        reader.read([cell])


def test_several_labels_may_stand_in_one_cell():
    reader = reader_for("multilabel", {"tags": ["red|big", " big ", "green | red", ""]}, rare_below=3)
    assert reader.names == ("big", "green", "red")
    assert reader.read(["red|big"]).values == (1.0, 0.0, 1.0)
    assert reader.read(["red|big"]).label == reader.read(["big | red"]).label == "big|red"
    with pytest.raises(UnusableTarget, match=r"has no label \(where none holds, write `\|`\)"):
        reader.read([" "])


def test_that_no_label_holds_is_written_as_a_separator_alone():
    reader = reader_for("multilabel", {"tags": ["red|big", "|"]}, rare_below=3)
    assert reader.names == ("big", "red")
    assert (reader.read([" | "]).values, reader.read(["|"]).label) == ((0.0, 0.0), "")


def test_cells_that_look_like_several_labels_are_not_taken_for_classes_in_silence(caplog):
    assert task_of(["red|big", "red", "big"] * 9) == "classification"
    assert "also 'red|big'; if these are several labels, set preprocess.task to multilabel" in caplog.text


def test_labels_that_are_separated_by_something_else_are_announced(caplog):
    assert reader_for("multilabel", {"tags": ["red, big", "red"]}, rare_below=3).names == ("red", "red, big")
    assert "no cell of column 'tags' holds more than one label, such as 'red, big'" in caplog.text


def test_marks_are_read_by_column_and_anything_else_is_set_aside():
    reader = reader_for("auto", {"red": ["0", "1"], "big": ["1.0", "0"]}, rare_below=3)
    assert (reader.task, reader.names) == ("multilabel", ("red", "big"))
    assert reader.read(["0", "1.0"]).values == (0.0, 1.0)
    assert reader.read(["true", "False"]).values == (1.0, 0.0)
    with pytest.raises(UnusableTarget, match="'2' as big, which is neither 0 nor 1"):
        reader.read(["0", "2"])


def write_table(folder, rows):
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("text,x,y\n" + "".join(f"words {n},{x},{y}\n" for n, (x, y) in enumerate(rows)))
    return folder


def test_a_table_with_two_columns_of_numbers_gives_two_values_an_example(tmp_path):
    rows = [(n / 7, 10 * n) for n in range(40)]
    found = collect_texts(write_table(tmp_path / "raw", [*rows, ("", 1), (2, "inf")]), None, ["y", "x"])
    assert (found.task, found.target_names) == ("regression", ("y", "x"))
    assert found.columns == {"text": "text", "target": "y, x"}
    assert [example.values for example in found.splits["train"]] == [(y, x) for x, y in rows]
    assert [(reject.name, reject.reason[:8]) for reject in found.rejects] == [
        ("a.csv:42", "has no x"),
        ("a.csv:43", "has 'inf"),
    ]


def test_a_second_target_column_must_exist_too(tmp_path):
    with pytest.raises(DataError, match=r"'z', and a\.csv has no such column"):
        collect_texts(write_table(tmp_path / "raw", [(1, 2)] * 3), None, ["x", "z"])


def valued(count, value_of, prefix=""):
    return [
        Example(f"{prefix}{n:03d}", f"{prefix}{n}", str(value_of(n)), f"words {prefix} {n}", value_of(n))
        for n in range(count)
    ]


def test_prepared_values_come_back_in_order_and_tfds_reads_them_too(tmp_path):
    train = valued(12, lambda n: (n / 3, -1e6 * n))
    write_prepared(tmp_path / "p", "text", ("x", "y"), {"train": train}, task="regression")
    info, split = read_info(tmp_path / "p"), open_split(tmp_path / "p", "train")
    assert (info.task, info.labels, split.task) == ("regression", ("x", "y"), "regression")
    assert split.labels.dtype == np.float32
    np.testing.assert_array_equal(split.labels, np.array([example.values for example in train], np.float32))
    row = tfds.builder_from_directory(str(tmp_path / "p")).as_data_source("train")[5]
    np.testing.assert_array_equal(row["values"], split.labels[5])
    assert row["values"].dtype == np.float32


def test_prepared_labels_come_back_as_zeros_and_ones(tmp_path):
    train = valued(8, lambda n: (float(n % 2), 1.0, 0.0))
    write_prepared(tmp_path / "p", "text", ("a", "b", "c"), {"train": train}, task="multilabel")
    split = open_split(tmp_path / "p", "train")
    np.testing.assert_array_equal(split.labels, [[n % 2, 1, 0] for n in range(8)])
    row = tfds.builder_from_directory(str(tmp_path / "p")).as_data_source("train")[3]
    assert row["values"].tolist() == [1, 1, 0]


def test_an_example_without_a_value_for_each_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs 2 values"):
        write_prepared(tmp_path, "text", ("x", "y"), {"train": valued(3, lambda n: (1.0,))}, task="regression")


def test_values_that_all_differ_are_split_like_one_group_and_not_sent_to_train():
    splits = complete({"train": valued(400, lambda n: (n / 7,))}, validation_fraction=0.15, test_fraction=0.2)
    shares = [len(splits[split]) / 400 for split in ("validation", "test")]
    assert shares == pytest.approx([0.15, 0.2], abs=0.06)


def problems(task, names, splits):
    collection = Collection("text", splits, [], task=task, target_names=names)
    with pytest.raises(DataError) as caught:
        check(collection, splits, min_examples_per_class=3, max_rejected_fraction=0.1, rejects_file="data.json")
    return str(caught.value)


def test_a_constant_target_is_refused_also_if_only_float32_makes_it_one():
    splits = {
        "train": valued(9, lambda n: (5.0, float(n), 1e9 + n), "a"),
        "validation": valued(3, lambda n: (float(n),) * 3, "b"),
        "test": valued(3, lambda n: (float(n), 2.0, 1.0 + n), "c"),
    }
    message = problems("regression", ("x", "y", "z"), splits)
    assert "target 'x' is 5 in every example of train" in message
    assert "target 'y' is 2 in every example of test" in message
    assert "target 'z' is 1e+09 in every example of train" in message
    assert message.count("target") == 3


def test_a_label_that_hardly_occurs_or_always_holds_is_refused():
    def split(count, prefix):
        return valued(count, lambda n: (float(n % 2), 1.0, float(prefix == "a" and n == 0)), prefix)

    splits = {"train": split(10, "a"), "validation": split(4, "b"), "test": split(4, "c")}
    message = problems("multilabel", ("fine", "always", "rare"), splits)
    assert "label 'always' holds for all examples of train" in message
    assert "label 'rare' has 1 different example(s)" in message
    assert "'fine'" not in message


def test_the_report_describes_real_values_by_split(tmp_path):
    paths = Paths(tmp_path)
    write_table(paths.raw, [(n % 100, n / 7) for n in range(300)])
    write_json(paths.reports / "download.json", {"source": "folder", "digest": "ab" * 32})
    preprocess.run(PreprocessSettings(target_column="y"), paths)
    report = read_json(paths.reports / "data.json")
    assert (report["task"], report["labels"]) == ("regression", ["y"])
    assert "counts" not in report
    described = report["targets"]["y"]["train"]
    values = open_split(paths.prepared, "train").labels[:, 0].astype(np.float64)
    assert described["mean"] == pytest.approx(values.mean())
    assert described["standard_deviation"] == pytest.approx(values.std())
    assert described["p50"] == pytest.approx(np.median(values))
    assert (described["min"], described["max"]) == pytest.approx((values.min(), values.max()))


def test_the_report_counts_labels(tmp_path):
    paths = Paths(tmp_path)
    write_table(paths.raw, [(n % 2, int(n % 3 == 0)) for n in range(120)])
    write_json(paths.reports / "download.json", {"source": "folder", "digest": "ab" * 32})
    preprocess.run(PreprocessSettings(target_column=["x", "y"]), paths)
    report = read_json(paths.reports / "data.json")
    assert report["task"] == "multilabel"
    assert sum(counts["x"] for counts in report["counts"].values()) == 60
    assert sum(counts["y"] for counts in report["counts"].values()) == 40


def test_folders_named_by_numbers_are_classes_unless_the_setting_says_that_they_are_values(tmp_path):
    from PIL import Image

    paths = Paths(tmp_path)
    for number in range(60):
        folder = paths.raw / f"{number % 12}.5"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    write_json(paths.reports / "download.json", {"source": "folder", "digest": "ab" * 32})
    preprocess.run(PreprocessSettings(), paths)
    assert read_info(paths.prepared).task == "classification"
    write_json(paths.reports / "download.json", {"source": "folder", "digest": "ab" * 32})
    preprocess.run(PreprocessSettings(task="regression"), paths)
    info = read_info(paths.prepared)
    assert (info.kind, info.task, info.labels) == ("image", "regression", ("value",))
    assert set(np.unique(open_split(paths.prepared, "train").labels)) <= {number + 0.5 for number in range(12)}
