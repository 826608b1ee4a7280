"""Whether a model has already been registered and judged, answered in milliseconds and without importing MLflow.

A run with nothing to do must end at once, and importing MLflow alone takes two seconds. So a SQLite store is read with
the standard library's `sqlite3`, and a server is asked two questions of MLflow's REST API with `urllib`; a test
compares both with MLflow's own client. Every other store (PostgreSQL, MySQL), every way of signing in that `urllib`
cannot speak, and a SQLite schema of another MLflow version go through MLflow's client: slower, and always right.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from regraft.errors import RegistryError, ResourceError
from regraft.files import read_object
from regraft.paths import Paths
from regraft.registry import tracking
from regraft.settings import PromoteSettings, Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"  # the latest version that did not become champion
# Tags of runs and versions.
FINGERPRINT = "regraft.fingerprint"
DECISION = "regraft.decision"  # the gates and their outcome, as JSON
CODE_COMMIT = "regraft.code_commit"
DATA_MD5 = "regraft.data_md5"  # DVC's hash of the prepared data
DECIDED = "regraft.decided"  # which question DECISION answers; written when nothing is left to do

# With one of these set, requests are signed or routed in ways that only MLflow's client knows.
NEEDS_CLIENT = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_WORKSPACE",
)


@dataclass(frozen=True)
class Standing:
    """What the registry says about one fingerprint.

    Attributes:
        champion: Version that holds the alias `champion`, None without one.
        versions: Tags of each version registered for the fingerprint, by version number.
    """

    champion: int | None
    versions: Mapping[int, Mapping[str, str]]

    @property
    def version(self) -> int | None:
        """The version of this fingerprint; should there ever be two, the older one."""
        return min(self.versions, default=None)

    def is_settled(self, promote: PromoteSettings) -> bool:
        """Whether the version is the champion, or was judged by these rules against this champion already.

        A version that was judged once is not judged again until the rules or the champion change; so an alias that a
        person moved back stays there.
        """
        if self.version is None:
            return False
        if self.version == self.champion:
            return True
        return self.versions[self.version].get(DECIDED) == question(promote, self.champion)


def question(promote: PromoteSettings, champion: int | None) -> str:
    """Name the question "may a model replace version `champion` under the rules `promote`?"."""
    rules = hashlib.sha256(promote.model_dump_json(exclude=promote.off).encode()).hexdigest()[:16]
    return f"{rules} against {'nothing' if champion is None else f'version {champion}'}"


def is_published(paths: Paths, settings: Settings, fingerprint: str) -> bool:
    """Return whether `publish` would have nothing to do for the model `fingerprint`.

    True if the registry holds it, has judged it by the present rules against the present champion, and
    reports/promotion.json says about it what is still so.

    Raises:
        ResourceError: If the MLflow server does not answer within three seconds.
        RegistryError: If the server refuses to answer (not signed in, for instance).
    """
    report = paths.reports / "promotion.json"
    reported = read_object(report) if report.exists() else {}
    if reported.get("fingerprint") != fingerprint or reported.get("name") != settings.name:
        return False
    found = standing(paths, settings, fingerprint)
    return found.is_settled(settings.promote) and reported["promoted"] == (found.version == found.champion)


def check_login(paths: Paths, settings: Settings) -> None:
    """Ask the project's MLflow server something small, so that a refusal comes before hours of training, not after.

    A server that does not answer may do so by then.

    Raises:
        RegistryError: If it refuses to answer.
    """
    uri = tracking.tracking_uri(paths, settings)
    if urlsplit(uri).scheme in ("http", "https") and _asks_plainly():
        try:
            _answer(uri, "/api/2.0/mlflow/experiments/search?max_results=1")
        except ResourceError as error:
            log.warning("%s", error)


def standing(paths: Paths, settings: Settings, fingerprint: str) -> Standing:
    """Ask the registry about `fingerprint` in the fastest way its store allows."""
    uri = tracking.tracking_uri(paths, settings)
    if urlsplit(uri).scheme in ("http", "https"):
        if _asks_plainly():
            return _ask_server(uri, settings.name, fingerprint)
    elif database := tracking.sqlite_file(uri):
        if not database.exists():
            return Standing(None, {})
        try:
            return _read_database(database, settings.name, fingerprint)
        except sqlite3.DatabaseError as error:
            log.debug("asking MLflow instead: %s (another version's tables, a writer, or damage)", error)
    client = tracking.connect(paths, settings)
    with tracking.plain_errors(uri, "reading the registry"):
        return ask_client(client, settings.name, fingerprint)


def ask_client(client: "MlflowClient", name: str, fingerprint: str) -> Standing:
    """Ask MLflow's own client."""
    from mlflow.exceptions import MlflowException

    found = client.search_model_versions(f"name = '{name}' AND tags.`{FINGERPRINT}` = '{fingerprint}'")
    versions = {int(version.version): dict(version.tags) for version in found}
    try:
        return Standing(int(client.get_model_version_by_alias(name, CHAMPION).version), versions)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return Standing(None, versions)  # no such alias, or no such model yet


def version_of(client: "MlflowClient", name: str, alias: str) -> int | None:
    """Return the version of the registered model `name` that carries `alias`; None if none does."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else int(number)


def _read_database(database: Path, name: str, fingerprint: str) -> Standing:
    """Read MLflow 3.17's tables; never creates or changes the file."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
        champion = connection.execute(
            "SELECT version FROM registered_model_aliases WHERE workspace = 'default' AND name = ? AND alias = ?",
            (name, CHAMPION),
        ).fetchone()
        rows = connection.execute(
            "SELECT v.version, t.key, t.value FROM model_versions v"
            " JOIN model_version_tags t USING (workspace, name, version) "
            "WHERE v.workspace = 'default' AND v.name = ? AND v.current_stage != 'Deleted_Internal' AND EXISTS ("
            " SELECT 1 FROM model_version_tags f WHERE f.workspace = v.workspace AND f.name = v.name"
            " AND f.version = v.version AND f.key = ? AND f.value = ?)",
            (name, FINGERPRINT, fingerprint),
        ).fetchall()
    versions: dict[int, dict[str, str]] = {}
    for version, key, value in rows:
        versions.setdefault(int(version), {})[key] = value
    return Standing(int(champion[0]) if champion else None, versions)


def _ask_server(uri: str, name: str, fingerprint: str) -> Standing:
    """Ask MLflow's REST API."""
    matching = quote(f"name = '{name}' AND tags.`{FINGERPRINT}` = '{fingerprint}'")
    found = _answer(uri, f"/api/2.0/mlflow/model-versions/search?filter={matching}")
    asked = f"/api/2.0/mlflow/registered-models/alias?name={quote(name)}&alias={CHAMPION}"
    alias = _answer(uri, asked, absent_is_fine=True)
    return Standing(
        int(alias["model_version"]["version"]) if alias else None,
        {
            int(version["version"]): {tag["key"]: tag.get("value", "") for tag in version.get("tags", [])}
            for version in found.get("model_versions", [])
        },
    )


def _answer(uri: str, path: str, *, absent_is_fine: bool = False) -> Any:
    status, body = tracking.get(uri, path)
    if status == 200:
        try:
            return json.loads(body)
        except ValueError:
            shown = body[:80].decode(errors="replace")
            raise RegistryError(
                f"{tracking.redacted(uri)} answers, but not as an MLflow server does: {shown!r}. Check the address in "
                "MLFLOW_TRACKING_URI or tracking.uri."
            ) from None
    code = json.loads(body).get("error_code") if body.startswith(b"{") else None
    if absent_is_fine and code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return {}
    said = " ".join(body[:300].decode(errors="replace").split()).rstrip(".")
    raise RegistryError(
        f"the MLflow server at {tracking.redacted(uri)} refused {path.partition('?')[0]} with status {status}: {said}. "
        f"{tracking.LOGIN}"
    )


def _asks_plainly() -> bool:
    return not any(os.environ.get(name) for name in NEEDS_CLIENT) and not _has_credentials_file()


def _has_credentials_file() -> bool:
    return (Path.home() / ".mlflow" / "credentials").exists()
