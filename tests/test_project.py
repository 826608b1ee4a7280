"""A new project: what is wrong with its source is said before anything is written."""

import resource

import pytest

from regraft import project
from regraft.errors import DataError


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("text,label\n".encode("utf-16"), {}, r"t\.csv is not UTF-8: byte 0xff on line 1"),
        (b"text,label\ncaf\xe9,a\n", {}, r"t\.csv is not UTF-8: byte 0xe9 on line 2"),
        (b"", {}, r"t\.csv is empty"),
        (b"text,label\n", {}, r"t\.csv has column names \('text', 'label'\) and no rows"),
        (b"text\nhello\n", {}, r"t\.csv has the one column 'text'"),
        (b"text,label\nhello,a\n", {"targets": ["lable"]}, r"t\.csv has no such column.*Did you mean 'label'"),
        (b"text,label\nhello,a\n", {"texts": ["text", "hint"]}, r"text_column is 'hint'"),
        (b"text,label\nhello,a\n", {"kind": "image"}, r"--kind is 'image', and source .* holds text data"),
    ],
)
def test_a_table_that_cannot_be_used_makes_no_project(tmp_path, content, columns, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        project.create(tmp_path / "new", source=f"csv:{tmp_path / 't.csv'}", name="words", **columns)
    assert not (tmp_path / "new").exists()


def test_every_table_of_a_folder_is_read_and_columns_are_chosen_by_the_one_to_train_on(tmp_path):
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "mail" / "test.csv").write_text("text\na\n")
    project.create(tmp_path / "new", source=f"csv:{tmp_path / 'mail'}", name="words")
    (tmp_path / "mail" / "test.csv").write_text("text\n")
    with pytest.raises(DataError, match=r"test\.csv has column names .* no rows"):
        project.create(tmp_path / "newer", source=f"csv:{tmp_path / 'mail'}", name="words")


def test_a_large_table_is_left_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "_READ_AT_ONCE_BYTES", 4)
    (tmp_path / "t.csv").write_text("text\n")
    project.create(tmp_path / "new", source=f"csv:{tmp_path / 't.csv'}", name="words")


@pytest.mark.parametrize("kind", ["auto", "image"])
@pytest.mark.parametrize(("files", "message"), [([], "found no file at all"), (["a/notes.pdf"], r"found 1 \.pdf")])
def test_a_folder_without_pictures_makes_no_project(tmp_path, kind, files, message):
    (tmp_path / "pets" / "a").mkdir(parents=True)
    for name in files:
        (tmp_path / "pets" / name).touch()
    with pytest.raises(DataError, match=f"holds no images and no recordings: {message}"):
        project.create(tmp_path / "new", source=f"folder:{tmp_path / 'pets'}", name="pets", kind=kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (None, {"targets": ["breed"]}, "target_column is 'breed', and the source has no labels.csv"),
        ("id,breed\n1,pug\n", {"targets": ["breed"]}, "target_column is 'breed', and the source has no labels.csv"),
        ("file,breed\na/1.jpg,pug\n", {"targets": ["bred"]}, "labels.csv has no such column.*Did you mean 'breed'"),
        (None, {"texts": ["caption"]}, "text_column is 'caption', and the source is a folder of files"),
    ],
)
def test_columns_named_for_a_folder_that_has_no_such_ones_make_no_project(tmp_path, table, columns, message):
    (tmp_path / "pets" / "a").mkdir(parents=True)
    (tmp_path / "pets" / "a" / "1.jpg").touch()
    if table:
        (tmp_path / "pets" / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        project.create(tmp_path / "new", source=f"folder:{tmp_path / 'pets'}", name="pets", **columns)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("room_bytes", [2, 1000, 6000])  # for .gitignore, dvc.yaml, params.yaml: none of them, ...
def test_a_disk_without_room_leaves_no_project_and_the_files_that_were_there(tmp_path, room_bytes):
    (tmp_path / "t.csv").write_text("text,label\nhello,a\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".gitignore").write_text("mine\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            project.create(tmp_path / "new", source=f"csv:{tmp_path / 't.csv'}", name="words")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "new" / ".gitignore").read_text().startswith("mine\n")
    assert project.create(tmp_path / "new", source=f"csv:{tmp_path / 't.csv'}", name="words").params.exists()
