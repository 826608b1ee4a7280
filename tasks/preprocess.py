"""Turn raw files into checked, labelled, split examples."""

import logging
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.data.examples import Collection, collect_audio, collect_images, collect_texts
from regraft.data.records import Example, write_prepared
from regraft.data.sources import describe_suffixes, kind_of_files, list_files
from regraft.data.splits import complete
from regraft.data.validation import check
from regraft.errors import DataError
from regraft.files import replace_directory, write_json
from regraft.paths import Paths
from regraft.settings import PreprocessSettings

log = logging.getLogger(__name__)


def run(preprocess: PreprocessSettings, paths: Paths) -> None:
    """Read data/raw, write data/prepared and reports/data.json (the report also when the data cannot be used)."""
    kind = _kind(preprocess.kind, paths.raw)
    paths.scratch.mkdir(parents=True, exist_ok=True)
    # Should this process be killed, the next attempt at the stage sweeps away what bears its name.
    with tempfile.TemporaryDirectory(dir=paths.scratch, prefix="preprocess-") as scratch:
        if kind == "image":
            collection = collect_images(paths.raw, Path(scratch))
        elif kind == "audio":
            collection = collect_audio(paths.raw, Path(scratch))
        else:
            collection = collect_texts(paths.raw, preprocess.text_column, preprocess.target_column)
        splits = complete(
            collection.splits,
            validation_fraction=preprocess.validation_fraction,
            test_fraction=preprocess.test_fraction,
        )
        labels = sort_labels({example.label for examples in splits.values() for example in examples})
        report = paths.reports / "data.json"
        write_json(report, describe(collection, splits, labels))
        check(
            collection,
            splits,
            min_examples_per_class=preprocess.min_examples_per_class,
            max_rejected_fraction=preprocess.max_rejected_fraction,
            rejects_file=str(report.relative_to(paths.root)),
        )
        with replace_directory(paths.prepared) as directory:
            write_prepared(directory, kind, labels, splits)
    if collection.columns:
        log.info("texts are in column %(text)r, labels in column %(target)r", collection.columns)
    if collection.rejects:
        log.warning("%d example(s) set aside; the reasons are in reports/data.json", len(collection.rejects))
    log.info(
        "prepared %d %s examples of %d classes: %s", sum(map(len, splits.values())), kind, len(labels),
        ", ".join(f"{len(examples)} {split}" for split, examples in splits.items()),
    )  # fmt: skip


def describe(collection: Collection, splits: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> dict[str, Any]:
    """Return reports/data.json: what the data holds, what was set aside, and how often examples repeat."""
    labels_of: dict[str, set[str]] = {}
    splits_of: dict[str, set[str]] = {}
    for split, examples in splits.items():
        for example in examples:
            labels_of.setdefault(example.id, set()).add(example.label)
            splits_of.setdefault(example.id, set()).add(split)
    report: dict[str, Any] = {
        "kind": collection.kind,
        "labels": list(labels),
        "counts": {
            split: {label: counts[label] for label in labels}
            for split, counts in ((split, Counter(e.label for e in examples)) for split, examples in splits.items())
        },
        "examples": {split: len(examples) for split, examples in splits.items()},
        "splits_made": [split for split in splits if split != "train" and not collection.splits.get(split)],
        "rejects": [{"name": reject.name, "reason": reject.reason} for reject in collection.rejects],
        "ignored_files": collection.ignored_files,
        "duplicates": {
            "extra_copies": sum(map(len, splits.values())) - len(splits_of),
            "across_splits": sum(len(held) > 1 for held in splits_of.values()),
            "conflicting_labels": sum(len(given) > 1 for given in labels_of.values()),
        },
    }
    if collection.kind == "image":
        # Of the training images: the size at which images are looked at may not depend on test images.
        sides = [collection.short_sides_px[example.id] for example in splits.get("train", ())]
        report["median_short_side_px"] = statistics.median(sides) if sides else None
        report["reencoded_as_png"] = collection.reencoded
        report["exif_orientation_not_applied"] = collection.rotated
    elif collection.kind == "audio":
        # Of the training recordings, for the same reason.
        kept = [example.id for example in splits.get("train", ())]
        seconds = sorted(collection.seconds[identity] for identity in kept)
        report["audio_seconds"] = percentiles(seconds, p50=0.5, p90=0.9, p95=0.95, max=1.0)
        rates = Counter(collection.rates_hz[identity] for identity in kept)
        report["audio_rates_hz"] = {str(rate): count for rate, count in sorted(rates.items())}
    else:
        report["columns"] = collection.columns
        lengths = sorted(len(str(example.content)) for examples in splits.values() for example in examples)
        report["text_length_characters"] = percentiles(lengths, p50=0.5, p90=0.9, p99=0.99, max=1.0)
    return report


def percentiles(ordered: Sequence[float], **shares: float) -> dict[str, float | None]:
    """Return for each share, by its name, the value in `ordered` below which that share lies; None if it is empty."""
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
        for name, share in shares.items()
    }


def sort_labels(labels: set[str]) -> list[str]:
    """Return class names in class order: by value if all are whole numbers, else by code point."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _kind(setting: str, raw: Path) -> str:
    """Return "image", "text" or "audio": what data/raw holds, which the setting must not contradict."""
    files = list_files(raw).files if raw.is_dir() else {}
    if not files:
        raise DataError(f"{raw} holds no data; run the stage download first.")
    found = kind_of_files(files) or "text"
    if found == "text" and any("/" in name for name in files):
        raise DataError(
            f"the folder source holds no images and no recordings: found {describe_suffixes(files)}. They stand in one "
            "folder per class; texts come from a table, with a source `csv:FILE` or `csv:DIR`."
        )
    if setting not in ("auto", found):
        raise DataError(
            f"preprocess.kind is {setting!r}, and the source holds {found} data; write `kind: auto` or {found!r}."
        )
    return found
