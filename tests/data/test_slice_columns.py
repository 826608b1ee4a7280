"""Columns to slice by: from the source's table to a file beside the prepared data, which they leave as it is."""

import csv
import hashlib
from typing import Any

import pytest

import tasks.download
import tasks.preprocess
from regraft.data.records import open_split
from regraft.data.slice_columns import read_slices
from regraft.errors import DataError, SettingsError
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings, Settings, check_settings
from tests.data.test_grouping import labelled_pictures, messages, write_table


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "project").mkdir()
    return Paths(tmp_path / "project")


def prepare(paths, source, **settings):
    """Run both stages; return the cells of test examples, by column, and the digest of the prepared data."""
    tasks.download.run(DownloadSettings(source=source), paths)
    tasks.preprocess.run(PreprocessSettings(**settings), paths)
    digest = hashlib.sha256()
    for file in sorted(paths.prepared.iterdir()):
        digest.update(file.read_bytes())
    return read_slices(paths.slices, open_split(paths.prepared, "test").names), digest.hexdigest()


def test_cells_of_test_texts_are_kept_and_the_prepared_data_stays_as_it_is(paths, tmp_path):
    rows = messages()
    write_table(tmp_path / "texts.csv", rows)
    source = f"csv:{tmp_path / 'texts.csv'}"
    nothing, before = prepare(paths, source)
    assert nothing == {}
    cells, after = prepare(paths, source, slice_columns=["when", "who"])
    assert before == after
    places = [int(name.removeprefix("texts.csv:")) - 2 for name in open_split(paths.prepared, "test").names]
    assert len(places) > 10
    assert cells == {key: [str(rows[place][key]) for place in places] for key in ("when", "who")}


def test_a_column_of_groups_may_slice_too_and_none_of_them_is_guessed_to_be_the_target(paths, tmp_path):
    # `who` has fewer values than `kind` and would be taken, were it not known for something else.
    rows = [{"text": row["text"], "who": "xy"[n % 2], "kind": "abc"[n % 3]} for n, row in enumerate(messages())]
    rows = [row | {"speaker": f"s{n % 30}"} for n, row in enumerate(rows)]
    write_table(tmp_path / "texts.csv", rows)
    cells, _ = prepare(paths, f"csv:{tmp_path / 'texts.csv'}", group_column="speaker", slice_columns=["who", "speaker"])
    assert open_split(paths.prepared, "test").class_names == ("a", "b", "c")
    assert set(cells["who"]) == {"x", "y"}
    assert all(cell.startswith("s") for cell in cells["speaker"])


def test_cells_of_pictures_come_from_labels_csv(paths, tmp_path):
    rows = [
        {"file": f"{n}.png", "label": "ab"[n % 2], "split": ("train", "val", "test")[n // 8], "site": f"site {n % 3}"}
        for n in range(24)
    ]
    labelled_pictures(tmp_path / "pictures", rows)
    cells, _ = prepare(paths, f"folder:{tmp_path / 'pictures'}", slice_columns=["site"])
    site = {row["file"]: row["site"] for row in rows}
    assert cells["site"] == [site[name] for name in open_split(paths.prepared, "test").names]


def test_the_table_of_the_test_split_needs_the_column_and_that_of_validation_does_not(paths, tmp_path):
    (tmp_path / "texts").mkdir()
    rows = messages()
    bare = [{"text": row["text"], "label": row["label"]} for row in rows]
    write_table(tmp_path / "texts" / "train.csv", rows[:60])
    write_table(tmp_path / "texts" / "validation.csv", bare[60:90])
    write_table(tmp_path / "texts" / "test.csv", rows[90:])
    cells, _ = prepare(paths, f"csv:{tmp_path / 'texts'}", slice_columns=["who"])
    assert sorted(cells["who"]) == sorted(row["who"] for row in rows[90:])
    write_table(tmp_path / "texts" / "test.csv", bare[90:])
    with pytest.raises(
        DataError, match=r"slice_columns names 'who', and test.csv has no such column; .*'text', 'label'"
    ):
        prepare(paths, f"csv:{tmp_path / 'texts'}", slice_columns=["who"])


def test_a_column_that_is_not_there_or_has_another_use_stops_the_run_with_those_there_are(paths, tmp_path):
    write_table(tmp_path / "texts.csv", messages())
    source = f"csv:{tmp_path / 'texts.csv'}"
    said = (
        "slice_columns names 'whom', and texts.csv has no such column; its columns are 'text', 'label', 'who', 'when'"
    )
    with pytest.raises(DataError, match=said):
        prepare(paths, source, slice_columns=["whom"])
    with pytest.raises(DataError, match=r"slice_columns names 'label', which texts.csv uses for the target"):
        prepare(paths, source, slice_columns=["label"], target_column="label")
    with pytest.raises(DataError, match=r"slice_columns names 'who', and class folders have no columns"):
        prepare(paths, "package:mnist5k", slice_columns=["who"])


def test_a_column_is_named_once():
    sections: dict[str, Any] = {name: {} for name in Settings.model_fields if name not in {"name", "seed"}}
    with pytest.raises(SettingsError, match=r"preprocess.slice_columns: must name each column once"):
        check_settings({"name": "x", **sections, "preprocess": {"slice_columns": ["a", "a"]}}, "params.yaml")


def test_what_is_written_is_read_back_or_refused(tmp_path):
    with pytest.raises(DataError, match="--force preprocess"):
        read_slices(tmp_path / "slices.csv", ["a"])
    with (tmp_path / "slices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "note"], ["a", 'two\nlines, "quoted"']])
    assert read_slices(tmp_path / "slices.csv", ["a"]) == {"note": ['two\nlines, "quoted"']}
    with pytest.raises(DataError, match="--force preprocess"):
        read_slices(tmp_path / "slices.csv", ["a", "b"])
