"""Publishing to a real MLflow server, which may be dead, die half-way, or be asked by several."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.errors import RegistryError, ResourceError
from regraft.registry import published, register, tracking
from regraft.registry.published import is_published
from regraft.registry.register import publish
from regraft.registry.versions import list_models
from tests.registry.small_projects import LINEAGE, NEVER_RED, Project, Server


def test_a_model_is_published_once_and_replaced_by_a_better_one(
    make_project: Callable[..., Project], tmp_path: Path, server: Server
) -> None:
    weak = make_project(tmp_path, order=NEVER_RED, uri=server.uri).named("replaced")
    assert not is_published(weak.paths, weak.settings, weak.fingerprint)
    assert publish(weak.paths, weak.settings, LINEAGE, weak.fingerprint).promoted
    assert is_published(weak.paths, weak.settings, weak.fingerprint)

    project = make_project(tmp_path, uri=server.uri).named("replaced")
    assert not is_published(project.paths, project.settings, project.fingerprint)
    publication = publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    again = publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    assert (publication.version, again.version, again.promoted) == (2, 2, True)
    rows = list_models(project.paths, project.settings)
    assert [(row["version"], row["aliases"]) for row in rows] == [(2, ["champion"]), (1, ["previous"])]
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlartifacts").exists()


def test_the_quick_answer_is_that_of_the_client(
    make_project: Callable[..., Project], tmp_path: Path, server: Server
) -> None:
    for uri in (server.uri, None):
        project = make_project(tmp_path / ("server" if uri else "file"), uri=uri)
        publish(project.paths, project.settings, LINEAGE, project.fingerprint)
        client = tracking.connect(project.paths, project.settings)
        for fingerprint in (project.fingerprint, "0" * 64):
            quick = published.standing(project.paths, project.settings, fingerprint)
            assert quick == published.ask_client(client, "colours", fingerprint)


def test_a_deleted_version_is_not_published_any_more(
    make_project: Callable[..., Project], tmp_path: Path, server: Server
) -> None:
    for uri in (server.uri, None):
        project = make_project(tmp_path / ("server" if uri else "file"), uri=uri).named("deleted")
        number = publish(project.paths, project.settings, LINEAGE, project.fingerprint).version
        tracking.connect(project.paths, project.settings).delete_model_version("deleted", str(number))
        assert not is_published(project.paths, project.settings, project.fingerprint)


def test_a_dead_server_is_reported_in_seconds_and_by_name(make_project: Callable[..., Project], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    project = make_project(tmp_path, uri=uri)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=f"does not answer at {uri}"):
        publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    assert time.monotonic() - started < 10


def test_a_server_that_accepts_but_never_answers_is_reported_too(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        project = make_project(tmp_path, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ResourceError, match="timed out"):
            publish(project.paths, project.settings, LINEAGE, project.fingerprint)


def test_something_that_is_not_mlflow_is_named_as_such(
    make_project: Callable[..., Project], tmp_path: Path, server: Server
) -> None:
    project = make_project(tmp_path, uri=server.uri)
    publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    elsewhere = make_project(tmp_path, uri=server.uri + "/elsewhere")
    with pytest.raises(RegistryError, match="refused"):
        is_published(elsewhere.paths, elsewhere.settings, elsewhere.fingerprint)


def test_a_server_killed_half_way_leaves_no_version_and_the_next_attempt_makes_exactly_one(
    make_project: Callable[..., Project], tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path, uri=server.uri).named("half-way")
    log_model = register._log_model

    def log_model_and_kill(*arguments: object) -> str:
        model_id = log_model(*arguments)  # type: ignore[arg-type]
        server.kill()
        return model_id

    try:
        with monkeypatch.context() as patched:
            patched.setattr(register, "_log_model", log_model_and_kill)
            with pytest.raises(ResourceError, match="half-way"):
                publish(project.paths, project.settings, LINEAGE, project.fingerprint)
            killed = time.monotonic()
        assert not (project.paths.reports / "promotion.json").exists()
        with pytest.raises(ResourceError, match="does not answer"):
            publish(project.paths, project.settings, LINEAGE, project.fingerprint)
        assert time.monotonic() - killed < 20
    finally:
        server.start()
    assert list_models(project.paths, project.settings) == []
    assert publish(project.paths, project.settings, LINEAGE, project.fingerprint).promoted
    assert [row["version"] for row in list_models(project.paths, project.settings)] == [1]
    client = tracking.connect(project.paths, project.settings)
    experiment = client.get_experiment_by_name("half-way")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.search_logged_models([experiment.experiment_id])) == 1


def test_passwords_in_addresses_stay_out_of_messages(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(tmp_path, uri="http://ann:secret@127.0.0.1:9")
    with pytest.raises(ResourceError) as caught:
        publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    assert "secret" not in str(caught.value)
    assert "ann:***@127.0.0.1" in str(caught.value)
