"""Groups and times: from columns and file names, through the stage, to splits that keep them."""

import csv
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tasks.download
import tasks.preprocess
from regraft.data import grouping
from regraft.data.grouping import SplitColumns, group_in_name, groups_across, outranked, parse_times
from regraft.data.records import Example, open_split
from regraft.errors import DataError, SettingsError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings, Settings, check_settings
from tests.sounds import record_tones

SPLITS = ("train", "validation", "test")


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "project").mkdir()
    return Paths(tmp_path / "project")


def prepare(paths, source, **settings):
    tasks.download.run(DownloadSettings(source=source), paths)
    tasks.preprocess.run(PreprocessSettings(**settings), paths)
    return {name: split for split in SPLITS for name in open_split(paths.prepared, split).names}


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def messages(count=120, speakers=20):
    return [
        {"text": f"message number {n} of {n * n}", "label": "ab"[n % 2], "who": f"s{n % speakers}", "when": 1000 + n}
        for n in range(count)
    ]


def labelled_pictures(folder, rows):
    """Write a picture of noise for each row, and labels.csv beside them."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for row in rows:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / row["file"])
    write_table(folder / "labels.csv", rows)


def splits_of(rows, names, key, where):
    held: dict[str, set[str]] = {}
    for row, name in zip(rows, names, strict=True):
        held.setdefault(row[key], set()).add(where[name])
    return held


def test_all_texts_of_a_speaker_share_a_split(paths, tmp_path):
    rows = messages()
    write_table(tmp_path / "texts.csv", rows)
    where = prepare(paths, f"csv:{tmp_path / 'texts.csv'}", group_column="who")
    held = splits_of(rows, [f"texts.csv:{n + 2}" for n in range(len(rows))], "who", where)
    assert all(len(splits) == 1 for splits in held.values())
    assert set.union(*held.values()) == set(SPLITS)
    report = read_json(paths.reports / "data.json")
    assert report["columns"] == {"text": "text", "target": "label", "group": "who"}
    assert report["leakage"]["groups"] == {"groups": 20, "without_group": 0, "across_splits": 0, "listed": []}


def test_an_empty_cell_is_no_group(paths, tmp_path):
    rows = messages()
    for row in rows[:60]:
        row["who"] = " "
    write_table(tmp_path / "texts.csv", rows)
    where = prepare(paths, f"csv:{tmp_path / 'texts.csv'}", group_column="who")
    assert {where[f"texts.csv:{n + 2}"] for n in range(60)} == set(SPLITS)
    assert read_json(paths.reports / "data.json")["leakage"]["groups"]["without_group"] == 60


def test_a_column_of_groups_or_times_is_not_guessed_to_be_the_target(paths, tmp_path):
    rows = [{"text": r["text"], "who": f"s{n % 3}", "kind": "abcd"[n % 4]} for n, r in enumerate(messages())]
    write_table(tmp_path / "texts.csv", rows)
    prepare(paths, f"csv:{tmp_path / 'texts.csv'}", group_column="who")
    assert read_json(paths.reports / "data.json")["columns"]["target"] == "kind"


def test_pictures_and_their_patients_share_a_split_by_labels_csv(paths, tmp_path):
    rows = [{"file": f"{n}.png", "label": "xy"[n % 2], "patient": f"p{n // 4}"} for n in range(80)]
    labelled_pictures(tmp_path / "scans", rows)
    where = prepare(paths, f"folder:{tmp_path / 'scans'}", group_column="patient")
    held = splits_of(rows, [row["file"] for row in rows], "patient", where)
    assert all(len(splits) == 1 for splits in held.values())
    assert len(held) == 20


def test_pictures_are_split_by_date_and_those_without_one_set_aside(paths, tmp_path):
    rows = [
        {"file": f"{n}.png", "label": "xy"[n % 2], "day": f"2024-{1 + n // 28:02}-{1 + n % 28:02}"} for n in range(80)
    ]
    rows[7]["day"], rows[9]["day"] = "last week", ""
    labelled_pictures(tmp_path / "scans", rows)
    where = prepare(paths, f"folder:{tmp_path / 'scans'}", time_column="day", max_rejected_fraction=0.05)
    report = read_json(paths.reports / "data.json")
    assert [reject["name"] for reject in report["rejects"]] == ["7.png", "9.png"]
    assert "'last week' for its time" in report["rejects"][0]["reason"]
    assert report["rejects"][1]["reason"] == "has no time"
    days = {split: [row["day"] for row in rows if where.get(row["file"]) == split] for split in SPLITS}
    assert max(days["train"]) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])
    assert report["split_by"] == "time"


def test_times_in_another_form_than_most_stop_the_run_with_their_rows(paths, tmp_path):
    rows = messages()
    for row in rows[10:20]:
        row["when"] = "soon"
    write_table(tmp_path / "texts.csv", rows)
    with pytest.raises(
        DataError, match=r"10 of 120 examples.*\n.*texts.csv:12 has 'soon' for its time, and the others"
    ):
        prepare(paths, f"csv:{tmp_path / 'texts.csv'}", time_column="when")


def test_a_column_that_holds_no_times_stops_the_run_with_rows(paths, tmp_path):
    write_table(tmp_path / "texts.csv", messages())
    with pytest.raises(
        DataError, match=r"time_column is 'who', and 120 of 120 (.|\n)*texts.csv:2 has 's0' for its time"
    ):
        prepare(paths, f"csv:{tmp_path / 'texts.csv'}", time_column="who")


def test_recordings_split_by_time_keep_each_speaker_whole_where_the_newest_is(paths, tmp_path):
    folder = tmp_path / "tones"
    record_tones(folder, per_class=20)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.wav"))
    rows = [
        {"file": name, "label": name.split("/")[0], "who": f"s{n % 10}", "second": f"{n % 10}.{n:03}"}
        for n, name in enumerate(files)
    ]
    write_table(folder / "labels.csv", rows)
    where = prepare(paths, f"folder:{folder}", group_column="who", time_column="second")
    held = splits_of(rows, files, "who", where)
    assert held["s9"] == held["s8"] == {"test"}
    assert held["s0"] == {"train"}
    assert all(len(splits) == 1 for splits in held.values())


def test_groups_may_stand_in_the_names_of_files(paths, tmp_path):
    rng = np.random.default_rng(5)
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for n in range(40):
            picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            picture.save(tmp_path / "pets" / label / f"{n}_owner{n % 15}_.png")
    where = prepare(paths, f"folder:{tmp_path / 'pets'}", group_pattern="_(owner[0-9]+)_")
    held: dict[str, set[str]] = {}
    for name, split in where.items():
        held.setdefault(name.split("_")[1], set()).add(split)
    assert len(held) == 15
    assert all(len(splits) == 1 for splits in held.values())
    with pytest.raises(DataError, match=r"finds a group in no file name; one is 'cat/0_owner0_.png'"):
        prepare(paths, f"folder:{tmp_path / 'pets'}", group_pattern="speaker([0-9]+)")
    with pytest.raises(DataError, match=r"group_column is 'owner', and class folders have no columns.*group_pattern"):
        prepare(paths, f"folder:{tmp_path / 'pets'}", group_column="owner")


@pytest.mark.parametrize("leaks", ["report", "drop", "refuse"])
def test_a_speaker_in_two_of_the_sources_own_splits_is_a_leak(paths, tmp_path, leaks, caplog):
    rows = messages()
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "train.csv", [row for row in rows if int(row["who"][1:]) < 15 or row is rows[19]])
    write_table(
        tmp_path / "tables" / "test.csv", [row for row in rows if int(row["who"][1:]) >= 15 and row is not rows[19]]
    )
    settings = {"group_column": "who", "leaks": leaks}
    if leaks == "refuse":
        with pytest.raises(
            DataError, match=r"1 group\(s\) stand in different splits(.|\n)*group 's19': 1 in train, 5 in t"
        ):
            prepare(paths, f"csv:{tmp_path / 'tables'}", **settings)
        return
    where = prepare(paths, f"csv:{tmp_path / 'tables'}", **settings)
    leakage = read_json(paths.reports / "data.json")["leakage"]
    assert leakage["groups"]["across_splits"] == 1
    (listed,) = leakage["groups"]["listed"]
    assert (listed["group"], sum(listed["examples"].values())) == ("s19", 6)
    assert leakage["dropped"]["examples"] == (1 if leaks == "drop" else 0)
    assert len(where) == (119 if leaks == "drop" else 120)
    assert "1 group(s) stood in more than one split, such as 's19'" in caplog.text


def test_dropping_every_group_that_is_in_test_too_may_leave_nothing_to_train_on(paths, tmp_path):
    (tmp_path / "tables").mkdir()
    rows = messages()
    for place, split in enumerate(SPLITS):
        write_table(tmp_path / "tables" / f"{split}.csv", rows[place::3])
    with pytest.raises(DataError, match=r"group\(s\) stand in different splits.*leaves nothing to train on"):
        prepare(paths, f"csv:{tmp_path / 'tables'}", group_column="who", leaks="drop")


def test_the_last_split_keeps_a_group():
    def of(split, *groups):
        return [Example(f"{split}{n}", f"{split}{n}", "a", "x", group=group) for n, group in enumerate(groups)]

    splits = {
        "train": of("train", "a", "b", "", "c"),
        "validation": of("validation", "b", "", "d"),
        "test": of("test", "b", "a", "", "e"),
    }
    across = groups_across(splits)
    assert across == {"a": {"train": 1, "test": 1}, "b": {"train": 1, "validation": 1, "test": 1}}
    assert outranked(splits, across) == {"train0", "train1", "validation0"}


def test_a_time_column_has_no_effect_where_the_source_has_its_splits(paths, tmp_path, caplog):
    (tmp_path / "tables").mkdir()
    for split, rows in zip(SPLITS, (messages()[:60], messages()[60:80], messages()[80:]), strict=True):
        write_table(tmp_path / "tables" / f"{split}.csv", rows)
    prepare(paths, f"csv:{tmp_path / 'tables'}", time_column="when")
    assert "time_column has no effect" in caplog.text
    assert read_json(paths.reports / "data.json")["split_by"] == "hash"


def test_times_are_numbers_or_dates_as_most_of_them_are():
    times, reasons = parse_times({"a": "1.5", "b": "12345678901234567891", "c": "nan", "d": "x", "e": ""})
    assert times == {"a": 1.5, "b": 12345678901234567891}
    assert reasons == {
        "c": "has 'nan' for its time, and the others have a finite number",
        "d": "has 'x' for its time, and the others have a finite number",
        "e": "has no time",
    }
    times, reasons = parse_times(
        {"a": "2024-05-01", "b": "2024-05-01T10:00:00+02:00", "c": "17", "d": "2024-05-01 9:00"}
    )
    assert times == {"a": datetime(2024, 5, 1, tzinfo=UTC), "b": datetime(2024, 5, 1, 8, tzinfo=UTC)}
    assert set(reasons) == {"c", "d"}
    assert parse_times({"a": "20240131", "b": "20231231"})[0] == {"a": 20240131, "b": 20231231}
    assert parse_times({}) == ({}, {})


def test_a_column_that_is_missing_or_taken_is_named_with_those_there_are():
    columns = SplitColumns(group="speeker", time="when")
    with pytest.raises(DataError, match=r"group_column is 'speeker', and t.csv has no such.*Did you mean 'speaker'"):
        columns.require("t.csv", ["text", "speaker", "when"])
    with pytest.raises(DataError, match=r"time_column is 'when', which t.csv uses for the target"):
        SplitColumns(time="when").require("t.csv", ["text", "when"], {"when": "target"})


def test_a_pattern_needs_one_pair_of_parentheses_and_no_column_beside_it():
    def settings(**preprocess):
        sections: dict[str, Any] = {name: {} for name in Settings.model_fields if name not in {"name", "seed"}}
        return check_settings({"name": "x", "seed": 1, **sections, "preprocess": preprocess}, "params.yaml")

    assert settings(group_pattern=r"_(\w+)_").preprocess.group_pattern == r"_(\w+)_"
    for wrong, said in (("a+", "it has 0"), ("(a)(b)", "it has 2"), ("(", "regular expression")):
        with pytest.raises(SettingsError, match=f"preprocess.group_pattern: .*{said}"):
            settings(group_pattern=wrong)
    with pytest.raises(SettingsError, match="group_column and group_pattern cannot both be set"):
        settings(group_pattern="(a)", group_column="b")


def test_a_pattern_that_repeats_nothing_finds_no_group():
    assert group_in_name("_([a-z]*)_", {"a": "1_anna_2", "b": "1__2", "c": "x"}) == {"a": "anna"}


def test_a_pattern_that_can_match_in_too_many_ways_is_named_with_the_file(monkeypatch):
    monkeypatch.setattr(grouping, "SEARCH_TIMEOUT_S", 0.05)
    with pytest.raises(DataError, match=r"group_pattern is '\(a\|aa\)\+\$', and after 0.05 s .* in 'cat/a{60}!'"):
        group_in_name("(a|aa)+$", {"x": "cat/" + "a" * 60 + "!"})


def test_copies_are_one_group_in_what_is_prepared(paths, tmp_path):
    rows = messages()
    write_table(tmp_path / "source.csv", [*rows, {**rows[3], "text": rows[3]["text"].upper() + "!"}])
    prepare(paths, f"csv:{tmp_path / 'source.csv'}", text_column="text", target_column="label")
    held = {"source.csv:5", "source.csv:122"}
    opened = next(split for split in map(partial(open_split, paths.prepared), SPLITS) if held & set(split.names))
    assert held <= set(opened.names)
    assert opened.groups is not None
    assert len({opened.groups[opened.names.index(name)] for name in held}) == 1
    assert len(set(opened.groups)) == len(set(opened.ids)) - 1


def test_the_group_of_a_copy_is_that_of_whose_it_is():
    examples = [Example(n, n, "a", "", group=group) for n, group in zip("0123", ("x", "x", "", ""), strict=True)]
    examples.append(replace(examples[3], name="4"))
    held = tasks.preprocess.with_copies_in_groups({"train": [*examples, Example("9", "9", "a", "")]}, [("1", "2")])
    groups = [example.group for example in held["train"]]
    assert groups[0] == groups[1] == groups[2] != groups[3] == groups[4] != ""
    assert groups[5] == ""
