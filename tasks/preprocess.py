"""Turn raw files into checked, labelled, split examples."""

import logging
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data import card, croissant
from regraft.data.audit import Audit, Member, audit, find_copies
from regraft.data.examples import Collection, Reject, collect
from regraft.data.grouping import (
    SplitColumns,
    Time,
    group_in_name,
    groups_across,
    outranked,
    parse_times,
)
from regraft.data.records import Example, write_prepared
from regraft.data.several import read_folders
from regraft.data.slice_columns import write_slices
from regraft.data.sources import describe_suffixes, kind_of_files, list_files
from regraft.data.splits import complete, group
from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.data.validation import Doubts, check, find_doubts
from regraft.errors import DataError
from regraft.files import read_json, replace_directory, write_bytes, write_json
from regraft.paths import Paths
from regraft.settings import PreprocessSettings

log = logging.getLogger(__name__)

_SHOWN = 20
_GROUPS_LISTED = 1000


def run(preprocess: PreprocessSettings, paths: Paths) -> None:
    """Read data/raw, write data/{prepared,slices.csv} and reports/{data.json,data.png,croissant.json}.

    data.json and data.png are written for data that cannot be used, too. reports/download.json says where the data is
    from.
    """
    kind = _kind(preprocess.kind, paths.raw)
    download = _download(paths.reports / "download.json")
    paths.scratch.mkdir(parents=True, exist_ok=True)
    # Should this process be killed, the next attempt at the stage sweeps away what bears its name.
    with tempfile.TemporaryDirectory(dir=paths.scratch, prefix="preprocess-") as scratch:
        collection = collect(
            kind,
            paths.raw,
            Path(scratch),
            text_column=preprocess.text_column,
            target_column=preprocess.target_column,
            task=preprocess.task,
            rare_below=preprocess.min_examples_per_class,
            split_columns=SplitColumns(
                preprocess.group_column, preprocess.time_column, tuple(preprocess.slice_columns)
            ),
        )
        if preprocess.group_pattern is not None:
            collection = with_groups(collection, preprocess.group_pattern, read_folders(paths.raw))
        times = None
        if preprocess.time_column is not None:
            collection, times = with_times(collection)
        examples = [example for held in collection.splits.values() for example in held]
        copies = find_copies(kind, (example.content for example in examples))
        content_of = {example.name: content for example, content in zip(examples, copies.contents, strict=True)}
        pairs = copies.id_pairs([example.id for example in examples])
        train = collection.splits.get("train", ())
        keys = [(example.id, example.group) for example in train if example.group]
        splits = complete(
            collection.splits,
            validation_fraction=preprocess.validation_fraction,
            test_fraction=preprocess.test_fraction,
            groups=group([example.id for example in train], pairs, keys),
            times=times,
        )
        across = groups_across(splits)
        found = audit(members(splits, content_of), copies.near)
        dropped: set[str] = set()
        if preprocess.leaks == "drop":
            dropped = {member.name for member in found.to_drop} | outranked(splits, across)
        splits = {split: [e for e in held if e.name not in dropped] for split, held in splits.items()}
        doubts = find_doubts(
            members(splits, content_of),
            copies.near,
            {example.name: example.group for held in splits.values() for example in held if example.group},
        )
        labels = list(collection.target_names) or sort_labels(
            {example.label for examples in splits.values() for example in examples}
        )
        report = paths.reports / "data.json"
        leakage = {
            **found.report(preprocess.leaks, sorted(dropped)),
            "groups": describe_groups(collection, across),
            "leaked_test_examples": len(doubts.leaked),
            "conflicting_examples": len(doubts.conflicting),
        }
        rows = card.choose_rows(splits, labels, collection.task)
        described = {**describe(collection, splits, labels), "split_by": "hash" if times is None else "time"}
        write_json(report, {**described, "leakage": leakage, "shown": card.describe_rows(rows)})
        could_show = len(rows) if collection.task == REGRESSION else len(labels)
        write_bytes(paths.reports / "data.png", card.draw_sheet(kind, rows, of=could_show))
        _check_leaks(
            preprocess.leaks, found, across, str(report.relative_to(paths.root)), nothing_left=not splits["train"]
        )
        check(
            collection,
            splits,
            min_examples_per_class=preprocess.min_examples_per_class,
            max_rejected_fraction=preprocess.max_rejected_fraction,
            rejects_file=str(report.relative_to(paths.root)),
            doubts=doubts,
            max_leak_fraction=preprocess.max_leak_fraction,
            max_conflict_fraction=preprocess.max_conflict_fraction,
        )
        with replace_directory(paths.prepared) as directory:
            write_prepared(directory, kind, labels, with_copies_in_groups(splits, pairs), task=collection.task)
    write_slices(paths.slices, preprocess.slice_columns, splits["test"])
    where = os.path.relpath(paths.prepared, paths.reports)
    write_json(paths.reports / "croissant.json", croissant.metadata(paths.prepared, download, where=where))
    if collection.columns:
        log.info("columns: %s", ", ".join(f"{name!r} for the {role}" for role, name in collection.columns.items()))
    _warn_of_copies(found, across, doubts, dropped)
    _warn_of_names_alike(labels)
    _warn_of_uneven_groups(collection, splits, preprocess)
    if collection.rejects:
        log.warning("%d example(s) set aside; the reasons are in reports/data.json", len(collection.rejects))
    log.info(
        "prepared %d %s examples of %d %s: %s", sum(map(len, splits.values())), kind, len(labels),
        {CLASSIFICATION: "classes", MULTILABEL: "labels", REGRESSION: "real value(s)"}[collection.task],
        ", ".join(f"{len(examples)} {split}" for split, examples in splits.items()),
    )  # fmt: skip


def members(splits: Mapping[str, Sequence[Example]], content_of: Mapping[str, int]) -> list[Member]:
    """Return the examples as the audit sees them, given the number of each one's content by its name."""
    return [
        Member(example.name, split, example.label, content_of[example.name])
        for split, held in splits.items()
        for example in held
    ]


def with_copies_in_groups(
    splits: Mapping[str, Sequence[Example]], copies: Sequence[tuple[str, str]]
) -> dict[str, list[Example]]:
    """Return `splits` with a group for all that is to stay together in folds of them, too: copies, and whose they are.

    Args:
        splits: Examples by split.
        copies: Pairs of ids that are near copies; those by the byte share one.
    """
    held: dict[str, list[Example]] = {}
    for split, examples in splits.items():
        keys = [(example.id, example.group) for example in examples if example.group]
        shared = group([example.id for example in examples], copies, keys)
        held[split] = [replace(example, group=shared.get(example.id, "")) for example in examples]
    return held


def with_groups(collection: Collection, pattern: str, folders: Sequence[str] = ()) -> Collection:
    """Return `collection` with the group of each example that its file's name holds.

    Args:
        collection: Examples that are files.
        pattern: As in the settings.
        folders: Those of several sources, which are no part of the names that people gave.

    Raises:
        DataError: If the examples are no files, or the pattern finds nothing.
    """
    if collection.kind == "text":
        raise DataError(
            "preprocess.group_pattern is for the names of files, and texts are rows of a table; name the column of "
            "groups in preprocess.group_column."
        )
    names = [example.name for examples in collection.splits.values() for example in examples]
    given = {name: name.partition("/")[2] if name.partition("/")[0] in folders else name for name in names}
    found = group_in_name(pattern, given)
    return replace(
        collection,
        splits={
            split: [replace(example, group=found.get(example.name, "")) for example in examples]
            for split, examples in collection.splits.items()
        },
    )


def with_times(collection: Collection) -> tuple[Collection, dict[str, Time] | None]:
    """Return the times of the examples to split, by name, and `collection` without those that have none.

    If the source has all splits itself there is nothing to do, and None for the times.

    Raises:
        DataError: If most have none.
    """
    if collection.splits.get("validation") and collection.splits.get("test"):
        log.warning("preprocess.time_column has no effect: the source has a validation and a test split of its own")
        return collection, None
    train = collection.splits.get("train", [])
    times, reasons = parse_times({example.name: example.time for example in train})
    unusable = [Reject(e.name, reasons[e.name], e.label) for e in train if e.name in reasons]
    kept = [example for example in train if example.name in times]
    if len(unusable) > len(kept):
        shown = "".join(f"\n    {reject.name} {reject.reason}" for reject in unusable[:_SHOWN])
        raise DataError(
            f"preprocess.time_column is {collection.columns['time']!r}, and {len(unusable)} of {len(train)} examples "
            f"to split have no time there that can be read; the first of them:{shown}"
        )
    rejects = sorted([*collection.rejects, *unusable], key=lambda reject: reject.name)
    return replace(collection, splits={**collection.splits, "train": kept}, rejects=rejects), times


def describe_groups(collection: Collection, across: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return how many groups there are, and those that stand in several splits with their examples in each."""
    examples = [example for held in collection.splits.values() for example in held]
    listed = [{"group": name, "examples": dict(across[name])} for name in list(across)[:_GROUPS_LISTED]]
    return {
        "groups": len({example.group for example in examples if example.group}),
        "without_group": sum(not example.group for example in examples),
        "across_splits": len(across),
        "listed": listed,
    }


def _warn_of_copies(found: Audit, across: Mapping[str, Mapping[str, int]], doubts: Doubts, dropped: set[str]) -> None:
    """Log how many copies and groups stood across splits, and how many copies have another label."""
    if found.across:
        log.warning(
            "%d pair(s) of copies stood across splits (%s); %s", len(found.across),
            ", ".join(f"{count} {both}" for both, count in found.across_by_splits().items()),
            f"{len(dropped)} example(s) were dropped" if dropped else "`regraft data audit` lists them",
        )  # fmt: skip
    if across:
        log.warning(
            "%d group(s) stood in more than one split, such as %r; %s", len(across), next(iter(across)),
            "they were dropped from all but the last" if dropped else "reports/data.json lists them",
        )  # fmt: skip
    if doubts.conflicting:
        log.warning(
            "%d example(s) are exact copies of one with another label, such as %s; `regraft data audit` lists them",
            len(doubts.conflicting), min(doubts.conflicting),
        )  # fmt: skip


def _warn_of_names_alike(labels: Sequence[str]) -> None:
    """Log which classes or labels differ in nothing but upper and lower case, or spaces."""
    spelled: dict[str, list[str]] = {}
    for label in labels:
        spelled.setdefault(" ".join(label.casefold().split()), []).append(label)
    alike = [names for names in spelled.values() if len(names) > 1]
    if alike:
        log.warning(
            "%s differ in nothing but case or spaces; if they mean the same, spell them alike",
            "; ".join(" and ".join(map(repr, names)) for names in alike[:5]),
        )


def _warn_of_uneven_groups(
    collection: Collection, splits: Mapping[str, Sequence[Example]], preprocess: PreprocessSettings
) -> None:
    """Log if a split made of whole groups is far from the share it was to have."""
    train = collection.splits.get("train", ())
    groups = len({example.group for example in train if example.group})
    if not groups:
        return
    for split, fraction in (("validation", preprocess.validation_fraction), ("test", preprocess.test_fraction)):
        share = len(splits[split]) / len(train)
        if not collection.splits.get(split) and not fraction / 2 <= share <= 2 * fraction:
            log.warning(
                "%s holds %.0f%% of the examples where preprocess.%s_fraction asks for %.0f%%: %d groups, kept whole, "
                "are too few or too uneven to come closer",
                split, 100 * share, split, 100 * fraction, groups,
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
        "columns": collection.columns,
        **({"pair": list(collection.pair)} if collection.pair else {}),
        "task": collection.task,
        "labels": list(labels),
        **_describe_targets(collection.task, splits, labels),
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
        lengths = sorted(len(str(example.content)) for examples in splits.values() for example in examples)
        report["text_length_characters"] = percentiles(lengths, p50=0.5, p90=0.9, p99=0.99, max=1.0)
    return report


def percentiles(ordered: Sequence[float], **shares: float) -> dict[str, float | None]:
    """Return for each share, by its name, the value in `ordered` below which that share lies; None if it is empty."""
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
        for name, share in shares.items()
    }


def _check_leaks(
    policy: str, found: Audit, groups: Mapping[str, Mapping[str, int]], report: str, *, nothing_left: bool
) -> None:
    """Raise if the policy is to refuse copies, or members of one group, across splits, or to drop them and all were.

    Raises:
        DataError: With the first of them.
    """
    counts = [(len(found.across), "pair(s) of copies"), (len(groups), "group(s)")]
    what = " and ".join(f"{count} {noun}" for count, noun in counts if count)
    if not what or policy == "report":
        return
    if policy == "drop":
        if nothing_left:
            raise DataError(
                f"{what} stand in different splits, and preprocess.leaks is 'drop', which leaves nothing to train on; "
                f"{report} lists them. Write `leaks: report`, or split the source otherwise."
            )
        return
    lines = [
        *(f"{one.name} ({one.split}) and {other.name} ({other.split})" for one, other in found.across),
        *(
            f"group {name!r}: {', '.join(f'{count} in {split}' for split, count in held.items())}"
            for name, held in groups.items()
        ),
    ]
    shown = "".join(f"\n    {line}" for line in lines[:_SHOWN])
    rest = len(lines) - _SHOWN
    raise DataError(
        f"{what} stand in different splits, and preprocess.leaks is 'refuse'. Take them out of the source, or write "
        f"`leaks: drop` or `leaks: report`; {report} lists them:{shown}"
        + (f"\n    ... and {rest} more" if rest > 0 else "")
    )


def _describe_targets(task: str, splits: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> dict[str, Any]:
    """Return the number of examples of each class or label, or the distribution of each real value, by split."""
    if task != REGRESSION:
        counts = {
            split: Counter(e.label for e in examples)
            if task == CLASSIFICATION
            else Counter(name for e in examples for name, held in zip(labels, e.values, strict=True) if held)
            for split, examples in splits.items()
        }
        return {"counts": {split: {label: held[label] for label in labels} for split, held in counts.items()}}
    return {
        "targets": {
            name: {
                split: describe_values([example.values[place] for example in examples])
                for split, examples in splits.items()
                if examples
            }
            for place, name in enumerate(labels)
        }
    }


def describe_values(values: Sequence[float]) -> dict[str, float]:
    """Return smallest, largest, mean, standard deviation and quantiles of at least one value."""
    array = np.array(values, np.float64)
    shares = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    return {
        "min": float(array.min()),
        "max": float(array.max()),
        "mean": float(array.mean()),
        "standard_deviation": float(array.std()),
        **{name: float(np.quantile(array, share)) for name, share in shares.items()},
    }


def sort_labels(labels: set[str]) -> list[str]:
    """Return class names in class order: by value if all are whole numbers, else by code point."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _download(report: Path) -> Any:
    """Return what the stage download said of data/raw."""
    if not report.is_file():
        raise DataError(f"{report} is missing; run the stage download first.")
    return read_json(report)


def _kind(setting: str, raw: Path) -> str:
    """Return "image", "text" or "audio": what data/raw holds, which the setting must not contradict."""
    if folders := read_folders(raw):
        return {_kind(setting, raw / folder) for folder in folders}.pop()  # one: download has made sure of that
    files = list_files(raw).files if raw.is_dir() else {}
    if not files:
        raise DataError(f"{raw} holds no data; run the stage download first.")
    found = kind_of_files(files) or "text"
    if found == "text" and any("/" in name for name in files):
        raise DataError(
            f"the folder source holds no images and no recordings: found {describe_suffixes(files)}. They stand in one "
            "folder per class or beside a labels.csv; texts come from a table, with a source `csv:FILE` or `csv:DIR`."
        )
    if setting not in ("auto", found):
        raise DataError(
            f"preprocess.kind is {setting!r}, and the source holds {found} data; write `kind: auto` or {found!r}."
        )
    return found
