"""Two texts as one example: joined and taken apart, read from two columns, refused where that cannot be."""

import hashlib

import pytest

import tasks.preprocess
from regraft.data import pairs
from regraft.data.examples import collect_texts
from regraft.data.records import open_split
from regraft.errors import DataError, SettingsError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.project import create
from regraft.registry import consumer_model
from regraft.settings import PreprocessSettings, load_settings

HEADER = "id,premise,hypothesis,class"


def write_pairs(folder, rows=None, header=HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    made = rows or [f"{n},it rains {n} times,the street {n} is wet,{('yes', 'no', 'maybe')[n % 3]}" for n in range(90)]
    (folder / "train.csv").write_text("\n".join([header, *made]))
    return folder


def test_a_pair_is_taken_apart_into_what_it_was_joined_from():
    joined = pairs.join(["A | b", "c, d"])
    assert joined == "A | b ||| c, d"
    assert pairs.split(joined) == ("A | b", "c, d")
    assert pairs.split("x|||y") == ("x", "y")
    assert pairs.as_columns(["p", "q"], [joined, "x ||| y"]) == {"p": ["A | b", "x"], "q": ["c, d", "y"]}


@pytest.mark.parametrize("text", ["one", "one |||", "||| two", "a ||| b ||| c", ""])
def test_what_is_no_pair_cannot_be_taken_apart(text):
    with pytest.raises(ValueError, match="is not two texts"):
        pairs.split(text)


def test_the_consumers_model_separates_texts_as_the_data_does():
    assert consumer_model.SEPARATOR == pairs.SEPARATOR
    assert consumer_model._joined("a ||| b", "c") == "a   b ||| c"


def test_two_columns_become_pairs_with_ids_of_both_texts(tmp_path):
    found = collect_texts(write_pairs(tmp_path / "raw"), ["premise", "hypothesis"], None)
    example = found.splits["train"][0]
    assert example.content == "it rains 0 times ||| the street 0 is wet"
    assert example.id == hashlib.sha256(example.content.encode()).hexdigest()
    assert example.label == "yes"
    assert found.pair == ("premise", "hypothesis")
    assert found.columns == {"text": "premise, hypothesis", "target": "class"}


def test_one_text_of_the_pair_may_be_the_group_that_shares_a_split(tmp_path):
    rows = [f"{n},premise number {n // 3},hypothesis {n},{('yes', 'no', 'maybe')[n % 3]}" for n in range(90)]
    paths = Paths(tmp_path / "project")
    write_pairs(paths.raw, rows)
    write_json(paths.reports / "download.json", {"source": "csv", "digest": "0" * 64})
    tasks.preprocess.run(
        PreprocessSettings(text_column=["premise", "hypothesis"], target_column="class", group_column="premise"), paths
    )
    groups = read_json(paths.reports / "data.json")["leakage"]["groups"]
    assert (groups["groups"], groups["across_splits"]) == (30, 0)


def test_a_pair_that_lacks_a_text_or_holds_the_separator_is_set_aside(tmp_path):
    rows = ["1,one,two,yes", "2,one,,no", "3, ,two,no", "4,a ||| b,two,yes"]
    found = collect_texts(write_pairs(tmp_path / "raw", rows), ["premise", "hypothesis"], "class")
    assert [example.name for example in found.splits["train"]] == ["train.csv:2"]
    assert [reject.reason for reject in found.rejects] == [
        "lacks one of its two texts",
        "lacks one of its two texts",
        "holds |||, which separates the two texts of a pair",
    ]


def test_the_target_is_never_guessed_to_be_one_of_the_two_texts(tmp_path):
    rows = [f"same text {n % 5},topic {n % 2},verdict {n % 3}" for n in range(60)]
    folder = write_pairs(tmp_path / "raw", rows, header="text,topic,verdict")
    assert collect_texts(folder, ["text", "topic"], None).columns["target"] == "verdict"


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        (["premise", "hypotesis"], None, "Did you mean 'hypothesis'"),
        (["premise", "premise"], None, "names 'premise' twice"),
        (["premise", "class"], "class", "must differ"),
    ],
)
def test_columns_that_make_no_pair_are_refused(tmp_path, columns, target, message):
    with pytest.raises(DataError, match=message):
        collect_texts(write_pairs(tmp_path / "raw"), columns, target)


def test_pairs_are_prepared_audited_and_reported(tmp_path):
    paths = Paths(tmp_path / "project")
    rows = [f"{n},it rains {n} times,the street {n} is wet,{('yes', 'no')[n % 2]}" for n in range(60)]
    write_pairs(paths.raw, [*rows, "99,It rains 3 times!,the street 3 is wet.,no"])
    write_json(paths.reports / "download.json", {"source": "csv", "digest": "0" * 64})
    tasks.preprocess.run(PreprocessSettings(text_column=["premise", "hypothesis"], target_column="class"), paths)
    report = read_json(paths.reports / "data.json")
    assert report["pair"] == ["premise", "hypothesis"]
    assert report["leakage"]["near"]["pairs"] >= 1
    texts = [text for split in ("train", "validation", "test") for text in read_all(paths, split)]
    assert len(texts) == 61
    assert all(len(pairs.split(text)) == 2 for text in texts)


def read_all(paths, split):
    rows = open_split(paths.prepared, split)
    return rows.inputs(range(len(rows)))


def test_a_new_project_names_the_two_columns(tmp_path):
    folder = write_pairs(tmp_path / "raw")
    made = create(tmp_path / "new", source=f"csv:{folder}", name="nli", texts=["premise", "hypothesis"])
    assert load_settings(made.params).preprocess.text_column == ["premise", "hypothesis"]
    with pytest.raises(SettingsError, match="text_column"):
        create(tmp_path / "three", source=f"csv:{folder}", name="nli", texts=["id", "premise", "hypothesis"])
