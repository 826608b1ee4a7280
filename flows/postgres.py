"""Databases for the two servers on a PostgreSQL server, which `POSTGRES_URL` names."""

import os
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError, ResourceError
from regraft.files import write_text

VARIABLE = "POSTGRES_URL"
# Of each server: the setting that holds the address of its database, and the driver by which it comes there.
_SERVERS = {
    "prefect": ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "asyncpg"),
    "mlflow": ("MLFLOW_BACKEND_STORE_URI", "psycopg"),
}
_PATIENCE_S = 10


def databases(folder: Path) -> dict[str, str]:
    """Make the databases `prefect` and `mlflow` where they are missing, and return the settings that name them.

    Nothing is made, and nothing returned, where `POSTGRES_URL` is not set. It is `postgresql://USER:PASSWORD@HOST:PORT`,
    with the database to ask for others if that is not `postgres`.

    Args:
        folder: The state folder, which remembers the server: without it, an empty registry would take the old one's
            place.

    Raises:
        RegraftError: If it is no such address, the user may not make databases, or it is missing where there was one.
        ResourceError: If the server does not answer, or does not let this user in.
    """
    text, known = os.environ.get(VARIABLE), folder / "postgres.txt"
    if not text:
        if known.exists():
            raise RegraftError(
                f"the servers kept their databases on the PostgreSQL server at {known.read_text('utf-8').strip()}, and "
                f"{VARIABLE} is not set. Set it; or delete {known}, to begin with empty databases here."
            )
        return {}
    import psycopg
    from psycopg import sql
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or not url.host or url.drivername.partition("+")[0] not in ("postgresql", "postgres"):
        raise RegraftError(
            f"{VARIABLE} is {url.render_as_string() if url else 'no address'}; it must have the form "
            "postgresql://USER:PASSWORD@HOST:PORT, with %40 for an @ in the password and so on."
        )
    url = url.set(drivername="postgresql")
    asked: Any = url.translate_connect_args(database="dbname", username="user") | url.query
    asked = {"dbname": "postgres", "connect_timeout": _PATIENCE_S} | asked
    place = f"{url.host}:{url.port or 5432}"
    where = f"the PostgreSQL server at {place} ({VARIABLE})"
    try:
        with psycopg.connect(autocommit=True, **asked) as connection:
            present = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in _SERVERS:
                if name not in present:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege:
        raise RegraftError(
            f"{where} does not let user {url.username!r} make databases; make {' and '.join(_SERVERS)} yourself, owned "
            "by that user."
        ) from None
    except psycopg.OperationalError as error:
        raise ResourceError(f"{where} cannot be used: {' '.join(str(error).split())}") from None
    write_text(known, place + "\n")
    settings = {}
    for name, (setting, driver) in _SERVERS.items():
        query = dict(url.query)
        if driver == "asyncpg" and "sslmode" in query:
            query["ssl"] = query.pop("sslmode")  # its own name for the same
        address = url.set(drivername=f"postgresql+{driver}", database=name, query=query)
        settings[setting] = address.render_as_string(hide_password=False)
    return settings
