"""Where MLflow is, whether it answers, and what its failures mean to a person.

Importing this module costs nothing: MLflow itself (2 s) is imported by the first call that needs it.
"""

import logging
import os
import re
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from regraft.errors import DISK_ERRORS, RegistryError, ResourceError, SettingsError
from regraft.files import write_text
from regraft.paths import Paths
from regraft.settings import Settings
from regraft.state import server

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

REACH_TIMEOUT_S = 3.0
ARTIFACTS = "mlartifacts"
# MLflow's error codes for what another attempt may get past; it calls every failed connection an internal error.
PASSING_ERRORS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")  # what it makes of 401 and 403
LOGIN = (
    "Check its address and your login: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
)
SCHEMES = (
    "http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc",
)  # fmt: skip
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# MLflow retries a request for about four minutes unless told otherwise; a dead server should be reported in seconds.
# It also prints addresses and progress bars where `--json` prints facts. A value that the user has set wins.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}


def tracking_uri(paths: Paths, settings: Settings) -> str:
    """Return the URI of the MLflow store.

    It is MLFLOW_TRACKING_URI, else `tracking.uri`, else the project's own database if it has one: a registry does not
    move because a server was started. Else it is the server of `regraft up`, else a database of the project's own.

    A SQLite file given by a relative path is made absolute (the variable's as seen from the working directory, the
    setting's as seen from the project), because stages and flows run in several working directories.

    Raises:
        SettingsError: If MLflow knows no such kind of store, or the project was published to another registry that
            nothing names now: a new one would begin without its champion.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI", "").strip():
        return _absolute(_known(uri, "the variable MLFLOW_TRACKING_URI"), Path.cwd())
    if settings.tracking.uri:
        return _absolute(_known(settings.tracking.uri, "tracking.uri in params.yaml"), paths.root)
    database = default_database(paths)
    own, used = f"sqlite:///{database}", _note(paths)
    if database.exists():
        return own
    if address := server("mlflow"):
        return address
    if used.exists():
        raise SettingsError(
            f"{paths.root} was last published to the registry at {used.read_text('utf-8').strip()}, which nothing "
            "names now, and no other was begun in its place. `regraft up` brings back a server that it had started; "
            "for another, set tracking.uri in params.yaml or MLFLOW_TRACKING_URI. To begin a new registry in the "
            f"project, without the models of the old one, set tracking.uri to sqlite:///{database.name}."
        )
    return own


def note_registry(paths: Paths, uri: str) -> None:
    """Remember that the project was published to `uri`, unless that is a database of its own."""
    if uri == f"sqlite:///{default_database(paths)}":
        _note(paths).unlink(missing_ok=True)
    else:
        write_text(_note(paths), redacted(uri))


def _note(paths: Paths) -> Path:
    return paths.state / "registry"


def _known(uri: str, where: str) -> str:
    """Return `uri` if its scheme is MLflow's own, a plugin's, or missing (a folder)."""
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme and scheme not in SCHEMES and scheme not in entry_points(group="mlflow.tracking_store").names:
        raise SettingsError(
            f"{where} is {redacted(uri)!r}, and MLflow has no store of the kind {scheme!r}; write the address of a "
            "server (http://host:5000) or a database (sqlite:///FILE, postgresql://...)."
        )
    return uri


def default_database(paths: Paths) -> Path:
    """Return the SQLite file that holds runs and models when no server is named."""
    return paths.root / "mlflow.db"


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a `sqlite:///` URI, None for every other URI."""
    found = re.fullmatch(r"sqlite:///([^?]+)", uri)
    return Path(found[1]) if found else None


def redacted(uri: str) -> str:
    """Return `uri` with a password in it replaced by `***`, fit for messages and logs."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def check_reachable(uri: str) -> None:
    """Return at once if the store at `uri` answers; a store of an unknown scheme is left to MLflow.

    Raises:
        ResourceError: If a server does not answer within three seconds, or a SQLite file cannot be written.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        get(uri, "/health")
    elif database := sqlite_file(uri):
        holder = database if database.exists() else database.parent
        if not os.access(holder, os.W_OK):
            raise ResourceError(
                f"the MLflow database {database} cannot be written: {holder} is missing or not writable. "
                "Create the folder, or correct tracking.uri in params.yaml (or MLFLOW_TRACKING_URI)."
            )
    elif parts.hostname and (port := parts.port or DEFAULT_PORTS.get(parts.scheme.split("+")[0])):
        try:
            socket.create_connection((parts.hostname, port), timeout=REACH_TIMEOUT_S).close()
        except OSError as error:
            raise _unreachable(uri, error) from None


def get(uri: str, path: str) -> tuple[int, bytes]:
    """Send one GET to the MLflow server at `uri`, as MLflow's client would, and return (status, body).

    Statuses below 500 are returned, whatever they mean. Credentials come from the URI or from MLflow's environment
    variables; the ways of signing in that this cannot speak are listed in `published.NEEDS_CLIENT`.

    Raises:
        ResourceError: If nobody answers in time, or a gateway says that the server behind it does not.
    """
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/") + path
    request = urllib.request.Request(address)  # noqa: S310  (callers send http and https here, nothing else)
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if parts.username and parts.password:
        user, password = parts.username, parts.password
    if user and password:
        import base64

        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        context = _tls(parts.scheme)
        with urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S, context=context) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise _unreachable(uri, error) from None
        return error.code, error.read()
    except (OSError, ValueError) as error:  # URLError, time-out, a connection cut short; no valid address
        raise _unreachable(uri, error) from None


def connect(paths: Paths, settings: Settings) -> "MlflowClient":
    """Return a client of the project's MLflow store after making sure that the store answers.

    MLflow's own process-wide tracking URI is left alone.

    Raises:
        ResourceError: If the store does not answer.
        RegistryError: If MLflow refuses it, for instance a database of another MLflow version.
    """
    uri = tracking_uri(paths, settings)
    check_reachable(uri)
    with plain_errors(uri, "opening the registry"):
        database = default_database(paths)
        if sqlite_file(uri) == database and database.exists():
            follow_move(database, paths.root / ARTIFACTS)
        from mlflow import MlflowClient

        if (file := sqlite_file(uri)) is not None and not file.exists():
            _create_database(file)
        return MlflowClient(uri, uri)


def _create_database(file: Path) -> None:
    """Make MLflow's tables in a new SQLite file that appears whole or not at all.

    MLflow makes them one by one, and does not open a file in which a crash or a full disk left some of them.
    """
    from mlflow import MlflowClient

    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{part}", f"sqlite:///{part}").search_experiments(max_results=1)
    part.replace(file)


def prepare_environment() -> None:
    """Set MLflow's switches for short retries, no telemetry and no progress bars; call before importing it."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def process_wide(uri: str) -> Iterator[None]:
    """Make `uri` the process's MLflow store inside the block, for the calls of MLflow that look nowhere else."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # which sets the variable, too
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def artifact_location(uri: str, paths: Paths) -> str | None:
    """Return the folder for a new experiment's files; None for a server, which has a place of its own.

    Without it MLflow would write to `mlruns` in whatever the working directory is.
    """
    return None if urlsplit(uri).scheme in ("http", "https") else str(paths.root / ARTIFACTS)


def follow_move(database: Path, artifacts: Path) -> None:
    """Correct the absolute paths in a project's own database after the project's folder was moved or copied.

    MLflow records where files are by absolute path, and has no call to change it. Left alone, a copy of a project would
    read and write the files of the original.
    """
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with closing(sqlite3.connect(database, timeout=REACH_TIMEOUT_S)) as connection, connection:
        present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not present.issuperset(columns):
            return  # MLflow has yet to make its tables
        locations = connection.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?", (f"%/{ARTIFACTS}",)
        ).fetchall()
        for (old,) in locations:
            runs = connection.execute(
                "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(old) + 1, old + "/")
            ).fetchall()
            # Another project's runs may be in this database too; only files that are here have moved here.
            if old == str(artifacts) or not any((artifacts / run[len(old) + 1 :]).exists() for (run,) in runs):
                continue
            log.info("the project was moved: MLflow's files are now looked for in %s instead of %s", artifacts, old)
            for table, column in columns.items():
                # Table and column are constants of this function.
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (str(artifacts), len(old) + 1, old, len(old) + 1, old + "/"),
                )


@contextmanager
def plain_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn MLflow's failures inside the block into errors a person can act on.

    Args:
        uri: The store, for the message.
        doing: What is being done, e.g. "registering the model".

    Raises:
        ResourceError: For a server that went away or broke, a locked database, a full disk: trying again can help.
        RegistryError: For everything that MLflow refuses: trying again cannot.
    """
    prepare_environment()
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    where = redacted(uri)
    again = "What was already recorded is kept; the next `regraft run` completes it."
    try:
        yield
    except MlflowException as error:
        message = f"{doing}: MLflow at {where} says: {redacted(str(error)).strip()}"
        if error.error_code in REFUSALS:
            raise RegistryError(f"{message}. {LOGIN}") from error
        if error.error_code in PASSING_ERRORS:
            raise ResourceError(f"{message}\n{again}") from error
        raise RegistryError(message) from error
    except (requests.RequestException, sqlalchemy.exc.OperationalError, sqlite3.OperationalError) as error:
        raise ResourceError(f"{doing}: MLflow at {where} failed: {redacted(str(error))}\n{again}") from error
    except (sqlalchemy.exc.DatabaseError, sqlite3.DatabaseError) as error:
        raise RegistryError(
            f"{doing}: the database of MLflow at {where} is damaged: {redacted(str(error))}. Bring it back from a "
            "backup, or move it away to begin a new registry."
        ) from error
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ResourceError(f"{doing}: {error}. Make room and run again. {again}") from error


def _absolute(uri: str, base: Path) -> str:
    database = sqlite_file(uri)
    return uri if database is None else f"sqlite:///{base / database.expanduser()}"


def _tls(scheme: str) -> ssl.SSLContext | None:
    """Return the TLS context that MLflow's variables ask for."""
    if scheme != "https":
        return None
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unreachable(uri: str, error: Exception) -> ResourceError:
    reason = getattr(error, "reason", None) or error
    return ResourceError(
        f"MLflow does not answer at {redacted(uri)} ({redacted(str(reason))}). Start it, or correct tracking.uri in "
        "params.yaml (or MLFLOW_TRACKING_URI), and run again; stages that are done are not repeated."
    )
