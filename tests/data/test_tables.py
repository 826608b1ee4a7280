"""Tables of texts, good and bad."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regraft.data.examples import collect_texts
from regraft.data.tables import choose_columns, parse_csv, parse_jsonl, parse_parquet
from regraft.errors import DataError


def table(tmp_path, content, name="table.csv"):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def collect(raw, text_column=None, target_column=None):
    return collect_texts(raw, text_column, target_column)


@pytest.mark.parametrize(
    "content",
    [
        b'text,label\n"Hello, you",a\nBye,b\n',
        b'text,label\r\n"Hello, you",a\r\nBye,b\r\n',
        b'\xef\xbb\xbftext,label\n"Hello, you",a\nBye,b',
        b"text;label\nHello, you;a\nBye;b\n",
        b"sep=;\r\ntext;label\r\nHello, you;a\r\nBye;b\r\n",
        b"text\tlabel\nHello, you\ta\nBye\tb\n",
        b'label,id,text\n a ,1,"Hello, you"\nb,2,Bye\n',
        b'\n\ntext,label\n\n"Hello, you",a\n\nBye,b\n\n',
    ],
)
def test_every_usual_way_of_writing_a_table_gives_the_same_examples(tmp_path, content):
    examples = collect(table(tmp_path, content)).splits["train"]
    assert [(example.content, example.label) for example in examples] == [("Hello, you", "a"), ("Bye", "b")]


def test_names_give_the_line_on_which_an_example_starts(tmp_path):
    content = 'text,label\n"one\ntwo\nthree",a\n\n"say ""hi""",b\n'
    examples = collect(table(tmp_path, content)).splits["train"]
    assert [(example.name, example.content) for example in examples] == [
        ("table.csv:2", "one\ntwo\nthree"),
        ("table.csv:6", 'say "hi"'),
    ]


def test_rows_that_cannot_be_used_are_set_aside_with_the_reason(tmp_path):
    content = 'text,label\ngood,a\n"  ",a\nno label,\nshort\none,two,three\nx,"a\nb"\n'
    rejects = collect(table(tmp_path, content)).rejects
    assert [(reject.name, reject.reason) for reject in rejects] == [
        ("table.csv:3", "has no text"),
        ("table.csv:4", "has no label"),
        ("table.csv:5", "has 1 field(s) where the header has 2"),
        ("table.csv:6", "has 3 field(s) where the header has 2"),
        ("table.csv:7", "has a line break in its label"),
    ]


def test_a_text_longer_than_the_csv_module_allows_by_default_is_read(tmp_path):
    content = "text,label\n" + "long " * 40_000 + ",a\n"
    assert len(collect(table(tmp_path, content)).splits["train"][0].content) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"text,label\n", "no rows below"),
        (b"text,label\ncaf\xe9,a\n", "byte 0xe9 on line 2.*WINDOWS-1252"),
        ("text,label\nhi,a\n".encode("utf-16"), "`iconv -f UTF-16"),
        (b'text,label\nx,a\n"hello,a\nbye,b\n', "line 3: a quotation mark opens here"),
        (b"text,text\nx,a\n", "more than one column called 'text'"),
        (b"text\nhello\n", "has the one column 'text'"),
        (b"id,label\n1,2\n", "no column that looks like text"),
    ],
)
def test_a_table_that_cannot_be_read_is_explained(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        collect(table(tmp_path, content))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_column": "lable"}, "preprocess.target_column is 'lable'.*'text', 'label'.*Did you mean 'label'"),
        ({"text_column": "words"}, "preprocess.text_column is 'words'.*'text', 'label'"),
        ({"text_column": "text", "target_column": "text"}, "must differ"),
    ],
)
def test_a_column_named_in_the_settings_must_exist(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        collect(table(tmp_path, "text,label\nhello,a\n"), **settings)


@pytest.mark.parametrize(
    ("header", "rows", "settings", "expected"),
    [
        (["text", "label"], [["a", "b"]], (None, None), ("text", "label")),
        (["Category", "Message"], [["a", "b"]], (None, None), ("Message", "Category")),
        (["id", "v1", "v2"], [["1", "ham", "hello you"], ["2", "spam", "win now"], ["3", "ham", "bye"]], (None, None),
         ("v2", "v1")),
        (["v1", "v2", ""], [["ham", "hello you", ""], ["spam", "win now", ""]], (None, None), ("v2", "v1")),
        (["text", "label", "kind"], [["a", "b", "c"]], (None, "kind"), ("text", "kind")),
        (["text", "label", "notes"], [["a", "b", "c"]], ("notes", None), ("notes", "label")),
        (["stars", "words"], [["5", "good thing"], ["1", "bad"]], (None, None), ("words", "stars")),
    ],
)  # fmt: skip
def test_columns_are_guessed_sensibly(header, rows, settings, expected):
    assert choose_columns("table.csv", header, rows, *settings) == expected


def test_splits_come_from_files_of_their_names(tmp_path):
    for name, words in (("train.csv", "one"), ("val.csv", "two"), ("Test.csv", "three"), ("other.csv", "four")):
        table(tmp_path, f"text,label\n{words},a\n", name)
    collection = collect(tmp_path)
    assert {split: examples[0].content for split, examples in collection.splits.items()} == {
        "train": "one", "validation": "two", "test": "three",
    }  # fmt: skip
    assert collection.ignored_files == 1


def test_a_test_table_without_labels_is_refused(tmp_path):
    table(tmp_path, "text,label\nx,a\n", "train.csv")
    table(tmp_path, "text\nx\n", "test.csv")
    with pytest.raises(DataError, match=r"test\.csv has no column 'label', which train.csv has"):
        collect(tmp_path)


def test_a_single_table_may_have_any_name(tmp_path):
    assert list(collect(table(tmp_path, "text,label\nx,a\n", "test.csv")).splits) == ["train"]


def test_columns_taken_by_their_values_are_announced(tmp_path, caplog):
    collect(table(tmp_path, "hello you,ham\nwin now,spam\nbye,ham\n"))
    assert "no line of column names" in caplog.text


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.tsv", b"text\tlabel\nHello, you\t1\nBye\t0\n"),
        ("table.JSONL", b'{"text": "Hello, you", "label": 1}\r\n\n{"label": 0, "text": "Bye"}'),
        ("table.ndjson", b'\xef\xbb\xbf{"text": "Hello, you", "label": "1"}\n{"label": "0", "text": "Bye"}\n'),
        ("table.parquet", parquet(text=["Hello, you", "Bye"], label=[1, 0])),
        ("table.parquet", parquet(text=pa.array(["Hello, you", "Bye"]).dictionary_encode(), label=[1.0, 0.0])),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path, name, content):
    examples = collect(table(tmp_path, content, name)).splits["train"]
    assert [(example.content, example.label) for example in examples] == [("Hello, you", "1"), ("Bye", "0")]


def test_formats_can_be_mixed_over_splits(tmp_path):
    table(tmp_path, "text,label\none,1\n", "train.csv")
    table(tmp_path, '{"text": "two", "label": 1}\n', "validation.jsonl")
    table(tmp_path, parquet(text=["three"], label=[1]), "test.parquet")
    splits = collect(tmp_path).splits
    assert [(split, examples[0].content, examples[0].name) for split, examples in splits.items()] == [
        ("test", "three", "test.parquet:1"),
        ("train", "one", "train.csv:2"),
        ("validation", "two", "validation.jsonl:1"),
    ]


def test_two_tables_for_one_split_are_refused(tmp_path):
    for name in ("train.csv", "train.tsv", "test.csv"):
        table(tmp_path, "text,label\nx,a\n", name)
    with pytest.raises(DataError, match=r"both train\.csv and train\.tsv for the train split"):
        collect(tmp_path)


def test_json_lines_have_all_keys_for_columns_and_keep_numbers_as_written():
    header, rows = parse_jsonl(
        "x.jsonl",
        b'{"a": 1.50, "b": null}\n\n{"c": true, "a": 1e3}\n{"b": NaN, "c": false, " a ": 12345678901234567890}\n',
    )
    assert header == ["a", "b", "c"]
    assert rows == [(1, ["1.50", "", ""]), (3, ["1e3", "", "true"]), (4, ["12345678901234567890", "", "false"])]


def test_a_line_separator_inside_a_json_text_does_not_end_the_line():
    assert parse_jsonl("x.jsonl", '{"text": "a\u2028b"}'.encode()) == (["text"], [(1, ["a\u2028b"])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "is empty"),
        (b'{"text": "a"}\n{"text": \n', r"x\.jsonl, line 2: .*must be one JSON object"),
        (b'{"text": "a"} {"text": "b"}\n', "line 1: Extra data"),
        (b'\n[{"text": "a"}]\n', "line 2: holds no object"),
        (b'{"text": "a"}\n"b"\n', "line 2: holds no object"),
        (b'{"text": "a", "meta": {"n": 1}}', "line 1: 'meta' holds an object"),
        (b'{"text": "a", "tags": []}', "line 1: 'tags' holds an array"),
        (b'{"text": "a", "text ": "b"}', "line 1: has a key twice: 'text'"),
        (b'{"text": "\\ud83d"}', "line 1: has half of a surrogate pair"),
        (b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9 on line 1"),
        (b'{"text": ' + b"[" * 100_000, "line 1: is nested too deeply"),
        (b"{}\n", "has no columns"),
    ],
)
def test_json_lines_that_cannot_be_read_are_explained(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        collect(table(tmp_path, content, "x.jsonl"))


def test_parquet_cells_become_what_a_table_of_words_would_hold():
    header, rows = parse_parquet(
        "x.parquet", parquet(text=["a", None], score=[0.5, float("nan")], stars=[3.0, None], good=[True, False])
    )
    assert header == ["text", "score", "stars", "good"]
    assert rows == [(1, ["a", "0.5", "3", "true"]), (2, ["", "", "", "false"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\nx,a\n", "is no Parquet file"),
        (b"", "is no Parquet file"),
        (parquet(text=["a" * 1000], label=[1])[:-20], "is no Parquet file"),
        (parquet(text=["a"], tags=[["x", "y"]]), r"'tags' holds list<.*string>"),
        (parquet(image=[b"\x89PNG"], label=[1]), "'image' holds binary"),
        (parquet(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), "no rows below"),
    ],
)
def test_parquet_that_cannot_be_read_is_explained(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        collect(table(tmp_path, content, "x.parquet"))


@pytest.mark.parametrize("name", ["table.json", "table.xlsx", "table.csv.gz"])
def test_a_table_of_another_format_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(DataError, match="save it as CSV, TSV, JSON Lines"):
        collect(table(tmp_path, b"[]", name))


WORDS = (
    '"', '""', "'", ",", "\t", "\n", "\r", "\r\n", " ", "a", "b", "1", "-1e5", "{", "}", "[", "]", ":", "\\", "\\u",
    "\\ud800", "null", "NaN", "true", '{"a": 1}\n', '{"a": "', "a,b\n", "\0", "\x1c", "\u2028", "\ufeff",
)  # fmt: skip
PIECES = [*(word.encode() for word in WORDS), b"\xff", b"\xe9", b"\xed\xa0\x80"]


@pytest.mark.parametrize(
    ("parse", "name", "whole"),
    [
        (parse_csv, "x.csv", b'text,label\n"one, two",a\n"say ""hi""",b\n'),
        (parse_jsonl, "x.jsonl", b'{"text": "one, two", "label": 1}\n{"text": "b", "c": null}\n'),
    ],
)
def test_whatever_bytes_come_a_table_is_parsed_or_refused(parse, name, whole):
    parsed = 0
    for seed in range(4000):
        chance = random.Random(seed)  # noqa: S311
        content = whole if seed % 4 else b""
        for _ in range(chance.randint(1, 4) if seed % 4 else 20):
            start = chance.randint(0, len(content))
            content = content[:start] + chance.choice(PIECES) + content[start + chance.randint(0, 3) :]
        try:
            header, rows = parse(name, content)
        except DataError as error:
            assert str(error).startswith(name)  # noqa: PT017
            continue
        parsed += 1
        lines = [line for line, _ in rows]
        assert lines == sorted(set(lines)), seed
        assert all(1 <= line <= 1 + len(content) for line in lines), seed
        assert "\n".join([*header, *(cell for _, cells in rows for cell in cells)]).encode(), seed
    assert 100 < parsed < 3900


def test_damaged_parquet_is_parsed_or_refused():
    whole = parquet(text=[f"text {number}" for number in range(50)], label=[number % 3 for number in range(50)])
    for seed in range(300):
        chance = random.Random(seed)  # noqa: S311
        content = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            parse_parquet("x.parquet", bytes(content[: chance.choice((len(content), chance.randrange(len(content))))]))
        except DataError as error:
            assert str(error).startswith("x.parquet")  # noqa: PT017


def test_values_survive_json_lines_whole():
    for seed in range(300):
        chance = random.Random(seed)  # noqa: S311
        cells = ["".join(chance.choices('a",\\\n\r\t\u2028\N{GRINNING FACE}{}[]:', k=8)) for _ in range(6)]
        lines = "".join(
            json.dumps({"text": cell, "n": number}, ensure_ascii=seed % 2 == 0) + "\n"
            for number, cell in enumerate(cells)
        )
        assert [row[0] for _, row in parse_jsonl("x.jsonl", lines.encode())[1]] == cells


def test_the_delimiter_inside_texts_does_not_mislead():
    header, rows = parse_csv("x.csv", b"text;label\n" + b"a, b, c;x\n" * 3)
    assert header == ["text", "label"]
    assert rows[2] == (4, ["a, b, c", "x"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_quotation_mark_that_is_never_closed_is_found_whatever_the_delimiter(tmp_path, delimiter):
    rows = ["label,text", "ham,fine", 'ham,"never closed', "spam,a", "ham,b"]
    content = "\n".join(rows).replace(",", delimiter)
    with pytest.raises(DataError, match=r"table.csv, line 3: a quotation mark opens here"):
        collect(table(tmp_path, content))


def test_a_label_guessed_among_several_columns_is_announced(tmp_path, caplog):
    raw = table(tmp_path, "text,sport,money\nhello,0,1\nbye,1,0\n")
    collect(raw)
    assert "took column 'sport' of table.csv for the label" in caplog.text
    caplog.clear()
    collect(raw, target_column="money")
    assert "took column" not in caplog.text


def test_columns_known_by_name_in_another_case_are_not_called_a_guess(tmp_path, caplog):
    assert len(collect(table(tmp_path, "Text,Label\nHello,a\nBye,b\n")).splits["train"]) == 2
    assert "judging by their values" not in caplog.text


def test_a_web_page_is_not_taken_for_a_table():
    with pytest.raises(DataError, match=r"x.csv is a web page and no table"):
        parse_csv("x.csv", b"\n<!DOCTYPE HTML>\n<html><body>Not found, sorry</body></html>\n")
