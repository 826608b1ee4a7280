"""`regraft score`: answers to folders and tables in parts, going on where it stopped, and drift."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest

from regraft.data import drift
from regraft.errors import DataError, RegraftError, ResourceError
from regraft.files import read_json
from regraft.locking import exclusive
from regraft.registry import scored_drift, scoring
from regraft.registry.predict import OpenModel, open_model
from regraft.registry.register import publish
from tests.registry.small_projects import LINEAGE, Project, picture


@pytest.fixture
def project(make_project: Callable[..., Project], tmp_path: Path) -> Project:
    project = make_project(tmp_path / "project")
    publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    return project


@pytest.fixture
def opened(project: Project) -> Iterator[OpenModel]:
    with open_model(project.paths, project.settings, "colours") as model:
        yield model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture("red", 200))
    (folder / "b.webp").write_bytes(picture("green", 200, "WEBP"))
    (folder / "c.jpg").write_bytes(picture("blue", 200, "JPEG")[:40])
    (folder / "d.png").write_bytes(picture("green", 200, "TIFF"))  # not what its name says
    (folder / "more" / "e.jpg").write_bytes(picture("blue", 200, "JPEG"))
    (folder / "notes.txt").write_text("left out")
    return folder


def test_every_file_is_answered_or_says_why_not(opened, folder, tmp_path):
    outcome = scoring.score(opened, scoring.find_inputs(folder, opened), tmp_path / "out")
    rows = pd.read_parquet(tmp_path / "out")
    assert rows["input"].tolist() == ["a.png", "b.webp", "c.jpg", "d.png", "more/e.jpg"]
    assert rows["label"].tolist()[:2] == ["red", "green"]
    assert rows["label"].tolist()[3:] == ["green", "blue"]
    assert rows["error"].notna().tolist() == [False, False, True, False, False]
    assert "c.jpg is broken" in rows["error"][2]
    assert set(rows["model"]) == {"colours"}
    assert set(rows["version"]) == {1}
    assert rows["probabilities"][0]["red"] == pytest.approx(rows["probability"][0])
    assert (outcome["rows"], outcome["failed"], outcome["left_out"]) == (5, 1, 1)
    assert read_json(tmp_path / "out" / scoring.MANIFEST) == outcome


def test_what_was_interrupted_goes_on_with_the_parts_that_are_missing(opened, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "PART_ROWS", 2)
    inputs, answered = scoring.find_inputs(folder, opened), []
    answer = OpenModel.answer

    def stop_at_the_second_part(self, contents):
        answered.extend(contents)
        if len(answered) > 2:
            raise KeyboardInterrupt
        return answer(self, contents)

    with monkeypatch.context() as patch:
        patch.setattr(OpenModel, "answer", stop_at_the_second_part)
        with pytest.raises(KeyboardInterrupt):
            scoring.score(opened, inputs, tmp_path / "out")
    assert [file.name for file in sorted((tmp_path / "out").glob("part*"))] == ["part-000000.parquet"]
    assert not read_json(tmp_path / "out" / scoring.MANIFEST)["finished"]
    first = (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns
    assert scoring.score(opened, inputs, tmp_path / "out")["finished"]
    assert (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns == first
    assert pd.read_parquet(tmp_path / "out")["row"].tolist() == [0, 1, 2, 3, 4]


def test_answers_to_something_else_are_not_mixed_in(opened, folder, tmp_path):
    out = tmp_path / "out"
    scoring.score(opened, scoring.find_inputs(folder, opened), out)
    (folder / "f.png").write_bytes(picture("red", 100))
    with pytest.raises(DataError, match="answers of colours version 1 that differ in source"):
        scoring.score(opened, scoring.find_inputs(folder, opened), out)
    with pytest.raises(DataError, match="is no empty folder"):
        scoring.score(opened, scoring.find_inputs(folder, opened), folder)
    with exclusive(out / scoring.LOCK, out), pytest.raises(ResourceError, match="another process"):
        scoring.score(opened, scoring.find_inputs(folder, opened), out)


def test_a_table_of_paths_counts_from_where_it_lies(opened, folder, tmp_path):
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "file"], [7, "more/e.jpg"], [8, "gone.png"]])
    scoring.score(opened, scoring.find_inputs(folder / "list.csv", opened), tmp_path / "out")
    rows = pd.read_parquet(tmp_path / "out")
    assert rows["label"][0] == "blue"
    assert "cannot be read" in rows["error"][1]
    with pytest.raises(DataError, match=r"no column 'picture'; its columns are 'id', 'file'"):
        scoring.find_inputs(folder / "list.csv", opened, "picture")


def test_nothing_to_score_is_an_error(opened, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(DataError, match="holds nothing for a model of image"):
        scoring.find_inputs(tmp_path / "texts", opened)
    with pytest.raises(DataError, match="neither a folder nor a table"):
        scoring.find_inputs(tmp_path / "nowhere", opened)
    (tmp_path / "texts" / "a.png").write_bytes(b"no picture")
    with pytest.raises(RegraftError, match="none of the 1 inputs could be answered"):
        scoring.score(opened, scoring.find_inputs(tmp_path / "texts", opened), tmp_path / "out")


def test_drift_is_found_in_inputs_and_answers_and_not_where_there_is_none(project, opened, tmp_path):
    alike, dark = tmp_path / "alike", tmp_path / "dark"
    for place, shades, colours in ((alike, range(100, 250), ("red", "green", "blue")), (dark, range(1, 99), ("red",))):
        place.mkdir()
        for shade in shades:
            for colour in colours:
                (place / f"{colour}{shade}.png").write_bytes(picture(colour, shade))

    def drifted(place):
        inputs, out = scoring.find_inputs(place, opened), tmp_path / f"{place.name}-out"
        outcome = scoring.score(opened, inputs, out)
        rows = scored_drift.find_drift(
            project.paths, project.settings, outcome, inputs, out=out, prepared=project.paths.prepared
        )
        return {row["what"] for row in rows if row["drifted"]}

    assert drifted(alike) == set()
    assert drifted(dark) >= {"brightness (0 to 255)", "answers", "probability of the answer"}


def test_an_example_without_a_label_does_not_decide_what_lists_hold():
    answer = pd.DataFrame({"labels": [[]], "probabilities": [{"a": 0.1}], "error": [1.5]})
    stub = OpenModel("m", 1, ("text",), SimpleNamespace(input_example=None, predict=lambda _: answer))
    schema = scoring._schema(stub)
    assert schema.field("labels").type == pa.list_(pa.string())
    assert schema.field("error answer").type == pa.float64()
    assert schema.field("error").type == pa.string()


def test_where_nothing_could_be_answered_nothing_is_kept_and_the_next_attempt_begins_anew(opened, tmp_path):
    table, out = tmp_path / "files.csv", tmp_path / "out"
    table.write_text("image\nr.png\n")
    out.mkdir()
    (out / "_lock").touch()  # of an attempt that was killed at once
    with pytest.raises(RegraftError, match=r"none of the 1 inputs could be answered, and nothing was kept"):
        scoring.score(opened, scoring.find_inputs(table, opened), out)
    (tmp_path / "r.png").write_bytes(picture("red", 200))
    assert scoring.score(opened, scoring.find_inputs(table, opened), out)["failed"] == 0
    (tmp_path / "r.png").write_bytes(picture("green", 180))
    with pytest.raises(DataError, match="differ in source"):
        scoring.score(opened, scoring.find_inputs(table, opened), out)


def test_texts_of_a_table_are_texts_whatever_they_look_like(tmp_path):
    (tmp_path / "memo.txt").write_text("what it holds")
    table = tmp_path / "texts.csv"
    table.write_text(f"text\n{tmp_path / 'memo.txt'}\n")
    stub = OpenModel("m", 1, ("text",), None)
    inputs = scoring.find_inputs(table, stub)
    assert [scoring._read(stub, given, is_text=inputs.are_texts) for given in inputs.givens] == [
        str(tmp_path / "memo.txt")
    ]
    assert drift.measure("text", ["x" * 300 + ".txt"])["length in characters"].tolist() == [304.0]


def test_pairs_of_a_table_are_read_as_pairs(tmp_path):
    table, stub = tmp_path / "pairs.csv", OpenModel("m", 1, ("first", "second"), None)
    table.write_text("first,second\ngood day,bad day\n")
    inputs = scoring.find_inputs(table, stub)
    [read] = [scoring._read(stub, given, is_text=inputs.are_texts) for given in inputs.givens]
    assert read == {"first": "good day", "second": "bad day"}
    table.write_text("first,second\na ||| b,bad day\n")
    with pytest.raises(DataError, match="separates the two texts of a pair"):
        scoring.find_inputs(table, stub)
