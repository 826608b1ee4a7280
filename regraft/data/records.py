"""Prepared data on disk: a TFDS dataset in ArrayRecord files, written once, read by row number.

`tensorflow_datasets.builder_from_directory(directory)` reads the same folder without this code. This module imports
TensorFlow only where examples are written or read, so that `read_info` stays quick.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION, TASKS, label_set, value_list
from regraft.errors import DataError
from regraft.files import read_json, write_json

SPLITS = ("train", "validation", "test")
KINDS = ("image", "text", "audio")
_DATASET_NAME = "regraft"
_FILE_FORMAT = "array_record"
_ROWS_PER_SCAN = 256
_TARGETS = "targets.json"  # beside TFDS's own files, which have no place for the names of values


@dataclass(frozen=True)
class Example:
    """One labelled image, text or recording.

    Attributes:
        id: sha256 (hex) of the image or audio file as it came, or of the text in UTF-8; copies share it.
        name: Where it came from, relative to the raw data: `train/cats/1.png`, or `train.csv:17` for a line of a table.
        label: The class name; for other tasks the values in words.
        content: The text; or an image that `tf.io.decode_image` reads, or a recording as a WAV file of one channel in
            16-bit PCM, as its encoded bytes or as the file holding them (read only when it is written, so that a large
            source never has to fit in memory).
        values: One number for each target, see `targets.Target`; empty for a class.
        group: Whose it is (a speaker, a patient), as written; empty for none. Stored as a digest.
        time: When it came about, as written; empty for none. Not stored.
        slices: What the columns to slice by say of it. Not stored here: see `regraft.data.slice_columns`.
    """

    id: str
    name: str
    label: str
    content: str | bytes | Path
    values: tuple[float, ...] = ()
    group: str = ""
    time: str = ""
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedInfo:
    """What a prepared dataset holds.

    Attributes:
        kind: "image", "text" or "audio".
        labels: Class names; position i is class i. For other tasks the names of the values.
        counts: Number of examples by split.
        task: "classification", "multilabel" or "regression".
    """

    kind: str
    labels: tuple[str, ...]
    counts: dict[str, int]
    task: str = CLASSIFICATION


def write_prepared(
    directory: Path,
    kind: str,
    labels: Sequence[str],
    splits: Mapping[str, Sequence[Example]],
    *,
    task: str = CLASSIFICATION,
) -> None:
    """Write `splits` as a TFDS dataset into the empty or missing folder `directory`.

    Rows are ordered by (id, name), so the same examples give the same bytes whatever order they come in, and reading in
    order does not read class by class.

    Args:
        directory: Becomes the dataset's folder (it holds dataset_info.json).
        kind: "image", "text" or "audio".
        labels: Class names in class order; every example's label is one of them. For other tasks the names of the
            values, in the order of every example's values.
        splits: Examples by split name; a split without examples is left out, as TFDS has no empty splits.
        task: "classification", "multilabel" or "regression".

    Raises:
        ValueError: If `kind` or `task` is unknown, no split has an example, a label is not in `labels`, or an example
            has not one value for each name.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    everything = [example for examples in splits.values() for example in examples]
    unknown = {example.label for example in everything} - set(labels) if task == CLASSIFICATION else set()
    if unknown:
        raise ValueError(f"examples carry labels that are not in the list of labels: {sorted(unknown)}")
    if task != CLASSIFICATION and {len(example.values) for example in everything} - {len(labels)}:
        raise ValueError(f"every example needs {len(labels)} values, one for each of {', '.join(labels)}")
    if not any(splits.values()):
        raise ValueError("there is no example to write")

    import tensorflow_datasets as tfds

    directory.mkdir(parents=True, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        dataset_name=_DATASET_NAME, data_dir=str(directory), filetype_suffix=_FILE_FORMAT
    )
    has_groups = any(example.group for example in everything)
    written = []
    for split, examples in splits.items():
        if examples:
            size_bytes = _write_rows(_file(directory, split), kind, labels, examples, task, has_groups=has_groups)
            written.append(
                tfds.core.SplitInfo(
                    name=split, shard_lengths=[len(examples)], num_bytes=size_bytes, filename_template=template
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features={
            "id": tfds.features.Text(),
            "name": tfds.features.Text(),
            # Recordings are bytes as well: to decode them TFDS would need a package more.
            kind: tfds.features.Image(shape=(None, None, 3)) if kind == "image" else tfds.features.Text(),
            **({"group": tfds.features.Text()} if has_groups else {}),
            **_target_feature(task, labels),
        },
        split_infos=written,
        filename_template=template,
        check_data=False,  # it would read through tf.data, which TFDS does not offer for ArrayRecord
        description="Examples prepared for fine-tuning: id, name, content and label.",
    )
    if task != CLASSIFICATION:
        write_json(directory / _TARGETS, {"task": task, "names": list(labels)})


def read_info(directory: Path) -> PreparedInfo:
    """Return what the dataset in `directory` holds, from its JSON files alone.

    Raises:
        DataError: If `directory` holds no prepared data.
    """
    try:
        info = json.loads((directory / "dataset_info.json").read_text("utf-8"))
        features = json.loads((directory / "features.json").read_text("utf-8"))
        if (directory / _TARGETS).exists():
            targets = read_json(directory / _TARGETS)
            task, labels = targets["task"], targets["names"]
        else:
            task = CLASSIFICATION
            labels = (directory / "label.labels.txt").read_text("utf-8").removesuffix("\n").split("\n")
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise DataError(
            f"{directory} holds no complete prepared data ({error}). "
            "Run `regraft run` (or `python -m tasks preprocess`) first."
        ) from None
    columns = features["featuresDict"]["features"]
    return PreparedInfo(
        kind=next(kind for kind in KINDS if kind in columns),
        labels=tuple(labels),
        counts={split["name"]: sum(int(length) for length in split["shardLengths"]) for split in info["splits"]},
        task=task,
    )


class Split:
    """The rows of one split: ids, names and labels in memory, contents read from disk by row number.

    Attributes:
        kind: "image", "text" or "audio".
        class_names: Class names; position i is class i. For other tasks the names of the values.
        task: "classification", "multilabel" or "regression".
        ids: sha256 (hex) of each row's content; copies share one.
        names: Where each row came from.
        labels: Class of each row, int64, shape (N,). For other tasks the values, float32, shape (N, K): real ones, or
            1 for a label that holds and 0 for one that does not.
        groups: Whose each row is, digests, shape (N,); a row that is nobody's is a group of its own. None where no
            example has a group.
    """

    def __init__(self, kind: str, class_names: tuple[str, ...], file: Path, task: str = CLASSIFICATION) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.kind = kind
        self.class_names = class_names
        self.task = task
        # No reading ahead: rows are asked for in random order, and idle reader threads would fight over the cores.
        self._reader = ArrayRecordReader(str(file), options="readahead_buffer_size:0,max_parallelism:0")
        self.ids: list[str] = []
        self.names: list[str] = []
        labels: list[Any] = []
        groups: list[str] = []
        for features in self._scan():
            self.ids.append(features["id"].bytes_list.value[0].decode())
            self.names.append(features["name"].bytes_list.value[0].decode())
            if "group" in features:
                groups.append(features["group"].bytes_list.value[0].decode() or self.ids[-1])
            if task == CLASSIFICATION:
                labels.append(features["label"].int64_list.value[0])
            else:
                values = features["values"]
                labels.append(list(values.float_list.value if task == REGRESSION else values.int64_list.value))
        self.labels = np.array(labels, np.int64 if task == CLASSIFICATION else np.float32)
        self.groups = np.array(groups) if groups else None

    def __len__(self) -> int:
        return len(self.ids)

    def target(self, row: int) -> str:
        """Return the target of a row in words, as `Example.label` has it."""
        if self.task == CLASSIFICATION:
            return self.class_names[self.labels[row]]
        values = self.labels[row].tolist()
        return label_set(self.class_names, values) if self.task == MULTILABEL else value_list(values)

    def inputs(self, indices: Sequence[int]) -> list[Any]:
        """Return the contents of the rows `indices`, in that order: encoded images, WAV files, or strings.

        Raises:
            IndexError: If a row lies outside [0, len(self)).
        """
        rows = [int(row) for row in indices]
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise IndexError(f"rows must be in [0, {len(self)}), got {min(rows)} to {max(rows)}")
        records = self._reader.read(rows) if rows else []
        contents = [_parse(record)[self.kind].bytes_list.value[0] for record in records]
        return contents if self.kind != "text" else [content.decode() for content in contents]

    def _scan(self) -> Iterator[Any]:
        """Yield the features of every row in order, a few at a time, so that contents need not fit in memory."""
        total = self._reader.num_records()
        for start in range(0, total, _ROWS_PER_SCAN):
            for record in self._reader.read(start, min(start + _ROWS_PER_SCAN, total)):
                yield _parse(record)


def open_split(directory: Path, split: str) -> Split:
    """Open one split of the dataset that `write_prepared` wrote to `directory`.

    Args:
        directory: The dataset's folder.
        split: "train", "validation" or "test".

    Raises:
        DataError: If there is no such dataset or split.
    """
    info = read_info(directory)
    if split not in info.counts:
        raise DataError(
            f"{directory} has no split {split!r}; it has {', '.join(sorted(info.counts))}. Run preprocess again."
        )
    file = _file(directory, split)
    opened = Split(info.kind, info.labels, file, info.task) if file.is_file() else None
    if opened is None or len(opened) != info.counts[split]:
        raise DataError(
            f"{file} should hold {info.counts[split]} rows and "
            f"{'is missing' if opened is None else f'has {len(opened)}'}. It was changed by hand; delete its folder "
            "and run preprocess again."
        )
    return opened


def _file(directory: Path, split: str) -> Path:
    """Return the one file of a split, under the name by which TFDS finds it."""
    return directory / f"{_DATASET_NAME}-{split}.{_FILE_FORMAT}-00000-of-00001"


def _target_feature(task: str, labels: Sequence[str]) -> dict[str, Any]:
    """Return TFDS's name and type of what an example is to be answered with."""
    import tensorflow_datasets as tfds

    if task == CLASSIFICATION:
        return {"label": tfds.features.ClassLabel(names=list(labels))}
    dtype = np.float32 if task == REGRESSION else np.int64
    return {"values": tfds.features.Tensor(shape=(len(labels),), dtype=dtype)}


def _write_rows(
    file: Path, kind: str, labels: Sequence[str], examples: Sequence[Example], task: str, *, has_groups: bool
) -> int:
    """Write `examples`, ordered by (id, name), to `file`; return the size of the records in bytes.

    TFDS's own writer would not do: it leaves the order of a record's features to protobuf, which changes it from
    process to process, and outputs must be the same to the byte.
    """
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    class_of = {label: number for number, label in enumerate(labels)}
    writer = ArrayRecordWriter(str(file), "group_size:1")  # each row can be read alone, as TFDS writes them too
    size_bytes = 0
    try:
        for example in sorted(examples, key=lambda example: (example.id, example.name)):
            content = example.content.read_bytes() if isinstance(example.content, Path) else example.content
            record = tf.train.Example()
            features = record.features.feature
            features["id"].bytes_list.value.append(example.id.encode())
            features["name"].bytes_list.value.append(example.name.encode())
            features[kind].bytes_list.value.append(content.encode() if isinstance(content, str) else content)
            if has_groups:
                digest = hashlib.sha256(example.group.encode()).hexdigest() if example.group else ""
                features["group"].bytes_list.value.append(digest.encode())
            if task == CLASSIFICATION:
                features["label"].int64_list.value.append(class_of[example.label])
            elif task == REGRESSION:
                features["values"].float_list.value.extend(example.values)
            else:
                features["values"].int64_list.value.extend(int(value) for value in example.values)
            serialized = record.SerializeToString(deterministic=True)
            writer.write(serialized)
            size_bytes += len(serialized)
    finally:
        writer.close()
    return size_bytes


def _parse(record: bytes) -> Any:
    """Return the features of one serialized `tf.train.Example`, by name."""
    from tensorflow.core.example.example_pb2 import Example as Record

    return Record.FromString(record).features.feature
