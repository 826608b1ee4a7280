"""Preparing a folder of images beside a plain tf.data pipeline over the same files, in one run.

python -m benchmarks.preprocess FOLDER [--rounds 3]

Both decode every image to check it, write all of them with their labels to record files, and read everything back. Ours
also hashes every file, reads broken ones a second way to say what is wrong with them, and makes the splits. The audit
for copies, which the plain pipeline has none of, is timed on a line of its own.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import tensorflow as tf

from benchmarks.projects import timed
from regraft.data.audit import Copies, find_copies
from regraft.data.examples import collect_images
from regraft.data.records import SPLITS, open_split, write_prepared
from regraft.data.sources import is_image_name, list_files
from regraft.data.splits import complete, group

_ROWS_AT_ONCE = 256


def main() -> None:
    """Time both in turn and print the median of each step and the ratio of the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours: list[list[float]] = []
    plain: list[list[float]] = []
    # The first round warms up the files and TensorFlow for both, and does not count.
    for number in range(arguments.rounds + 1):
        for times, run in ((ours, _ours), (plain, _plain)):
            with tempfile.TemporaryDirectory() as scratch:
                found = run(arguments.folder, Path(scratch))
            if number:
                times.append(found)
    check, write, read, audit = (statistics.median(step) for step in zip(*ours, strict=True))
    plain_write, plain_read = (statistics.median(step) for step in zip(*plain, strict=True))
    print(f"ours:  {check + write + read:6.2f} s (check {check:.2f}, write {write:.2f}, read {read:.2f})")
    print(f"plain: {plain_write + plain_read:6.2f} s (check and write {plain_write:.2f}, read {plain_read:.2f})")
    print(f"ratio: {(plain_write + plain_read) / (check + write + read):.2f} times as fast as the plain pipeline")
    print(f"audit: {audit:6.2f} s more, of which the plain pipeline has nothing")


def _ours(folder: Path, scratch: Path) -> list[float]:
    """Return the seconds that checking, writing, reading and the audit take."""
    (scratch / "png").mkdir()
    collection, check = timed(lambda: collect_images(folder, scratch / "png"))
    examples = [example for held in collection.splits.values() for example in held]
    copies: Copies
    copies, audit = timed(lambda: find_copies("image", (example.content for example in examples)))
    labels = sorted({example.label for example in examples})

    def write() -> None:
        pairs = copies.id_pairs([example.id for example in examples])
        splits = complete(
            collection.splits,
            validation_fraction=0.15,
            test_fraction=0.2,
            groups=group([example.id for example in collection.splits["train"]], pairs),
        )
        write_prepared(scratch / "prepared", "image", labels, splits)

    def read() -> int:
        size_bytes = 0
        for name in SPLITS:
            split = open_split(scratch / "prepared", name)
            for start in range(0, len(split), _ROWS_AT_ONCE):
                rows = range(start, min(start + _ROWS_AT_ONCE, len(split)))
                size_bytes += sum(map(len, split.inputs(rows))) + int(split.labels[start] < 0)
        return size_bytes

    _, written = timed(write)
    size_bytes, read_back = timed(read)
    assert size_bytes > 0
    return [check, written, read_back, audit]


def _plain(folder: Path, scratch: Path) -> list[float]:
    """Return the seconds that a pipeline as in TensorFlow's guides takes to check and write, and to read."""
    names = [name for name in list_files(folder).files if is_image_name(name)]
    classes = sorted({name.split("/")[-2] for name in names})
    labels = [classes.index(name.split("/")[-2]) for name in names]
    file = str(scratch / "plain.tfrecord")

    def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        content = tf.io.read_file(path)
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        return content, label, tf.shape(image)

    def write() -> None:
        dataset = tf.data.Dataset.from_tensor_slices(([str(folder / name) for name in names], labels))
        with tf.io.TFRecordWriter(file) as writer:
            for content, label, _ in dataset.map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE):
                record = tf.train.Example()
                record.features.feature["image"].bytes_list.value.append(content.numpy())
                record.features.feature["label"].int64_list.value.append(int(label))
                writer.write(record.SerializeToString())

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
        return dict(tf.io.parse_single_example(record, features))

    def read() -> int:
        dataset = tf.data.TFRecordDataset(file).map(parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        return sum(len(row["image"].numpy()) for row in dataset)

    _, written = timed(write)
    size_bytes, read_back = timed(read)
    assert size_bytes > 0
    return [written, read_back]


if __name__ == "__main__":
    main()
