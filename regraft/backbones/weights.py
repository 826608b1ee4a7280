"""Where weights lie on this machine, for all projects of this user: found without reading any."""

import hashlib
import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

from regraft.errors import BackboneError
from regraft.files import read_object
from regraft.state import cache_folder

CARD, CONTENT = "regraft.json", "content.json"
# Of a KerasHub preset. The last tells versions and dates, which do not count.
CONFIG, TOKENIZER, WEIGHTS, METADATA = "config.json", "tokenizer.json", "model.weights.h5", "metadata.json"
NAME = re.compile(r"(?!auto$)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # `auto` means something else in settings


def weight_cache() -> Path:
    """Return the folder where weights are kept: `$REGRAFT_CACHE/weights`."""
    return cache_folder() / "weights"


def place_of(name: str) -> Path:
    """Return the folder for the preset that is added as `name`, whether there is one or not.

    Raises:
        BackboneError: If the name cannot be one.
    """
    if name == "auto":
        raise BackboneError("`auto` is no backbone but the choice among them; `regraft backbones` lists them.")
    if not NAME.fullmatch(name):
        raise BackboneError(
            f"{name!r} cannot be the name of a backbone: use up to 64 letters, digits, `_`, `-` and `.`, "
            "beginning with a letter or digit."
        )
    return weight_cache() / "presets" / name


def added_folder(name: str) -> Path | None:
    """Return the folder of the preset that was added as `name`; None if there is none."""
    folder = weight_cache() / "presets" / name
    whole = NAME.fullmatch(name) and all((folder / file).is_file() for file in (CARD, CONTENT))
    return folder if whole else None


def added_cards() -> dict[str, dict[str, Any]]:
    """Return what the cards of all added presets say, by name.

    Raises:
        RegraftError: If a card was damaged since.
    """
    cards = sorted((weight_cache() / "presets").glob(f"*/{CARD}"))
    return {card.parent.name: read_object(card) for card in cards if added_folder(card.parent.name)}


def content(folder: Path) -> dict[str, Any]:
    """Return what makes the preset in `folder` what it is: its card but for the origin, and the sha256 of its files.

    `CONTENT` in the folder of an added preset holds what this was when it was added.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    card = read_object(folder / CARD)
    return {
        "card": {key: value for key, value in card.items() if key != "origin"},
        "files": {
            path.relative_to(folder).as_posix(): sha256(path)
            for path in files
            if path.name not in (CARD, CONTENT, METADATA)
        },
    }


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_folder(package: str, folder: str) -> Path | None:
    """Return `folder` of an installed package, without importing the package; None if it is not there."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    found = Path(str(distribution.locate_file(folder)))
    return found if found.is_dir() else None


def is_downloaded(handle: str, kind: str) -> bool:
    """Return whether kagglehub's cache has all of a preset that one for data of `kind` cannot do without.

    kagglehub marks each file that it got whole.
    """
    owner, model, framework, variation, version = handle.split("/")
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")
    folder = cache / "models" / owner / model / framework / variation
    needed = (CONFIG, WEIGHTS, *((TOKENIZER,) if kind == "text" else ()))
    return all(
        (folder / version / file).is_file() and (folder / ".complete" / version / f"{file}.complete").is_file()
        for file in needed
    )
