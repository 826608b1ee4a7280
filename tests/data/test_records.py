"""Prepared data on disk."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from regraft.data.records import Example, open_split, read_info, write_prepared
from regraft.errors import DataError


def image(seed, label):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = tf.io.encode_png(pixels).numpy()
    return Example(hashlib.sha256(content).hexdigest(), f"{label}/{seed}.png", label, content)


def text(content, label, line=2):
    return Example(hashlib.sha256(content.encode()).hexdigest(), f"train.csv:{line}", label, content)


def write_images(directory, order=1):
    examples = [image(seed, "cat" if seed % 3 else "dog") for seed in range(40)][::order]
    splits = {"train": examples[:20], "validation": examples[20:30], "test": examples[30:]}
    if order < 0:
        splits = {"train": examples[20:], "validation": examples[10:20], "test": examples[:10]}
    write_prepared(directory, "image", ("cat", "dog"), splits)
    return {example.id: example for example in examples}


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_rows_come_back_with_the_content_name_and_label_they_were_written_with(tmp_path):
    written = write_images(tmp_path / "prepared")
    split = open_split(tmp_path / "prepared", "train")
    assert split.kind == "image"
    assert split.class_names == ("cat", "dog")
    assert len(split) == 20
    assert split.labels.dtype == np.int64
    for row, content in enumerate(split.inputs(range(20))):
        example = written[split.ids[row]]
        assert content == example.content
        assert split.names[row] == example.name
        assert split.class_names[split.labels[row]] == example.label


def test_rows_are_read_in_the_order_asked_for_with_repeats(tmp_path):
    write_images(tmp_path / "prepared")
    split = open_split(tmp_path / "prepared", "test")
    digests = [hashlib.sha256(content).hexdigest() for content in split.inputs([7, 0, 7, 3])]
    assert digests == [split.ids[7], split.ids[0], split.ids[7], split.ids[3]]
    assert split.inputs([]) == []


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_outside_the_split_is_refused(tmp_path, row):
    write_images(tmp_path / "prepared")
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        open_split(tmp_path / "prepared", "test").inputs([row])


def test_the_same_examples_in_another_order_give_the_same_bytes(tmp_path):
    write_images(tmp_path / "one")
    write_images(tmp_path / "two" / "elsewhere", order=-1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two" / "elsewhere")


def test_another_process_writes_the_same_bytes(tmp_path):
    # Protobuf orders a record's features by a number that is drawn anew in every process, unless it is told not to.
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_records;"
        "test_records.write_images(Path(sys.argv[2]))"
    )
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", program, here, tmp_path / "there"], check=True, capture_output=True)
    write_images(tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_no_file_holds_a_path_of_this_machine(tmp_path):
    write_images(tmp_path / "prepared")
    assert not [name for name, content in contents(tmp_path / "prepared").items() if str(tmp_path).encode() in content]


def test_tfds_reads_the_dataset_without_our_code(tmp_path):
    written = write_images(tmp_path / "prepared")
    builder = tfds.builder_from_directory(str(tmp_path / "prepared"))
    source = builder.as_data_source("validation")
    assert len(source) == 10
    row = source[4]
    example = written[row["id"].decode()]
    np.testing.assert_array_equal(row["image"], tf.io.decode_png(example.content))
    assert builder.info.features["label"].int2str(row["label"]) == example.label


def test_texts_keep_line_breaks_and_every_script(tmp_path):
    texts = ["two\nlines", "naïve café", "猫が好き", "trailing space ", "nul\0inside"]
    write_prepared(tmp_path, "text", ("a",), {"train": [text(content, "a") for content in texts]})
    split = open_split(tmp_path, "train")
    assert sorted(split.inputs(range(5))) == sorted(texts)


def test_image_content_may_be_a_file(tmp_path):
    example = image(1, "cat")
    (tmp_path / "1.png").write_bytes(example.content)
    write_prepared(
        tmp_path / "prepared", "image", ("cat",), {"train": [Example(example.id, "x", "cat", tmp_path / "1.png")]}
    )
    assert open_split(tmp_path / "prepared", "train").inputs([0]) == [example.content]


def test_the_summary_counts_examples_and_keeps_class_order(tmp_path):
    labels = ("zebra", "a b", "line\u2028separator", "猫")
    write_prepared(
        tmp_path, "text", labels, {"train": [text(str(i), labels[i % 4]) for i in range(9)], "test": [text("t", "猫")]}
    )
    info = read_info(tmp_path)
    assert info.kind == "text"
    assert info.labels == labels
    assert info.counts == {"train": 9, "test": 1}


def test_a_folder_without_data_says_to_run_preprocess(tmp_path):
    with pytest.raises(DataError, match="preprocess"):
        read_info(tmp_path)


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_prepared(tmp_path, "text", ("a",), {"train": [text("x", "a")], "test": []})
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        open_split(tmp_path, "test")


def test_a_missing_file_is_noticed(tmp_path):
    write_prepared(tmp_path, "text", ("a",), {"train": [text("x", "a")]})
    next(tmp_path.glob("*train.array_record*")).unlink()
    with pytest.raises(DataError, match="should hold 1 rows and is missing"):
        open_split(tmp_path, "train")


def test_a_label_outside_the_list_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="'b'"):
        write_prepared(tmp_path / "prepared", "text", ("a",), {"train": [text("x", "b")]})
    assert not (tmp_path / "prepared").exists()


def test_whose_an_example_is_comes_back_as_a_digest_where_any_example_is_somebodys(tmp_path):
    mine = [replace(text(f"text {number}", "a"), group="anna" if number % 2 else "") for number in range(6)]
    write_prepared(tmp_path / "mine", "text", ("a",), {"train": mine})
    split = open_split(tmp_path / "mine", "train")
    assert split.groups is not None
    theirs = {example.id: example.group for example in mine}
    assert len({group for identity, group in zip(split.ids, split.groups, strict=True) if theirs[identity]}) == 1
    assert len(set(split.groups)) == 4  # anna, and three that are nobody's
    assert not any(b"anna" in file.read_bytes() for file in (tmp_path / "mine").iterdir())
    write_prepared(tmp_path / "none", "text", ("a",), {"train": [replace(one, group="") for one in mine]})
    assert open_split(tmp_path / "none", "train").groups is None
