"""`regraft up`, `deploy`, `status`, `down`, and which servers a project uses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from typer.testing import CliRunner

from flows.services import _addresses, _deployment, _in_place, down, status, up
from regraft import cli, services
from regraft.errors import RegraftError, SettingsError
from regraft.paths import REPOSITORY, Paths
from regraft.processes import Process, with_mark
from regraft.registry.tracking import note_registry, tracking_uri
from regraft.services import Service
from regraft.settings import Settings, TrackingSettings
from regraft.state import server, services_file, state_folder
from tests.backbones.tiny import make_image_preset
from tests.project import draw_images, make_project

UP = {"name": "prefect", "healthy": True, "problem": None, "address": "", "version": "", "pid": 1, "log": ""}


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def regraft(*arguments, check=True):
    command = [sys.executable, "-m", "regraft.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def mlflow_service(created=0.0):
    process = Process(os.getpid(), created, services.mark_of("mlflow"))
    return Service("mlflow", "http://127.0.0.1:5999", "127.0.0.1", process)


def test_services_are_read_as_they_were_written(state):
    assert services.load() == {}
    known = {"mlflow": mlflow_service(created=12.25)}
    services.save(known)
    assert services.load() == known
    assert (server("mlflow"), server("prefect")) == ("http://127.0.0.1:5999", None)
    services.save({})
    assert not services_file().exists()
    assert server("mlflow") is None


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"\xff", b"", b"[]", b'{"mlflow": 3}', b'{"mlflow": {}}',
        b'{"mlflow": {"address": "http://a:1", "host": "a", "pid": "12", "created": 1.0, "mark": "m"}}',
        b'{"mlflow": {"address": "http://a:1", "host": "a", "pid": -1, "created": 1.0, "mark": "m"}}',
        b'{"mlflow": {"address": "a", "host": "a", "pid": 12, "created": 1.0, "mark": "m"}}',
    ],
)  # fmt: skip
def test_a_damaged_list_of_services_is_named_until_down_forgets_it(state, tmp_path, content):
    state.mkdir()
    services_file().write_bytes(content)
    for reading in (
        services.load,
        status,
        lambda: up(None, None, None),
        lambda: server("prefect"),
        lambda: tracking_uri(Paths(tmp_path), Settings(name="x")),
    ):
        with pytest.raises(RegraftError, match=r"services\.json is damaged \(.+`regraft down` ends all"):
            reading()
    assert down() == {}
    assert not services_file().exists()
    assert services.load() == {}


def test_the_state_folder_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("REGRAFT_STATE")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "regraft"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    assert state_folder() == tmp_path / "x" / "regraft"


def test_a_project_uses_the_server_that_is_up_even_while_it_is_dead_unless_it_names_another(
    state, tmp_path, monkeypatch
):
    paths = Paths(tmp_path)
    plain, own = Settings(name="x"), Settings(name="x", tracking=TrackingSettings(uri="http://other:5000"))
    assert tracking_uri(paths, plain) == f"sqlite:///{tmp_path}/mlflow.db"
    services.save({"mlflow": mlflow_service()})
    assert not services.load()["mlflow"].process.is_alive
    assert tracking_uri(paths, plain) == "http://127.0.0.1:5999"
    (tmp_path / "mlflow.db").touch()  # models that are registered here stay here
    assert tracking_uri(paths, plain) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(paths, own) == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://third:5000")
    assert tracking_uri(paths, own) == "http://third:5000"


@pytest.mark.parametrize(
    ("host", "called"), [("127.0.0.1", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("box", "box")]
)
def test_clients_call_a_server_by_an_address_they_can_reach(host, called):
    ports = {"prefect": 4200, "mlflow": 5000}
    expected = {"prefect": f"http://{called}:4200/api", "mlflow": f"http://{called}:5000"}
    assert _addresses(host, ports) == expected


def test_a_registry_that_is_no_longer_up_is_not_replaced_by_a_new_one_behind_a_persons_back(state, tmp_path):
    paths, plain = Paths(tmp_path / "project"), Settings(name="x")
    own = f"sqlite:///{paths.root}/mlflow.db"
    services.save({"mlflow": mlflow_service()})
    note_registry(paths, tracking_uri(paths, plain))
    services.save({})  # as `regraft down` does
    with pytest.raises(SettingsError, match=r"last published to the registry at http://127.0.0.1:5999, which nothing"):
        tracking_uri(paths, plain)
    chosen = Settings(name="x", tracking=TrackingSettings(uri="sqlite:///mlflow.db"))
    assert tracking_uri(paths, chosen) == own
    note_registry(paths, own)
    assert tracking_uri(paths, plain) == own


def test_a_worker_that_asks_elsewhere_for_work_may_not_stay_and_a_server_elsewhere_stops_up():
    process = Process(os.getpid(), psutil.Process().create_time(), "mark")
    known = {
        name: Service(name, address, "127.0.0.1", process)
        for name, address in (
            ("mlflow", "http://a:1"),
            ("worker-cpu", "http://a:2/api"),
            ("worker-gpu", "http://a:3/api"),
        )
    }
    kept = _in_place(known, {"prefect": "http://a:3/api", "mlflow": "http://a:1"})
    assert list(kept) == ["mlflow", "worker-gpu"]
    with pytest.raises(RegraftError, match="mlflow is up already, at http://a:1, not at http://a:9"):
        _in_place(known, {"prefect": "http://a:3/api", "mlflow": "http://a:9"})


def test_a_server_with_a_password_is_not_started_for_clients_without_it(state, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:secret")
    done = regraft("up", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set PREFECT_API_AUTH_STRING to the same" in done.stderr
    assert not services_file().exists()


def test_a_taken_port_is_one_error_and_nothing_is_started(state):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = regraft("up", "--prefect-port", str(free_port()), "--mlflow-port", str(port), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: mlflow cannot listen on port {port} of 127.0.0.1")
    assert done.stderr.count("\n") == 1
    assert not services_file().exists()
    assert all(with_mark(services.mark_of(name)) == [] for name in services.NAMES)


def test_without_services_status_and_deploy_say_what_to_do(state, tmp_path):
    done = regraft("status", check=False)
    assert (done.returncode, done.stdout) == (1, "nothing is up; start the services with `regraft up`\n")
    assert regraft("down").stdout == "nothing was up\n"
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    done = regraft("deploy", "--root", str(tmp_path), check=False)
    assert done.returncode == 2
    assert "run `regraft up`" in done.stderr


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("planned", "shown"), [(True, "2026-11-28T03:00:00+01:00"), (False, "none planned yet")])
def test_status_says_when_a_schedule_runs_next(monkeypatch, capsys, planned, shown):
    """A schedule of which the server plans no run never begins one."""
    due = datetime(2026, 11, 28, 3, tzinfo=ZoneInfo("Europe/Berlin"))

    class Server:
        def read_flow(self, _):
            return SimpleNamespace(name="retrain")

        def read_flow_runs(self, *, sort, **_):
            is_next = sort is FlowRunSort.EXPECTED_START_TIME_ASC
            return [SimpleNamespace(expected_start_time=due)] if is_next and planned else []

    nightly = SimpleNamespace(active=True, schedule=CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin"))
    deployment = SimpleNamespace(id=uuid4(), flow_id=uuid4(), name="a", work_pool_name="cpu", schedules=[nightly])
    row = _deployment(cast(Any, Server()), cast(Any, deployment))
    assert row["next_start"] == (due.isoformat() if planned else None)
    monkeypatch.setattr("flows.services.status", lambda: {"services": [UP], "pools": [], "deployments": [row]})
    cli.status()
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--timezone", "Europe/Berlin"], "by hand only"), (["--cron", "0 3 * * *"], "on schedule 0 3 * * * UTC")],
)
def test_deploy_says_whether_there_is_a_schedule_now(tmp_path, monkeypatch, options, said):
    """A zone alone makes none, and takes away the one that was there."""
    made = {"deployments": ["retrain/a", "score/a"], "shared": [], "pool": "cpu"}
    monkeypatch.setattr("flows.deploy.deploy", lambda *_, **__: made)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    told = CliRunner().invoke(cli.app, ["deploy", "--root", str(tmp_path), *options])
    assert told.stdout.splitlines()[0] == f"deployed retrain/a and score/a to the pool cpu; retrains {said}"


@pytest.mark.slow
def test_a_project_is_deployed_and_retrained_by_the_worker_and_nothing_is_left(state, tmp_path):
    prefect_port, mlflow_port = free_port(), free_port()
    draw_images(tmp_path / "images")
    preset = make_image_preset(tmp_path / "preset")
    project = make_project(tmp_path / "project", source=f"folder:{tmp_path / 'images'}", preset=preset)
    try:
        said = regraft("up", "--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)).stdout
        api = f"http://127.0.0.1:{prefect_port}/api"
        assert said.splitlines() == [
            f"export PREFECT_API_URL={api}",
            f"export MLFLOW_TRACKING_URI=http://127.0.0.1:{mlflow_port}",
        ]
        facts = json.loads(regraft("status", "--json").stdout)
        assert [(row["name"], row["healthy"]) for row in facts["services"]] == [(name, True) for name in services.NAMES]
        pids = [row["pid"] for row in facts["services"]]

        project.regraft("deploy", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
        prefect = [sys.executable, "-m", "prefect", "deployment", "run", "retrain/discs", "--watch"]
        for _ in range(2):  # the second has nothing to do
            subprocess.run(
                prefect,
                check=True,
                capture_output=True,
                timeout=600,
                cwd="/",
                env=os.environ | {"PREFECT_API_URL": api},
            )
        assert [model["version"] for model in project.facts("models")["models"]] == [1]
        assert not (project.root / "mlflow.db").exists()

        os.kill(pids[1], 9)
        facts = json.loads(regraft("status", "--json", check=False).stdout)
        assert [row["name"] for row in facts["services"] if not row["healthy"]] == ["mlflow"]
        regraft("up")
        facts = json.loads(regraft("status", "--json").stdout)
        assert [row["pid"] == pid for row, pid in zip(facts["services"], pids, strict=True)] == [
            name != "mlflow" for name in services.NAMES
        ]
        rows = {row["name"]: row for row in facts["deployments"]}
        assert rows["retrain/discs"]["schedules"] == ["0 3 * * * Europe/Berlin"]
        assert rows["retrain/discs"]["next_start"] is not None
        assert rows["retrain/discs"]["last_run"]["state"] == "Completed"
        assert rows["score/discs"]["schedules"] == []
        assert project.facts("models")["models"][0]["version"] == 1
    finally:
        ended = regraft("down").stdout
    assert "prefect" in ended
    assert all(with_mark(services.mark_of(name)) == [] for name in services.NAMES)
    assert json.loads(regraft("status", "--json", check=False).stdout)["services"] == []


class Hook(BaseHTTPRequestHandler):
    told: ClassVar[list[str]] = []

    def do_POST(self):
        self.told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


def wait_until(what, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


@pytest.mark.slow
def test_a_crashed_run_is_begun_again_and_a_failed_one_is_told(state, tmp_path):
    draw_images(tmp_path / "images", per_class=20)
    preset = make_image_preset(tmp_path / "preset")
    project = make_project(tmp_path / "project", source=f"folder:{tmp_path / 'images'}", preset=preset)
    hook = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    prefect_port = free_port()
    api = f"http://127.0.0.1:{prefect_port}/api"

    def runs(state_type):
        asked = {"flows": {"name": {"any_": ["retrain"]}}, "flow_runs": {"state": {"type": {"any_": [state_type]}}}}
        return httpx.post(f"{api}/flow_runs/filter", json=asked, timeout=30).json()

    def begin():
        command = [sys.executable, "-m", "prefect", "deployment", "run", "retrain/discs"]
        environment = os.environ | {"PREFECT_API_URL": api}
        subprocess.run(command, check=True, capture_output=True, timeout=600, cwd="/", env=environment)

    try:
        regraft("up", "--prefect-port", str(prefect_port), "--mlflow-port", str(free_port()))
        project.regraft("deploy", "--notify", f"http://127.0.0.1:{hook.server_address[1]}/")
        begin()
        wait_until((project.paths.logs / "preprocess.log").exists)
        os.kill(int(runs("RUNNING")[0]["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)
        wait_until(lambda: runs("COMPLETED"))  # the watchdog's
        assert len(runs("CRASHED")) == 1
        assert project.facts("models")["models"][0]["version"] == 1
        wait_until(lambda: Hook.told)
        assert "retrain/discs" in Hook.told[0] or "Crashed" in Hook.told[0]

        Hook.told.clear()
        project.paths.params.write_text("no: settings\n", encoding="utf-8")
        begin()
        wait_until(lambda: runs("FAILED"))
        assert "SettingsError" in wait_until(lambda: Hook.told)[0]
        assert len(runs("CRASHED")) == 1
        assert runs("RUNNING") == []
    finally:
        regraft("down")
        hook.shutdown()
