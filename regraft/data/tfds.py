"""Datasets of TensorFlow Datasets: prepared by it, then exported as the files that every other source consists of.

TFDS downloads, verifies and prepares into its own folder ($TFDS_DATA_DIR, else ~/tensorflow_datasets), which projects
share and which works offline once a dataset is in it. It is imported only when it is needed, for it is slow.
"""

import csv
import difflib
import importlib.resources.abc
import importlib.util
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.data.sources import Source, combine, hash_file, split_of
from regraft.errors import DISK_ERRORS, DataError, ResourceError
from regraft.files import require_room
from regraft.progress import Progress

log = logging.getLogger(__name__)

_DOWNLOAD_RETRIES = 4
_LONGEST_FOLDER = 40
_UNLABELLED = -1  # what TFDS writes where a class is not known, as in the test splits of competitions


@dataclass(frozen=True)
class Columns:
    """Which feature of a dataset is the input, of which kind ("image" or "text"), and which the target."""

    kind: str
    input: str
    target: str


def kind_of(source: Source) -> str:
    """Return "image" or "text": what the dataset's features say; nothing is downloaded.

    Raises:
        DataError: If there is no such dataset, or no telling what of it is to be learned.
    """
    return _columns(source, _builder(source)).kind


def export(source: Source, directory: Path) -> dict[str, Any]:
    """Prepare the dataset if need be, write it into the empty folder `directory`, return reports/download.json.

    Images become files as they are encoded, in a folder for each split and class (for people), and a labels.csv that
    says what they are; texts become train.csv, validation.csv and test.csv. Splits of other names, and examples without
    a class, are left out and listed under "skipped"; a dataset with a single split has that for train.

    Raises:
        DataError: If there is no such dataset, it cannot be prepared here, or has no split to train on.
        ResourceError: If its server cannot be reached or the disk has no room.
    """
    builder = _builder(source)
    columns = _columns(source, builder)
    _prepare(source, builder)
    info = builder.info
    splits = _splits(source, list(info.splits))
    require_room(directory, sum(info.splits[name].num_bytes for name in splits), source.text)
    skipped = {name: "is neither train, validation nor test" for name in info.splits if name not in splits}
    progress = Progress(log, "exporting", sum(info.splits[name].num_examples for name in splits), "examples")
    write = _write_images if columns.kind == "image" else _write_texts
    unlabelled = write(_Reader(builder, columns, progress), splits, directory)
    skipped |= {name: f"has {count} example(s) without a class" for name, count in sorted(unlabelled.items())}

    files = sorted(path for path in directory.rglob("*") if path.is_file())
    checksums = builder.url_infos or {}
    return {
        "source": source.text,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "digest": combine({path.relative_to(directory).as_posix(): hash_file(path) for path in files}),
        "version": f"{info.full_name} (tensorflow-datasets {_tensorflow_datasets().__version__})",
        "homepage": info.homepage or None,
        "citation": info.citation or None,
        "licence": (info.redistribution_info.license or None) if info.redistribution_info else None,
        "licence_files": [],
        "downloads": {url: {"bytes": int(of.size), "sha256": of.checksum} for url, of in sorted(checksums.items())},
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped.items()],
        "empty_folders": [],
    }


def _tensorflow_datasets() -> Any:
    """Return the library, imported."""
    # Version 4.9.10 uses the package importlib_resources wherever a dataset is defined in code, and requires it only
    # below Python 3.9. The standard library has had the same since then.
    if importlib.util.find_spec("importlib_resources") is None:
        sys.modules.setdefault("importlib_resources", importlib.resources)
    import tensorflow_datasets

    return tensorflow_datasets


def _builder(source: Source) -> Any:
    tfds = _tensorflow_datasets()
    text = source.text.removeprefix("tfds:")
    name = re.split("[/:]", text)[0]
    # TFDS itself would look for an unknown name on a server first, and list all others; so it would for community
    # datasets, which are not among those it can prepare here.
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known and not (source.path / name).is_dir():
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(f'`tfds:{match}`' for match in close)}?" if close else ""
        raise DataError(
            f"source {source.text!r}: tensorflow-datasets {tfds.__version__} knows {len(known)} datasets, and this is "
            f"none of them; nor has it been prepared in {source.path}.{hint}"
        )
    try:
        return tfds.builder(text, data_dir=str(source.path))
    except (ValueError, AssertionError) as error:  # of a configuration or a version that does not exist
        configurations = list(tfds.builder_cls(name).builder_configs) if name in known else []
        hint = f" Its configurations: {', '.join(configurations[:20])}." if configurations else ""
        raise DataError(f"source {source.text!r}: {_reason(error)}.{hint}") from None


def _prepare(source: Source, builder: Any) -> None:
    """Have TFDS download and prepare the dataset; if it has been prepared, it does nothing and needs no network."""
    tfds = _tensorflow_datasets()
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    # Its own ten tries take minutes where there is no network; the flow tries a stage again anyway.
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    tfds.disable_progress_bar()
    log.info("%s: preparing %s", source.text, builder.data_dir)
    try:
        builder.download_and_prepare()
    except tfds.download.DownloadError as error:
        raise _unreachable(source, error) from None
    except OSError as error:  # requests' and urllib's errors are OSErrors too
        if error.errno in DISK_ERRORS:
            raise
        raise _unreachable(source, error) from None
    except (ValueError, AssertionError, ImportError, NotImplementedError, NonMatchingChecksumError) as error:
        raise DataError(f"source {source.text!r} cannot be prepared: {_reason(error)}") from None


def _unreachable(source: Source, error: Exception) -> ResourceError:
    return ResourceError(
        f"source {source.text!r} cannot be prepared in {source.path}: {_reason(error)}. Is its server reachable and is "
        "there room? Run again later; or prepare it on another machine and set TFDS_DATA_DIR to the folder."
    )


def _reason(error: Exception) -> str:
    """Return the message of a TFDS error in one line of bearable length."""
    text = re.sub(r"Failed to construct dataset .*?\}\": ", "", str(error), count=1)
    text = re.sub(r"Here are \d+ BuilderConfigs.*", "", text, flags=re.DOTALL)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]}..."


def _columns(source: Source, builder: Any) -> Columns:
    """Return what is to be learned: the dataset's supervised keys, else its only input and its only class label."""
    features = builder.info.features
    kinds = {name: _kind(feature) for name, feature in features.items()} if hasattr(features, "items") else {}
    keys = builder.info.supervised_keys
    if (
        isinstance(keys, tuple)
        and len(keys) == 2
        and kinds.get(keys[0]) in ("image", "text")
        and kinds.get(keys[1]) in ("label", "text", "number")
    ):
        return Columns(str(kinds[keys[0]]), *keys)
    inputs = [name for name, kind in kinds.items() if kind in ("image", "text")]
    labels = [name for name, kind in kinds.items() if kind == "label"]
    if len(inputs) == len(labels) == 1:
        return Columns(str(kinds[inputs[0]]), inputs[0], labels[0])
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items()) if kinds else "none"
    raise DataError(
        f"source {source.text!r}: there is no telling what is to be learned from it; it takes one image or text and "
        f"one class label, and the features of the dataset are {listed}."
    )


def _kind(feature: Any) -> str | None:
    """Return "image", "text", "label" or "number", or None for a feature of another kind."""
    features = _tensorflow_datasets().features
    if isinstance(feature, features.ClassLabel):
        return "label"
    if isinstance(feature, features.Image) and not isinstance(feature, features.LabeledImage):
        return "image"
    if isinstance(feature, features.Text):
        return "text"
    if type(feature) in (features.Tensor, features.Scalar) and feature.shape == ():
        return {"O": "text", "S": "text", "U": "text", "f": "number", "i": "number", "u": "number"}.get(
            feature.np_dtype.kind if hasattr(feature.np_dtype, "kind") else feature.np_dtype().dtype.kind
        )
    return None


def _splits(source: Source, names: list[str]) -> dict[str, str]:
    """Return the split that each of the dataset's own splits stands for."""
    if len(names) == 1:
        return {names[0]: "train"}
    splits: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in splits.values():
            raise DataError(f"source {source.text!r}: two of its splits stand for {split}: {', '.join(names)}.")
        if split is not None:
            splits[name] = split
    if "train" not in splits.values():
        raise DataError(f"source {source.text!r}: it has the splits {', '.join(names)}, and none called train.")
    return splits


@dataclass(frozen=True)
class _Reader:
    """Reads the two columns of a prepared dataset, in the order in which it lies on disk."""

    builder: Any
    columns: Columns
    progress: Progress

    def rows(self, split: str) -> Iterator[tuple[bytes, str | None]]:
        """Yield each example of one of the dataset's splits: encoded image or text, and target; None if not known."""
        tfds = _tensorflow_datasets()
        columns = self.columns
        skip = {columns.input: tfds.decode.SkipDecoding()} if columns.kind == "image" else None
        wanted = tfds.decode.PartialDecoding({columns.input: True, columns.target: True}, decoders=skip)
        names = getattr(self.builder.info.features[columns.target], "names", None)
        dataset = self.builder.as_dataset(split=split, shuffle_files=False, decoders=wanted)
        for example in tfds.as_numpy(dataset):
            target = example[columns.target]
            if names is not None:
                yield example[columns.input], None if target == _UNLABELLED else names[target]
            else:
                yield (
                    example[columns.input],
                    target.decode("utf-8", "replace") if isinstance(target, bytes) else str(target),
                )
            self.progress.advance(1)


def _write_images(reader: _Reader, splits: dict[str, str], directory: Path) -> Counter[str]:
    """Write every image and labels.csv; return how many examples of each split have no class."""
    unlabelled: Counter[str] = Counter()
    with (directory / "labels.csv").open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["file", "label", "split"])
        for own_name, split in splits.items():
            for number, (content, label) in enumerate(reader.rows(own_name)):
                if label is None:
                    unlabelled[own_name] += 1
                    continue
                folder = re.sub(r"[^\w-]+", "_", label).strip("_")[:_LONGEST_FOLDER] or "class"
                path = directory / split / folder / f"{number:06d}{_suffix(content)}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                rows.writerow([path.relative_to(directory).as_posix(), label, split])
    return unlabelled


def _write_texts(reader: _Reader, splits: dict[str, str], directory: Path) -> Counter[str]:
    """Write a table for each split; return how many examples of each have no class."""
    unlabelled: Counter[str] = Counter()
    for own_name, split in splits.items():
        path = directory / f"{split}.csv"
        with path.open("w", encoding="utf-8", newline="") as table:
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(["text", "label"])
            kept = 0
            for content, label in reader.rows(own_name):
                if label is None:
                    unlabelled[own_name] += 1
                    continue
                rows.writerow([content.decode("utf-8", "replace"), label])
                kept += 1
        if not kept:
            path.unlink()
    return unlabelled


def _suffix(content: bytes) -> str:
    return ".jpg" if content.startswith(b"\xff\xd8") else ".png"
