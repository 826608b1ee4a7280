"""Moving the alias `champion` by hand: to a version that a person names, or back to the one before."""

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from regraft.errors import RegistryError
from regraft.paths import Paths
from regraft.registry import published, tracking
from regraft.registry.published import CHALLENGER, CHAMPION, DECISION, PREVIOUS
from regraft.registry.versions import resolve
from regraft.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MOVED = "regraft.moved_by_hand"  # tag of a version: when it was made champion by a person, and in whose place


def promote(paths: Paths, settings: Settings, reference: str, *, despite_gates: bool = False) -> dict[str, Any]:
    """Make the version `reference` the champion; the champion until now becomes `previous`.

    Args:
        paths: The project whose registry is asked.
        settings: Its settings.
        reference: `NAME/VERSION`, or `NAME@ALIAS` such as `NAME@challenger`.
        despite_gates: Whether to do so although a gate refused it, or none was asked.

    Returns:
        {"name", "champion": version, "previous": version or None, "moved": whether anything changed}.

    Raises:
        RegistryError: If there is no such version, or its gates do not hold.
        ResourceError: If MLflow does not answer.
    """
    name, number = resolve(paths, settings, reference)
    client, uri = tracking.connect(paths, settings), tracking.tracking_uri(paths, settings)
    with tracking.plain_errors(uri, f"promoting {name} version {number}"):
        champion = published.ask_client(client, name, "").champion
        if champion == number:
            return {
                "name": name,
                "champion": number,
                "previous": published.version_of(client, name, PREVIOUS),
                "moved": False,
            }
        recorded = json.loads(client.get_model_version(name, str(number)).tags.get(DECISION, "{}"))
        refused = [gate["reason"] for gate in recorded.get("gates", []) if not gate["passed"]]
        if not despite_gates and (refused or not recorded):
            why = "; ".join(refused) if recorded else "it was never judged: `regraft run` did not register it"
            raise RegistryError(
                f"version {number} of {name} is not made champion: {why}. To do it all the same: --despite-gates."
            )
        return _move(client, name, number, champion)


def rollback(paths: Paths, settings: Settings) -> dict[str, Any]:
    """Make the champion's predecessor champion again; the two change places, so doing it twice changes nothing.

    A later run leaves it so until it makes another model: a version is judged once against each champion.

    Returns:
        As `promote`.

    Raises:
        RegistryError: If there is no previous version.
        ResourceError: If MLflow does not answer.
    """
    name, number = resolve(paths, settings, f"{settings.name}@{PREVIOUS}")
    client, uri = tracking.connect(paths, settings), tracking.tracking_uri(paths, settings)
    with tracking.plain_errors(uri, f"rolling {name} back"):
        champion = published.ask_client(client, name, "").champion
        if number == champion:
            raise RegistryError(
                f"version {number} of {name} is both champion and previous: a move was cut off half way. Name the "
                f"version to go back to: regraft promote {name}/VERSION (`regraft models` lists them)."
            )
        return _move(client, name, number, champion)


def _move(client: "MlflowClient", name: str, number: int, champion: int | None) -> dict[str, Any]:
    """Let `champion` be `previous`, and then `number` champion: the last write, as consumers see it."""
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "instead_of": champion}
    client.set_model_version_tag(name, str(number), MOVED, json.dumps(note))
    if published.version_of(client, name, CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)
    if champion is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(champion))
    client.set_registered_model_alias(name, CHAMPION, str(number))
    log.info("version %d of %s is now the champion", number, name)
    return {"name": name, "champion": number, "previous": champion, "moved": True}
