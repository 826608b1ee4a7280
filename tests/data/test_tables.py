"""Tables of texts, good and bad."""

import pytest

from regraft.data.examples import collect_texts
from regraft.data.tables import choose_columns, parse_csv
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
