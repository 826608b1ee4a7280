"""What a stage's result depends on besides the files it reads: code, libraries, the source's content.

Planning writes these fingerprints to `.regraft/inputs.json`, where dvc.yaml names them as parameters: dvc.lock then
records them value by value, and a changed one is seen, and named, like a changed setting.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from regraft import modules
from regraft import settings as settings_module
from regraft.backbones import catalogue, weights
from regraft.data import sources
from regraft.errors import BackboneError, RegraftError
from regraft.files import read_json, write_json
from regraft.paths import REPOSITORY, Paths
from regraft.pretraining.source import parse_source
from regraft.settings import AUTO, Settings

SETTINGS = REPOSITORY / "regraft" / "settings.py"
CONSUMER_LIBRARIES = ("mlflow", "numpy", "pandas", "tensorflow", "tensorflow-text")
# Libraries that no module here names, because these load them themselves.
IMPLIED = {"keras_hub": ("tensorflow-text", "safetensors")}
# What a graph made for an older version need not name, unless the project's own examples judge pretraining.
FOR_TRANSFER = {"data/sample", "reports/pretraining_time.json"}
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel-yaml", "sklearn": "scikit-learn"}


def refresh_inputs(paths: Paths, settings: Settings, stages: list[str]) -> None:
    """Bring `.regraft/inputs.json` up to date; it is rewritten only when a fingerprint moved.

    Raises:
        DataError: If the source, or that of pretraining, does not exist.
        BackboneError: If a backbone is neither in the catalogue nor a preset folder, or takes another kind of data.
    """
    for name in settings.backbone.named:
        kind = catalogue.kind_of(name, paths.root)
        if settings.preprocess.kind != "auto" and catalogue.backbone_kind(settings.preprocess.kind) != kind:
            raise BackboneError(
                f"backbone.name: {name} takes {kind} data, but preprocess.kind is {settings.preprocess.kind}; "
                f"fitting backbones: {', '.join(catalogue.names(settings.preprocess.kind))}."
            )
    current = {
        "source": _source(paths, settings),
        "candidates": _candidates(settings),
        "preset": _preset(paths, settings),
        "pretraining": _pretraining(paths, settings),
        "seed_of_weights": _seed_of_weights(settings),
        "code": {stage: code_fingerprint(stage) for stage in stages},
    }
    write_json(paths.inputs, current)


def require_current_graph(paths: Paths, settings: Settings, stage: str) -> None:
    """Check that the project's dvc.yaml names all that the code of `stage` reads and writes with these settings.

    It may name more.

    Raises:
        RegraftError: If it does not: the project was made for another version of the code.
    """
    own, current = (_named_by(_load_yaml(graph)["stages"][stage]) for graph in (paths.graph, REPOSITORY / "dvc.yaml"))
    spared = set() if settings.backbone.is_judged_by_target else FOR_TRANSFER
    if lacking := sorted(current - own - spared):
        raise RegraftError(
            f"{paths.graph} was made for another version of Regraft: it does not say that the stage reads or writes "
            f"{', '.join(lacking)}. Copy {REPOSITORY / 'dvc.yaml'} over it; set pools, timeouts and retries again if "
            "you had changed them."
        )


def _named_by(definition: Any) -> set[str]:
    """Return what the definition of a stage says that it reads and writes: settings, keys of files, files."""
    named: set[str] = set()
    for entry in (*definition["params"], *definition.get("deps", ()), *definition["outs"]):
        for name, keys in ({entry: None} if isinstance(entry, str) else entry).items():
            named |= {f"{key} of {name}" for key in keys} if isinstance(keys, list) else {name}
    return named


def moved_inputs(paths: Paths, settings: Settings, stage: str) -> list[str]:
    """Return which inputs of `stage` from outside the project are no longer as `.regraft/inputs.json` has them."""
    now: dict[str, Callable[[], Any]] = {
        "source": lambda: _source(paths, settings),
        "candidates": lambda: _candidates(settings),
        "preset": lambda: _preset(paths, settings),
        "pretraining": lambda: _pretraining(paths, settings),
        "seed_of_weights": lambda: _seed_of_weights(settings),
        f"code.{stage}": lambda: code_fingerprint(stage),
    }
    planned = read_json(paths.inputs)
    read = {
        key
        for params in _load_yaml(paths.graph)["stages"][stage]["params"]
        if isinstance(params, dict)
        for keys in params.values()
        for key in keys
    }
    moved = [key for key, find in now.items() if key in read and find() != _lookup(planned, key)]
    return [f"the {key.partition('.')[0]}" for key in moved]


def _source(paths: Paths, settings: Settings) -> dict[str, Any]:
    """Return the fingerprint of the source; of several, that of each by its folder in the raw data."""
    found = sources.parse_all(settings.download.sources, paths.root)
    if list(found) == [""]:
        return found[""].fingerprint(paths.state / "source-index.json")
    return {folder: source.fingerprint(paths.state / f"source-index-{folder}.json") for folder, source in found.items()}


def _candidates(settings: Settings) -> list[str] | None:
    """Return the backbones that `auto` chooses among; None if one is named."""
    if settings.backbone.name != AUTO:
        return None
    kind = settings.preprocess.kind
    return settings.backbone.candidates or catalogue.eligible(None if kind == "auto" else kind)


def _seed_of_weights(settings: Settings) -> int | None:
    """Return the seed if the backbone hangs on it, else None: another seed is no reason to fetch one again."""
    names = _candidates(settings) or [settings.backbone.name]
    drawn = settings.backbone.mode != "fetch" or any(catalogue.begins_from_nothing(name) for name in names)
    return settings.seed if drawn else None


def _pretraining(paths: Paths, settings: Settings) -> dict[str, Any] | None:
    """Return the fingerprint of what the backbone is pretrained on; None if it is not pretrained here."""
    backbone = settings.backbone
    if backbone.mode != "pretrain" or backbone.pretrain.source is None:
        return None
    return parse_source(backbone.pretrain.source, paths.root).fingerprint(paths.state / "pretraining-index.json")


def _preset(paths: Paths, settings: Settings) -> dict[str, Any] | None:
    """Return the fingerprint of each backbone of the user's own among those in question; None if there are none.

    They are preset folders, or were added to the weight cache: then the note on their content is what counts.
    """
    folders = {name: catalogue.preset_folder(name, paths.root) for name in settings.backbone.named}
    found: dict[str, Any] = {
        name: sources.parse(f"folder:{folder}", paths.root).fingerprint(paths.state / f"preset-index-{number}.json")
        for number, (name, folder) in enumerate(folders.items())
        if folder
    }
    for name in _candidates(settings) or settings.backbone.named:
        if added := weights.added_folder(name):
            found[name] = {"content": hash_bytes((added / weights.CONTENT).read_bytes())[:16]}
    return found or None


def code_fingerprint(stage: str) -> dict[str, str]:
    """Return a hash of every first-party file, and the version of every library, that `tasks/<stage>.py` can reach.

    Reached means imported, at the top or inside a function, by the stage or by what it imports; and a data file is
    reached when a module beside it names it. Keys are paths relative to the repository, or distribution names, so the
    result is the same on every machine that has the same checkout and the same locked libraries. Of the settings module
    only the defaults of the sections in use count: a new setting of one stage must not make the others stale.
    """
    files = modules.reachable_files(REPOSITORY / "tasks" / f"{stage}.py")
    found = {
        path.relative_to(REPOSITORY).as_posix(): hash_bytes(path.read_bytes())[:16]
        for path in files
        if path != SETTINGS
    }
    read = (path for path in files if path.suffix == ".py" and path != SETTINGS)
    imported = {name for path in read for name in modules.scan(path.read_bytes()).imports}
    for name in imported:
        section = getattr(settings_module, name.removeprefix("regraft.settings."), None)
        if isinstance(section, type) and issubclass(section, settings_module.Section):
            found[f"defaults of {section.__name__}"] = hash_json(section().model_dump())[:16]
    for name in {name.split(".")[0] for name in imported}.difference(modules.FIRST_PARTY):
        try:
            found[DISTRIBUTIONS.get(name, name)] = _version(DISTRIBUTIONS.get(name, name))
        except PackageNotFoundError:
            continue  # the standard library, whose version the lock file does not fix
        found |= {implied: _version(implied) for implied in IMPLIED.get(name, ())}
    return dict(sorted(found.items()))


def stage_fingerprint(paths: Paths, stage: str) -> str:
    """Return a hash of all that decides a stage's result: command, settings, code, source, hashes of inputs."""
    graph, lock = _load_yaml(paths.graph), _load_yaml(paths.lock)
    made = {out["path"]: out.get("md5") for entry in lock.get("stages", {}).values() for out in entry.get("outs", [])}
    settings, inputs = _parse_yaml(paths.params.read_text("utf-8"), pure=True), read_json(paths.inputs)
    definition = graph["stages"][stage]
    values: dict[str, Any] = {path: made.get(path) for path in definition.get("deps", [])}
    values["cmd"] = definition["cmd"]
    values["outs"] = sorted(out if isinstance(out, str) else next(iter(out)) for out in definition["outs"])
    for name in definition["params"]:
        if isinstance(name, str):
            values[name] = settings.get(name)
        else:
            values |= {key: _lookup(inputs, key) for keys in name.values() for key in keys}
    return hash_json(values)


def release_fingerprint(paths: Paths) -> str:
    """Return a hash of what a consumer gets, and of the evidence for it: equal models are registered once.

    It covers the outputs marked `released` in dvc.yaml, the code that wraps them and the libraries that go with it.
    """
    graph, lock = _load_yaml(paths.graph), _load_yaml(paths.lock)
    released = {
        path
        for definition in graph["stages"].values()
        for out in definition["outs"]
        if isinstance(out, dict)
        for path, options in out.items()
        if options.get("meta", {}).get("released")
    }
    found: dict[str, Any] = {
        out["path"]: out["md5"] for entry in lock["stages"].values() for out in entry["outs"] if out["path"] in released
    }
    found["wrapper"] = hash_bytes((REPOSITORY / "regraft" / "registry" / "consumer_model.py").read_bytes())
    found["libraries"] = {name: _version(name) for name in CONSUMER_LIBRARIES}
    return hash_json(found)


def locked_hash(paths: Paths, output: Path, lock: str | None = None) -> str:
    """Return DVC's hash of `output` as recorded in dvc.lock, or in `lock`, its text at another time: `3f...c2.dir`."""
    name = output.relative_to(paths.root).as_posix()
    recorded = _load_yaml(paths.lock) if lock is None else _parse_yaml(lock)
    for entry in (recorded or {}).get("stages", {}).values():
        for out in entry["outs"]:
            if out["path"] == name:
                return str(out["md5"])
    raise RegraftError(f"{paths.lock} has no entry for {name}; run `regraft run` first.")


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of `value` in canonical JSON."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@cache
def _version(distribution: str) -> str:
    """Return the version of an installed distribution; PackageNotFoundError if it is none."""
    return version(distribution)


def _lookup(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values[key]
    return values


def _load_yaml(path: Path) -> Any:
    return _parse_yaml(path.read_text("utf-8")) if path.exists() else {}


@lru_cache(maxsize=16)
def _parse_yaml(text: str, *, pure: bool = False) -> Any:
    """Parse YAML: in C, ten times as fast, by the rules of version 1.1; `pure`: by 1.2, as settings are read."""
    return YAML(typ="safe", pure=pure).load(text)
