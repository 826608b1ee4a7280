"""Whatever dies in a run on pools, the next one finishes it, with the same result, and nothing runs twice or is left.

python -m benchmarks.crashes [--points trainer,flow,...] [--times 5]

Starts services with `regraft up` in a state folder of its own, and a small project with `placement.mode: pools` whose
data come over HTTP. Each time at each point a new setting makes the model stale; `regraft run` is begun, a process is
killed (SIGKILL) at the point, what died of the services is started again (`regraft up`), and `regraft run` is called
until it succeeds. Then the stages are run again without interruption (`--force`), and the hashes of what a consumer
gets are compared. Printed: attempts that were needed, whether the results are equal, trainers that ran at the same time
(there must never be two), and processes of stages left over without a run.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from ruamel.yaml import YAML

from benchmarks.projects import Project
from regraft import services
from regraft.processes import with_mark
from tests.file_server import FileServer
from tests.project import draw_images

NAME = "crashes"
SETTINGS = {
    "backbone.name": "cnn_small",
    "backbone.mode": "scratch",
    "embed.image_size_px": 48,
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "finetune.learning_rate": 0.001,
    "evaluate.bootstrap_samples": 100,
    "placement.mode": "pools",
}
RELEASED = ("models/model", "models/serving", "reports/metrics.json", "reports/predictions.csv")
STAGE = "finetune"
PATIENCE_S, POLL_S, MOST_ATTEMPTS = 900.0, 0.1, 5


@dataclass
class Stand:
    """Where it is tried: services, project, and the run under way."""

    project: Project
    run: subprocess.Popen[str]

    def regraft(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-P", "-m", "regraft.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=PATIENCE_S)

    def trainers(self) -> list[psutil.Process]:
        """Return the processes of stages at work, of this stand alone."""
        return [process for process in _of_stand() if "tasks" in _words(process)]

    def wait_for(self, what: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
        """Return what `what` finds as soon as that is anything."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := what():
                return found
            if self.run.poll() is not None:
                raise RuntimeError(f"the run ended before anything was killed:\n{self.run.communicate()[0]}")
            time.sleep(POLL_S)
        raise RuntimeError("the point was not reached")

    def training(self) -> list[psutil.Process]:
        """Return the trainer once it has written a checkpoint."""
        found = [process for process in self.trainers() if STAGE in _words(process)]
        scratch = [path for process in found for path in (Path(process.cwd()) / ".scratch").glob(f"{STAGE}-*/*")]
        return found if len(scratch) > 1 else []

    def api(self, path: str, **body: object) -> list[dict[str, object]]:
        """Ask the Prefect server."""
        address = services.load()["prefect"].address
        return list(httpx.post(f"{address}/{path}", json=body, timeout=30.0).json())

    def leader(self, name: str) -> psutil.Process:
        """Return the process that leads a service."""
        return psutil.Process(services.load()[name].process.pid)


def trainer(stand: Stand) -> list[psutil.Process]:
    """The stage's own process."""
    return stand.wait_for(stand.training)


def flow(stand: Stand) -> list[psutil.Process]:
    """The run of the stage on the worker's machine, which started the trainer."""
    above = stand.wait_for(stand.training)[0].parent()
    return [above] if above else []


def worker(stand: Stand) -> list[psutil.Process]:
    """The worker that took the stage."""
    stand.wait_for(stand.training)
    return [stand.leader("worker-gpu")]


def host(stand: Stand) -> list[psutil.Process]:
    """Everything on the worker's machine: worker, run and trainer at once."""
    found = stand.wait_for(stand.training)
    return [stand.leader("worker-gpu"), *with_mark(services.mark_of("worker-gpu")), *found]


def parent(stand: Stand) -> list[psutil.Process]:
    """The run that dispatched the stage and waits for it."""
    stand.wait_for(stand.training)
    return [psutil.Process(stand.run.pid)]


def parent_and_host(stand: Stand) -> list[psutil.Process]:
    """The waiting run, and everything on the worker's machine."""
    return [*host(stand), psutil.Process(stand.run.pid)]


def prefect(stand: Stand) -> list[psutil.Process]:
    """The Prefect server."""
    stand.wait_for(stand.training)
    return with_mark(services.mark_of("prefect"))


def pushing(stand: Stand) -> list[psutil.Process]:
    """The run of the stage, after the trainer has ended and before what it made is pushed and reported."""
    found = stand.wait_for(stand.training)
    above = found[0].parent()
    psutil.wait_procs(found, timeout=PATIENCE_S)
    return [above] if above else []


def unrecorded(stand: Stand) -> list[psutil.Process]:
    """The waiting run, when the worker has pushed and reported and it has not yet recorded that."""
    stand.wait_for(stand.training)
    of_stage = {"name": {"any_": [f"{NAME} {STAGE}"]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    begun = len(stand.api("flow_runs/filter", flow_runs=of_stage))
    stand.wait_for(lambda: [psutil.Process()] if len(stand.api("flow_runs/filter", flow_runs=of_stage)) > begun else [])
    return [psutil.Process(stand.run.pid)]


def registering(stand: Stand) -> list[psutil.Process]:
    """The run that publishes, after it has made a version and before the aliases are moved."""
    uri = services.load()["mlflow"].address

    def versions() -> int:
        asked = httpx.get(f"{uri}/api/2.0/mlflow/model-versions/search", params={"filter": f"name = '{NAME}'"})
        return len(asked.json().get("model_versions", []))

    before = versions()
    stand.wait_for(lambda: [psutil.Process()] if versions() > before else [])
    return [each for each in _of_stand() if any(word.endswith("engine") for word in _words(each))]


def mlflow(stand: Stand) -> list[psutil.Process]:
    """The MLflow server, while the stage before publishing runs; so it is missing when it is needed."""
    stand.wait_for(lambda: [each for each in stand.trainers() if "evaluate" in _words(each)])
    return with_mark(services.mark_of("mlflow"))


POINTS = (trainer, flow, worker, host, parent, parent_and_host, prefect, pushing, unrecorded, registering, mlflow)


def main() -> None:
    """Print a line for each kill, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(point.__name__ for point in POINTS))
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    wanted = arguments.points.split(",")
    finished = equal = tried = left_over = 0
    with _project() as project, _two_at_once() as doubles:
        for number, point in enumerate(
            point for point in POINTS if point.__name__ in wanted for _ in range(arguments.times)
        ):
            attempts, same, left, seconds = _try(project, point, 1 + number)
            tried, finished, equal, left_over = tried + 1, finished + (attempts > 0), equal + same, left_over + left
            print(
                f"{point.__name__:<16} attempts {attempts}, equal {same}, left over {left}, {seconds:.0f} s", flush=True
            )
    print(
        f"{finished} of {tried} runs finished after the kill, {equal} equal to an uninterrupted one; processes left "
        f"over {left_over}; two trainers of one stage at once {len(doubles)} times"
    )
    if not finished == equal == tried or left_over or doubles:
        raise SystemExit(1)


def _try(project: Project, point: Callable[[Stand], list[psutil.Process]], number: int) -> tuple[int, bool, int, float]:
    """Return (calls of `regraft run` until one succeeded, whether the result is equal, orphans, seconds)."""
    started = time.monotonic()
    project.change("finetune.label_smoothing", number / 1000)  # what nobody has made yet
    command = [sys.executable, "-P", "-m", "regraft.cli", "run", "--root", str(project.root)]
    stand = Stand(project, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for victim in point(stand):
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    time.sleep(3.0)
    left = sum(1 for each in stand.trainers() if each.ppid() == 1)
    attempts = 0
    stand.regraft("up")
    if stand.run.wait(timeout=PATIENCE_S) == 0:  # it survived
        attempts = 1
    while attempts == 0 or not _is_done(stand):
        attempts += 1
        if attempts > MOST_ATTEMPTS:
            return 0, False, left, time.monotonic() - started
        stand.regraft("up")
        stand.regraft("run", "--root", str(project.root), check=False)
    resumed = _released(project)
    stand.regraft("run", "--root", str(project.root), "--force", STAGE, "--force", "evaluate")
    return attempts, resumed == _released(project), left, time.monotonic() - started


def _is_done(stand: Stand) -> bool:
    planned = json.loads(stand.regraft("plan", "--root", str(stand.project.root), "--json").stdout)
    ended = stand.regraft("run", "--root", str(stand.project.root), "--json", check=False)
    return not any(each["stale"] for each in planned["stages"]) and ended.returncode == 0


def _released(project: Project) -> dict[str, str]:
    lock = YAML(typ="safe").load((project.root / "dvc.lock").read_text("utf-8"))
    outs = {out["path"]: str(out["md5"]) for stage in lock["stages"].values() for out in stage["outs"]}
    return {path: outs[path] for path in RELEASED}


@contextmanager
def _project() -> Iterator[Project]:
    """Yield a finished project on services of its own; all of it is stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-crashes-"))
    os.environ["REGRAFT_STATE"] = str(folder / "state")
    os.environ["REGRAFT_CHECKPOINT_S"] = "0"
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    draw_images(folder / "images")
    shutil.make_archive(str(folder / "www" / "images"), "zip", folder / "images")
    server = FileServer()
    server.files["/images.zip"] = (folder / "www" / "images.zip").read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    project = Project(folder / "project")

    def call(*arguments: str) -> None:
        subprocess.run(arguments, check=True, capture_output=True, timeout=PATIENCE_S, cwd=folder)

    regraft = (sys.executable, "-P", "-m", "regraft.cli")
    try:
        call(*regraft, "up", "--prefect-port", str(_free_port()), "--mlflow-port", str(_free_port()))
        source = f"folder:{server.url('/images.zip')}"
        call(*regraft, "init", str(project.root), "--source", source, "--kind", "image", "--name", NAME)
        for setting, value in SETTINGS.items():
            project.change(setting, value)
        call(
            sys.executable,
            "-m",
            "dvc",
            "--cd",
            str(project.root),
            "remote",
            "add",
            "-d",
            "store",
            str(folder / "store"),
        )
        call(*regraft, "deploy", "--root", str(project.root))
        call(*regraft, "run", "--root", str(project.root))
        yield project
    finally:
        call(*regraft, "down")
        server.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _two_at_once() -> Iterator[list[str]]:
    """Yield a list that grows by a line for each time that a stage has two processes at once."""
    doubles: list[str] = []
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(0.5):
            running = [each.cmdline()[-1] for each in _of_stand() if "tasks" in _words(each)]
            doubles.extend(name for name in set(running) if running.count(name) > 1)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield doubles
    finally:
        finished.set()
        thread.join()


def _of_stand() -> list[psutil.Process]:
    """Return the processes that carry a mark of this state folder's services, other than their leaders."""
    return [process for name in services.WORKERS for process in with_mark(services.mark_of(name))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
