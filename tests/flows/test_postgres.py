"""Databases on a real PostgreSQL server, started for the tests where its programs are installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flows import postgres
from regraft.errors import RegraftError, ResourceError

PASSWORD = "p@ss%word"  # noqa: S105  (of the test's own server)
QUOTED = "p%40ss%25word"


def programs():
    """Return the folder with PostgreSQL's programs, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture(scope="module")
def port():
    """The port of a PostgreSQL server of its own, whose user `owner` may do anything and `guest` nothing."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="regraft-postgres-") as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        place = Path(name)
        (place / "password").write_text(PASSWORD)
        user: Any = {"user": "postgres"} if os.geteuid() == 0 else {}  # it does not run for root
        if user:
            for path in (place, place / "password"):
                shutil.chown(path, "postgres")
        base = place / "base"
        login = ["--auth=scram-sha-256", f"--pwfile={place / 'password'}", "--username=owner", "--no-sync"]
        subprocess.run([folder / "initdb", "-D", base, *login], check=True, capture_output=True, cwd=place, **user)
        probe.close()
        options = f"-p {free} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
        control = [folder / "pg_ctl", "-D", base, "-w", "-l", place / "log"]
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd=place, **user)
        try:
            with psycopg.connect(address("owner", free) + "/postgres", autocommit=True) as connection:
                connection.execute("CREATE USER guest PASSWORD 'p@ss%word'")
            yield free
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=place, **user)


def address(user, port, password=QUOTED):
    return f"postgresql://{user}:{password}@127.0.0.1:{port}"


def names(port):
    with psycopg.connect(address("owner", port) + "/postgres") as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_without_an_address_nothing_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("POSTGRES_URL", raising=False)
    assert postgres.databases(tmp_path) == {}


def test_a_user_who_may_make_no_databases_is_told_which(port, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", address("guest", port))
    with pytest.raises(RegraftError, match="'guest' make databases; make prefect and mlflow yourself"):
        postgres.databases(tmp_path)


def test_databases_are_made_once_and_named_with_the_drivers_of_the_servers(port, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", address("owner", port))
    made = postgres.databases(tmp_path)
    assert made == {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://owner:{QUOTED}@127.0.0.1:{port}/prefect",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://owner:{QUOTED}@127.0.0.1:{port}/mlflow",
    }
    assert {"prefect", "mlflow"} <= names(port)
    assert postgres.databases(tmp_path) == made
    monkeypatch.setenv("POSTGRES_URL", address("guest", port))
    assert set(postgres.databases(tmp_path)) == set(made)


def test_a_server_that_was_used_before_is_not_forgotten(port, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", address("owner", port))
    postgres.databases(tmp_path)
    monkeypatch.delenv("POSTGRES_URL")
    with pytest.raises(RegraftError, match=f"server at 127.0.0.1:{port}, and POSTGRES_URL is not set"):
        postgres.databases(tmp_path)


def test_encryption_is_asked_for_in_the_words_of_each_driver(port, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", address("owner", port) + "/postgres?sslmode=prefer")
    made = postgres.databases(tmp_path)
    assert made["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith("/prefect?ssl=prefer")
    assert made["MLFLOW_BACKEND_STORE_URI"].endswith("/mlflow?sslmode=prefer")


def test_a_wrong_password_and_a_server_that_is_not_there_are_said_without_the_password(port, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", address("owner", port, "secret"))
    with pytest.raises(ResourceError, match=f"127.0.0.1:{port} .* password authentication failed") as refused:
        postgres.databases(tmp_path)
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("POSTGRES_URL", "postgresql://owner:secret@127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:1 .* refused"):
        postgres.databases(tmp_path)


@pytest.mark.parametrize(
    "text", ["mysql://u:secret@host", "localhost:5432", "postgresql:///prefect", "postgresql://h:x"]
)
def test_what_is_no_address_of_a_server_is_refused(monkeypatch, text, tmp_path):
    monkeypatch.setenv("POSTGRES_URL", text)
    with pytest.raises(RegraftError, match="must have the form postgresql://USER:PASSWORD@HOST:PORT") as refused:
        postgres.databases(tmp_path)
    assert "secret" not in str(refused.value)
