"""What the registry holds: a list for people, and the version that a name stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regraft.errors import RegistryError
from regraft.measures import ALL_METRICS
from regraft.paths import Paths
from regraft.registry import tracking
from regraft.registry.published import CHAMPION, DATA_MD5, FINGERPRINT
from regraft.settings import Settings


def list_models(paths: Paths, settings: Settings) -> list[dict[str, Any]]:
    """Return the registered versions of the project's model, newest first, ready for JSON.

    Returns:
        For each version: name, version (int), aliases, created (ISO 8601, UTC, to the second), metrics (test metrics by
        name), kind, task, shipped (the strategy), backbone, fingerprint and run_id. Text is "" where a version
        made by hand lacks the tag. An empty list if there is none yet.

    Raises:
        ResourceError: If MLflow does not answer.
    """
    uri = tracking.tracking_uri(paths, settings)
    database = tracking.sqlite_file(uri)
    if database is not None and not database.exists():
        return []  # asking MLflow would create the database
    client = tracking.connect(paths, settings)
    with tracking.plain_errors(uri, "listing models"):
        found = client.search_model_versions(f"name = '{settings.name}'", max_results=1000)
        models = client.search_registered_models(f"name = '{settings.name}'")
    aliases: dict[int, list[str]] = {}
    for alias, number in (models[0].aliases if models else {}).items():
        aliases.setdefault(int(number), []).append(alias)
    rows = [
        {
            "name": version.name,
            "version": int(version.version),
            "aliases": sorted(aliases.get(int(version.version), [])),
            "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            "metrics": {
                metric: float(version.tags[f"test.{metric}"])
                for metric in ALL_METRICS
                if f"test.{metric}" in version.tags
            },
            "kind": version.tags.get("regraft.kind", ""),
            "task": version.tags.get("regraft.task", "classification"),
            "shipped": version.tags.get("regraft.shipped", ""),
            "backbone": version.tags.get("regraft.backbone", ""),
            "fingerprint": version.tags.get(FINGERPRINT, ""),
            "run_id": version.run_id or "",
        }
        for version in found
    ]
    return sorted(rows, key=lambda row: -row["version"])


def resolve(paths: Paths, settings: Settings, reference: str) -> tuple[str, int]:
    """Return (name, version) of the model that `reference` stands for.

    Args:
        paths: The project.
        settings: Its settings.
        reference: `NAME` (the champion), `NAME@ALIAS` or `NAME/VERSION`.

    Raises:
        RegistryError: If there is no such model, alias or version; the message lists those that there are.
        ResourceError: If MLflow does not answer.
    """
    from_version = "/" in reference
    name, _, which = reference.partition("/" if from_version else "@")
    which = which or ("" if from_version else CHAMPION)
    uri = tracking.tracking_uri(paths, settings)
    where = tracking.redacted(uri)
    database = tracking.sqlite_file(uri)
    if database is not None and not database.exists():
        raise RegistryError(f"no model is registered in {where} yet. Run `regraft run` to make one.")
    client = tracking.connect(paths, settings)
    with tracking.plain_errors(uri, f"looking up {reference}"):
        models = {model.name: model for model in client.search_registered_models(max_results=1000)}
        if name not in models:
            held = f"it holds {', '.join(sorted(models))}" if models else "it holds none; run `regraft run` to make one"
            raise RegistryError(f"the registry {where} has no model {name!r}; {held}.")
        numbers = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    aliases = {alias: int(number) for alias, number in models[name].aliases.items()}
    if from_version and which.isdecimal() and int(which) in numbers:
        return name, int(which)
    if not from_version and which in aliases:
        return name, aliases[which]
    held = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items())) or "none"
    raise RegistryError(
        f"model {name!r} has no {'version' if from_version else 'alias'} {which!r}. Aliases: {held}; "
        f"versions: {', '.join(map(str, numbers)) or 'none'}. Write NAME, NAME@ALIAS or NAME/VERSION."
    )


def data_hash(paths: Paths, settings: Settings, reference: str) -> str:
    """Return DVC's hash of the prepared data that the model `reference` (see `resolve`) was made from.

    Raises:
        RegistryError: If there is no such model, or it does not say.
        ResourceError: If MLflow does not answer.
    """
    name, number = resolve(paths, settings, reference)
    client = tracking.connect(paths, settings)
    with tracking.plain_errors(tracking.tracking_uri(paths, settings), f"looking up {reference}"):
        found = client.get_model_version(name, str(number)).tags.get(DATA_MD5)
    if not found:
        raise RegistryError(f"version {number} of {name} does not say which data it was made from (tag {DATA_MD5}).")
    return str(found)


@dataclass(frozen=True)
class Recorded:
    """What the registry keeps of a version.

    Attributes:
        name: Of the registered model.
        version: Its number.
        tags: Of the version.
        folder: Holds reports/ and project/ as they were when it was registered.
    """

    name: str
    version: int
    tags: Mapping[str, str]
    folder: Path


def recorded_files(paths: Paths, settings: Settings, reference: str, folder: Path) -> Recorded:
    """Fetch what was recorded with the model `reference` (see `resolve`) into the new `folder`.

    Raises:
        RegistryError: If there is no such model, or it belongs to no MLflow run.
        ResourceError: If MLflow does not answer.
    """
    name, number = resolve(paths, settings, reference)
    client, uri = tracking.connect(paths, settings), tracking.tracking_uri(paths, settings)
    folder.mkdir(parents=True)
    with tracking.plain_errors(uri, f"reading what was recorded of {name} version {number}"):
        version = client.get_model_version(name, str(number))
        if not version.run_id:
            raise RegistryError(
                f"{name} version {number} belongs to no MLflow run, so it is not known how it was made."
            )
        for part in ("project", "reports"):
            if any(client.list_artifacts(version.run_id, part)):
                client.download_artifacts(version.run_id, part, str(folder))
    return Recorded(name, number, dict(version.tags), folder)
