"""Tables of labels beside the files they label."""

import numpy as np
import pytest
from PIL import Image

import tasks.preprocess
from regraft.data.examples import collect_images
from regraft.data.labels import read_labels
from regraft.data.records import open_split
from regraft.data.sources import list_files
from regraft.errors import DataError
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.settings import PreprocessSettings


def source(tmp_path, table, files, name="labels.csv"):
    """Make a folder of empty files with a table of labels beside them; return it and the names in it."""
    raw = tmp_path / "raw"
    for file in files:
        (raw / file).parent.mkdir(parents=True, exist_ok=True)
        (raw / file).touch()
    (raw / name).write_text(table, encoding="utf-8")
    return raw, list(list_files(raw).files)


def read(tmp_path, table, files, target_column=None, name="labels.csv"):
    raw, names = source(tmp_path, table, files, name)
    return read_labels(raw, names, target_column)


def triples(labels):
    return [(file.name, file.split, *file.targets) for file in labels.files]


def test_files_get_the_split_and_the_target_of_their_row(tmp_path):
    table = "file,split,rbc,wbc\nimages/1.jpg,val,19,1\nimages/2.jpg,Train,18,0\nimages/3.jpg,test,18,2\n"
    labels = read(
        tmp_path, table, ["images/1.jpg", "images/2.jpg", "images/3.jpg", "README.txt", "images/4.jpg"], "wbc"
    )
    assert triples(labels) == [
        ("images/1.jpg", "validation", "1"), ("images/2.jpg", "train", "0"), ("images/3.jpg", "test", "2"),
    ]  # fmt: skip
    assert labels.columns == {"file": "file", "target": "wbc", "split": "split"}
    assert labels.files[0].where == "labels.csv:2"
    assert labels.ignored == ["README.txt", "images/4.jpg"]
    assert labels.rejects == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labels.csv", "path;label\nwav/0.wav;0\nwav/1.wav;1\n"),
        ("Labels.TSV", "label\tpath\n0\twav/0.wav\n1\twav/1.wav\n"),
        ("labels.jsonl", '{"path": "wav/0.wav", "label": 0}\n{"path": "wav/1.wav", "label": 1}\n'),
    ],
)
def test_any_kind_of_table_and_of_file_will_do(tmp_path, name, table):
    labels = read(tmp_path, table, ["wav/0.wav", "wav/1.wav"], name=name)
    assert triples(labels) == [("wav/0.wav", "train", "0"), ("wav/1.wav", "train", "1")]


@pytest.mark.parametrize(
    ("table", "files", "expected"),
    [
        ("picture,label\na.png,x\nb.png,y\n", ["a.png", "b.png"], "picture"),
        ("thing,label\na.png,x\nb.png,y\n", ["a.png", "b.png"], "thing"),
        ("name,file,label\none,a.png,x\ntwo,b.png,y\n", ["a.png", "b.png"], "file"),
        ("thumb,path,label\na.png,p/a.png,x\nb.png,p/b.png,y\n", ["p/a.png", "p/b.png", "a.png"], "path"),
        ("image_id,label\na,x\nb,y\n", ["train/a.png", "train/b.png"], "image_id"),
    ],
)
def test_the_column_of_files_is_the_one_that_names_them(tmp_path, table, files, expected):
    labels = read(tmp_path, table, files)
    assert labels.columns["file"] == expected
    assert [file.targets for file in labels.files] == [("x",), ("y",)]


@pytest.mark.parametrize(
    "cell", ["./p/Ünïcode 1.PNG", "p\\Ünïcode 1.PNG", "p/U\u0308ni\u0308code 1.PNG", " p/Ünïcode 1.PNG "]
)
def test_a_file_is_found_however_its_path_is_spelled(tmp_path, cell):
    assert triples(read(tmp_path, f"file,label\n{cell},x\n", ["p/Ünïcode 1.PNG"])) == [
        ("p/Ünïcode 1.PNG", "train", "x")
    ]


def test_names_with_spaces_emoji_and_another_case_are_found(tmp_path):
    files = ["my pictures/\N{CAT FACE} 1.JPG", "my pictures/b.JPeG", "my pictures/c.png"]
    table = "file,label\nmy pictures/\N{CAT FACE} 1.JPG,x\nmy pictures/b.jpeg,y\nc.png,z\n"
    assert triples(read(tmp_path, table, files)) == [
        (name, "train", label) for name, label in zip(files, "xyz", strict=True)
    ]


def test_rows_that_label_no_file_are_listed_with_the_reason(tmp_path):
    table = "file,label\na.png,x\nmissing.png,x\na.png,y\n,x\nb.png\n../outside.png,x\nc,z\n"
    (tmp_path / "outside.png").touch()
    labels = read(tmp_path, table, ["a.png", "one/c.png", "two/c.png"])
    assert triples(labels) == [("a.png", "train", "x")]
    no_file = "and there is no such file, or more than one it could mean"
    assert labels.rejects == [
        ("labels.csv:6", "has 1 field(s) where the header has 2"),
        ("missing.png", f"is named in labels.csv:3, {no_file}"),
        ("labels.csv:4", "names 'a.png' again, after labels.csv:2"),
        ("labels.csv:5", "names no file"),
        ("../outside.png", f"is named in labels.csv:7, {no_file}"),
        ("c", f"is named in labels.csv:8, {no_file}"),
    ]


def test_without_a_split_column_folders_called_after_splits_count(tmp_path):
    table = "file,label\ntrain/a.png,x\ntest/b.png,x\n"
    assert [file.split for file in read(tmp_path, table, ["train/a.png", "test/b.png"]).files] == ["train", "test"]
    assert {file.split for file in read(tmp_path, table + "c.png,x\n", ["c.png"]).files} == {"train"}


@pytest.mark.parametrize(
    ("table", "target_column", "message"),
    [
        (
            "file,label,split\na.png,x,train\nb.png,y,holdout\n",
            None,
            r"'split' has values that are no split: 'holdout' \(1",
        ),
        ("file,label,split\na.png,x,train\nb.png,y,\n", None, r"no split: '' \(1 row"),
        ("file,label,split\na.png,x,val\nb.png,y,test\n", None, "'test', 'validation' and never train"),
        ("file,label\na.png,x\n", "lable", "target_column is 'lable'.*Did you mean 'label'"),
        ("file,label\na.png,x\n", "file", "target_column is 'file', which labels.csv uses for the file"),
        ("file,split\na.png,train\n", None, "no column beside 'file' that could hold labels"),
        ("file,label\na.png,\xe9\n", None, "is not UTF-8"),
        ("", None, "is empty"),
    ],
)
def test_a_table_of_labels_that_cannot_be_used_is_explained(tmp_path, table, target_column, message):
    raw, names = source(tmp_path, "", ["a.png", "b.png"])
    (raw / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_labels(raw, names, target_column)


def test_two_tables_of_labels_are_refused(tmp_path):
    source(tmp_path, "file,label\na.png,x\n", ["a.png"])
    raw, names = source(tmp_path, "{}", ["a.png"], "labels.jsonl")
    with pytest.raises(DataError, match=r"'labels\.csv', 'labels\.jsonl'"):
        read_labels(raw, names, None)


def test_a_table_called_labels_that_names_no_files_is_left_out(tmp_path, caplog):
    assert read(tmp_path, "id,name\n0,cat\n1,dog\n", ["cat/1.png", "dog/1.png", "dog/2.png"]) is None
    assert "labels.csv is left out" in caplog.text
    assert read_labels(tmp_path, ["cat/labels.csv", "cat/1.png"], None) is None


def test_a_target_taken_by_its_values_is_announced(tmp_path, caplog):
    labels = read(tmp_path, "file,rbc,wbc\na.png,9,1\nb.png,8,0\nc.png,7,1\n", ["a.png", "b.png", "c.png"])
    assert labels.columns["target"] == "wbc"
    assert "took column 'wbc'" in caplog.text


def draw(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def test_images_take_their_labels_from_the_table_and_not_from_their_folders(tmp_path):
    raw = tmp_path / "raw"
    for number, name in enumerate(["heap/1.png", "heap/2.png", "heap/extra.png", "plain"]):
        draw(raw / name, number)
    (raw / "heap" / "bad.png").write_text("no picture")
    (raw / "labels.csv").write_text(
        "file,label\nheap/1.png, caf\u00e9 \nheap/2.png,\nplain,b\nheap/bad.png,b\ngone.png,b\n"
    )
    (tmp_path / "scratch").mkdir()
    collection = collect_images(raw, tmp_path / "scratch")
    examples = collection.splits["train"]
    assert [(example.name, example.label) for example in examples] == [("heap/1.png", "caf\u00e9"), ("plain", "b")]
    assert [(reject.name, reject.reason) for reject in collection.rejects] == [
        ("gone.png", "is named in labels.csv:6, and there is no such file, or more than one it could mean"),
        ("heap/2.png", "has no label in labels.csv:3"),
        ("heap/bad.png", "is not an image but text"),
    ]
    assert collection.ignored_files == 1
    assert collection.columns == {"file": "file", "target": "label"}


def test_a_folder_with_labels_becomes_prepared_data_in_its_own_splits(tmp_path):
    paths = Paths(tmp_path / "project")
    rows = []
    for number in range(40):
        draw(paths.raw / "images" / f"{number}.png", number)
        rows.append(f"images/{number}.png,{'train' if number < 30 else 'test'},{number % 2},{number}")
    (paths.raw / "labels.csv").write_text("\n".join(["file,split,odd,number", *rows]))
    write_json(paths.reports / "download.json", {"source": "folder", "digest": "ab" * 32})
    tasks.preprocess.run(PreprocessSettings(target_column="odd"), paths)
    report = read_json(paths.reports / "data.json")
    assert report["columns"] == {"file": "file", "target": "odd", "split": "split"}
    assert report["examples"]["test"] == 10
    assert report["splits_made"] == ["validation"]
    assert report["ignored_files"] == 0
    test = open_split(paths.prepared, "test")
    for name, label in zip(test.names, test.labels, strict=True):
        assert test.class_names[label] == str(int(name.removeprefix("images/").removesuffix(".png")) % 2)


def test_a_label_table_reached_through_a_circle_of_links_is_read_once(tmp_path):
    raw, _ = source(tmp_path, "file,label\na.png,x\n", ["a.png"])
    (raw / "round").symlink_to(raw)
    assert triples(read_labels(raw, list(list_files(raw).files), None)) == [("a.png", "train", "x")]


def test_several_columns_of_numbers_are_real_values_of_the_images(tmp_path):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        draw(tmp_path / name, number)
    (tmp_path / "labels.csv").write_text("file,red,blue\na.png,3.5,1\nb.png,2,0\nc.png,inf,1\n")
    (tmp_path / "scratch").mkdir()
    collection = collect_images(tmp_path, tmp_path / "scratch", ["red", "blue"])
    assert (collection.task, collection.target_names) == ("regression", ("red", "blue"))
    assert [example.values for example in collection.splits["train"]] == [(3.5, 1.0), (2.0, 0.0)]
    assert [(reject.name, reject.reason) for reject in collection.rejects] == [
        ("c.png", "has 'inf' as red, which is not a finite number (of float32) in labels.csv:4")
    ]
