"""Which files of this repository a module can reach: modules that it imports, and data files that it names.

To parse all modules takes half a second, in each of a run's processes. So what was found in one is kept in the cache,
by the hash of its text.
"""

import ast
import hashlib
import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from regraft.files import write_json
from regraft.paths import REPOSITORY
from regraft.state import cache_folder

FIRST_PARTY = ("regraft", "tasks")
MOST_KEPT = 2000  # modules' texts; then it begins anew

log = logging.getLogger(__name__)


class Scan(NamedTuple):
    """What a module imports, and which of its strings may be names of files."""

    imports: list[str]
    names: list[str]


def reachable_files(start: Path) -> list[Path]:
    """Return `start`, every module of this repository it can reach, and the data files those modules name, sorted."""
    pending, seen = [start], {start}
    kept = len(_kept())
    while pending:
        path = pending.pop()
        for reached in _neighbours(path, path.read_bytes()) if path.suffix == ".py" else ():
            if reached not in seen:
                seen.add(reached)
                pending.append(reached)
    if len(_kept()) > kept:
        _keep()
    return sorted(seen)


@cache
def scan(source: bytes) -> Scan:
    """Return what the text of a module imports and names."""
    key, kept = hashlib.sha256(_own_text() + source).hexdigest(), _kept()
    if key not in kept:
        kept[key] = _scan(ast.parse(source))
    return kept[key]


def _scan(tree: ast.Module) -> Scan:
    imports: set[str] = set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if "." in text and "/" not in text and "\n" not in text and len(text) < 100:
                names.add(text)
    return Scan(sorted(imports), sorted(names))


@cache
def _neighbours(path: Path, source: bytes) -> tuple[Path, ...]:
    """Return the files that the module at `path` imports or names."""
    found = scan(source)
    return (*_imported(found.imports), *_named(path.parent, found.names))


def _imported(names: list[str]) -> Iterator[Path]:
    known = _modules()
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            if module := known.get(".".join(parts[:depth])):
                yield module


def _named(folder: Path, names: list[str]) -> Iterator[Path]:
    for name in names:
        candidate = folder / name
        if candidate.suffix != ".py" and candidate.is_file():
            yield candidate


@cache
def _modules() -> dict[str, Path]:
    """Return the file of each first-party module and package, by its dotted name."""
    files = (path for name in FIRST_PARTY for path in (REPOSITORY / name).rglob("*.py"))
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }


@cache
def _own_text() -> bytes:
    """Return the text of this module: with another, other things may be found."""
    return Path(__file__).read_bytes()


@cache
def _kept() -> dict[str, Scan]:
    """Return what this and earlier processes found, by hash."""
    try:
        read = json.loads(_file().read_text("utf-8"))
        return {key: Scan(*found) for key, found in read.items()} if len(read) < MOST_KEPT else {}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: found anew
        return {}


def _keep() -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), _kept())
    except OSError as error:
        log.debug("what modules import was not kept: %s", error)


def _file() -> Path:
    return cache_folder() / "modules.json"
