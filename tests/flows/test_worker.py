"""The worker that says what became of its runs when it is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psutil
import pytest

from flows.deploy import deploy
from flows.worker import main
from regraft.errors import TERMINATED, RegistryError, RegraftError, ResourceError
from regraft.paths import REPOSITORY
from regraft.registry.published import check_login
from regraft.registry.tracking import connect, plain_errors
from regraft.settings import load_settings
from tests.flows.quick_graph import make_quick_project
from tests.test_services import free_port

SLEEPER = """
import subprocess, sys
from prefect import flow

@flow
def sleeper(file: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(file, "w").write(str(child.pid))
    child.wait()
"""
DEPLOY = """
import sys
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType
from sleeper import sleeper
RunnerDeployment.from_flow(
    sleeper, name="s", work_pool_name="cpu", entrypoint_type=EntrypointType.MODULE_PATH,
    parameters={"file": sys.argv[1] + "/pid"}, job_variables={"env": {"PYTHONPATH": sys.argv[1]}},
).apply()
"""


def test_a_worker_needs_the_address_of_a_server(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(RegraftError, match="PREFECT_API_URL"):
        main("cpu", [])


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("http://127.0.0.1:1/api", ResourceError, "no Prefect server answers at http://127.0.0.1:1/api"),
        ("127.0.0.1:1/api", RegraftError, "is no address of a Prefect server"),
    ],
)
def test_a_worker_of_a_server_that_is_none_ends_with_one_sentence(monkeypatch, address, kind, said):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(kind, match=said):
        main("cpu", [])


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.end_headers()

    def do_POST(self):
        self.do_GET()

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


@pytest.fixture
def refusing():
    """The address of a server that refuses everybody."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_refused_login_is_said_with_what_to_set_and_not_tried_again(monkeypatch, tmp_path, refusing):
    paths = make_quick_project(tmp_path)
    settings = load_settings(paths.params)
    with pytest.raises(RegraftError, match="refuses the login: set PREFECT_API_AUTH_STRING") as caught:
        deploy(paths, settings, f"{refusing}/api", None, "UTC")
    assert caught.value.exit_code == RegraftError.exit_code
    monkeypatch.setenv("PREFECT_API_URL", f"{refusing}/api")
    with pytest.raises(RegraftError, match="refuses the login: set PREFECT_API_AUTH_STRING"):
        main("cpu", [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing)
    with pytest.raises(RegistryError, match=r"status 401.*MLFLOW_TRACKING_USERNAME"):
        check_login(paths, settings)
    with pytest.raises(RegistryError, match=r"says: .*401.*MLFLOW_TRACKING_USERNAME"), plain_errors(refusing, "asking"):
        connect(paths, settings).search_experiments()


def wait_for(what, process, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.5)


@pytest.mark.slow
def test_a_worker_that_is_stopped_leaves_no_process_and_no_run_that_seems_to_go_on(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}",
    }
    prefect = [sys.executable, "-m", "prefect"]

    def run(*command):
        subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True)

    def answers():
        try:
            return httpx.get(f"{api}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def states():
        found = httpx.post(f"{api}/flow_runs/filter", json={}).json()
        return [run["state_name"] for run in found]

    server = subprocess.Popen([*prefect, "server", "start", "--port", str(port)], env=environment, cwd=tmp_path)
    worker = None
    try:
        wait_for(answers, server)
        run(*prefect, "work-pool", "create", "cpu", "--type", "process")
        run(sys.executable, "-c", DEPLOY, str(tmp_path))
        worker = subprocess.Popen(
            [sys.executable, "-m", "flows.worker", "--pool", "cpu"], env=environment, cwd=tmp_path
        )
        run(*prefect, "deployment", "run", "sleeper/s")
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), worker)
        assert states() == ["Running"]
        all_of_it = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        assert int((tmp_path / "pid").read_text()) in {process.pid for process in all_of_it}
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == TERMINATED
        assert not [process for process in all_of_it if process.is_running()]
        assert states() == ["Crashed"]
    finally:
        for process in filter(None, (worker, server)):
            process.terminate()
            process.wait(timeout=60)
