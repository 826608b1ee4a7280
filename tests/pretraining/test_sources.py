"""What a backbone may be pretrained on, and what is said of what it may not."""

import pytest

from regraft.errors import DataError, SettingsError
from regraft.files import read_json
from regraft.fingerprint import refresh_inputs
from regraft.paths import Paths
from regraft.pretraining.source import parse_source, read_paragraphs
from regraft.settings import BackboneSettings, DownloadSettings, PretrainSettings, Settings, check_settings


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_paragraphs_are_what_stands_between_empty_lines_of_all_files_but_a_readme(tmp_path):
    write(tmp_path / "t", "b.txt", "three\r\n\r\nfour\n")
    write(tmp_path / "t", "a.txt", "one\n  is  long\n \n\ntwo")
    write(tmp_path / "t", "README.txt", "about")
    write(tmp_path / "t", "image.png", b"\x89PNG")
    assert read_paragraphs(parse_source("text:t", tmp_path)) == ["one is long", "two", "three", "four"]
    assert read_paragraphs(parse_source("text:t/b.txt", tmp_path)) == ["three", "four"]


def test_texts_of_a_table_are_paragraphs(tmp_path):
    write(tmp_path, "train.csv", "text,label\nfirst  one here,a\nsecond one here,b\n")
    assert read_paragraphs(parse_source("csv:train.csv", tmp_path)) == ["first one here", "second one here"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 \(byte 3 is 0xe9\)"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.md", b"words", "holds no text file"),
    ],
)
def test_a_source_without_readable_text_is_refused(tmp_path, name, content, said):
    write(tmp_path / "t", name, content)
    with pytest.raises(DataError, match=said):
        read_paragraphs(parse_source("text:t", tmp_path))


def test_a_path_alone_is_told_how_plain_text_is_named(tmp_path):
    (tmp_path / "book.txt").write_text("words")
    with pytest.raises(DataError, match=r"'book.txt' lacks its scheme; write `text:book.txt` for plain text"):
        parse_source("book.txt", tmp_path)


def test_a_missing_folder_and_a_server_are_refused(tmp_path):
    with pytest.raises(DataError, match="neither a file nor a folder"):
        parse_source("text:nowhere", tmp_path)
    with pytest.raises(DataError, match="is on a server"):
        parse_source("csv:https://example.org/a.csv", tmp_path)


def test_pretraining_needs_a_source():
    values: dict[str, dict[str, str]] = {name: {} for name in Settings.model_fields if name not in ("name", "seed")}
    with pytest.raises(SettingsError, match=r"mode pretrain learns from pretrain\.source, which is not set"):
        check_settings({**values, "name": "a", "seed": 7, "backbone": {"mode": "pretrain"}}, "params.yaml")


def test_the_source_counts_by_its_content_and_only_where_it_is_used(tmp_path):
    write(tmp_path / "t", "a.txt", "one")
    (tmp_path / "empty").mkdir()

    def recorded(mode):
        backbone = BackboneSettings(name="rnn_small", mode=mode, pretrain=PretrainSettings(source="text:t"))
        refresh_inputs(
            Paths(tmp_path),
            Settings(name="a", backbone=backbone, download=DownloadSettings(source="folder:empty")),
            [],
        )
        return read_json(Paths(tmp_path).inputs)["pretraining"]

    before = recorded("pretrain")
    assert before["source"] == "text"  # no path of this machine
    write(tmp_path / "t", "a.txt", "two")
    assert recorded("pretrain")["digest"] != before["digest"]
    assert recorded("fetch") is None
