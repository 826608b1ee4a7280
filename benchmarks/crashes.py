"""Whatever dies in a run on pools, the next one finishes it, with the same result, and nothing runs twice or is left.

python -m benchmarks.crashes [--points trainer,flow,...] [--times 5]

Starts services with `regraft up` in a state folder of its own, and a small project with `placement.mode: pools` whose
data come over HTTP. Each time at each point a new seed makes another model; `regraft run` is begun, a process is
killed (SIGKILL) at the point, what died of the services is started again (`regraft up`), and `regraft run` is called
until it succeeds. Then the stages are run again without interruption (`--force`), and the hashes of what a consumer
gets are compared. Printed: attempts that were needed, whether the results are equal, trainers that ran at the same time
(there must never be two), and processes of stages left over without a run.
"""

import argparse
import json
import os
import subprocess
import sys
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
from benchmarks.stand import PATIENCE_S, Stand, stand
from flows.automations import SUSPICION_S
from flows.watchdog import SILENCE_S
from regraft import services
from regraft.processes import with_mark

NAME = "crashes"
RELEASED = ("models/model", "models/serving", "reports/metrics.json", "reports/predictions.csv")
STAGE = "finetune"
POLL_S, MOST_ATTEMPTS = 0.1, 5


@dataclass
class UnderWay:
    """A run under way, of a project on a stand."""

    stand: Stand
    project: Project
    run: subprocess.Popen[str]

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

    def leader(self, name: str) -> psutil.Process:
        """Return the process that leads a service."""
        return psutil.Process(services.load()[name].process.pid)


def trainer(now: UnderWay) -> list[psutil.Process]:
    """The stage's own process."""
    return now.wait_for(now.training)


def flow(now: UnderWay) -> list[psutil.Process]:
    """The run of the stage on the worker's machine, which started the trainer."""
    above = now.wait_for(now.training)[0].parent()
    return [above] if above else []


def worker(now: UnderWay) -> list[psutil.Process]:
    """The worker that took the stage."""
    now.wait_for(now.training)
    return [now.leader("worker-gpu")]


def host(now: UnderWay) -> list[psutil.Process]:
    """Everything on the worker's machine: worker, run and trainer at once."""
    found = now.wait_for(now.training)
    return [now.leader("worker-gpu"), *with_mark(services.mark_of("worker-gpu")), *found]


def parent(now: UnderWay) -> list[psutil.Process]:
    """The run that dispatched the stage and waits for it."""
    now.wait_for(now.training)
    return [psutil.Process(now.run.pid)]


def parent_and_host(now: UnderWay) -> list[psutil.Process]:
    """The waiting run, and everything on the worker's machine."""
    return [*host(now), psutil.Process(now.run.pid)]


def prefect(now: UnderWay) -> list[psutil.Process]:
    """The Prefect server."""
    now.wait_for(now.training)
    return with_mark(services.mark_of("prefect"))


def prefect_for_long(now: UnderWay) -> list[psutil.Process]:
    """The Prefect server, which then is away for longer than a run may be silent."""
    return prefect(now)


def pushing(now: UnderWay) -> list[psutil.Process]:
    """The run of the stage, after the trainer has ended and before what it made is pushed and reported."""
    found = now.wait_for(now.training)
    above = found[0].parent()
    psutil.wait_procs(found, timeout=PATIENCE_S)
    return [above] if above else []


def unrecorded(now: UnderWay) -> list[psutil.Process]:
    """The waiting run, when the worker has pushed and reported and it has not yet recorded that."""
    now.wait_for(now.training)
    of_stage = {"name": {"any_": [f"{NAME} {STAGE}"]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    begun = len(now.stand.prefect("flow_runs/filter", flow_runs=of_stage))
    now.wait_for(
        lambda: [psutil.Process()] if len(now.stand.prefect("flow_runs/filter", flow_runs=of_stage)) > begun else []
    )
    return [psutil.Process(now.run.pid)]


def registering(now: UnderWay) -> list[psutil.Process]:
    """The run that publishes, after it has made a version and before the aliases are moved."""
    uri = services.load()["mlflow"].address

    def versions() -> int:
        asked = httpx.get(f"{uri}/api/2.0/mlflow/model-versions/search", params={"filter": f"name = '{NAME}'"})
        return len(asked.json().get("model_versions", []))

    before = versions()
    now.wait_for(lambda: [psutil.Process()] if versions() > before else [])
    return [each for each in _of_stand() if any(word.endswith("engine") for word in _words(each))]


def mlflow(now: UnderWay) -> list[psutil.Process]:
    """The MLflow server, while the stage before publishing runs; so it is missing when it is needed."""
    now.wait_for(lambda: [each for each in now.trainers() if "evaluate" in _words(each)])
    return with_mark(services.mark_of("mlflow"))


POINTS = (
    *(trainer, flow, worker, host, parent, parent_and_host),
    *(prefect, prefect_for_long, pushing, unrecorded, registering, mlflow),
)


def main() -> None:
    """Print a line for each kill, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(point.__name__ for point in POINTS))
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    wanted = arguments.points.split(",")
    finished = equal = tried = left_over = 0
    os.environ["REGRAFT_CHECKPOINT_S"] = "0"  # checkpoints as often as there are epochs
    with stand() as made, _two_at_once() as doubles:
        project = made.project(NAME, "pools")
        for number, point in enumerate(
            point for point in POINTS if point.__name__ in wanted for _ in range(arguments.times)
        ):
            attempts, same, left, seconds = _try(made, project, point, 1 + number)
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


def _try(
    made: Stand, project: Project, point: Callable[[UnderWay], list[psutil.Process]], number: int
) -> tuple[int, bool, int, float]:
    """Return (calls of `regraft run` until one succeeded, whether the result is equal, orphans, seconds)."""
    started = time.monotonic()
    project.change("seed", 1000 + number)  # a model that nobody has made yet
    command = [sys.executable, "-P", "-m", "regraft.cli", "run", "--root", str(project.root)]
    now = UnderWay(
        made, project, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    )
    for victim in point(now):
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    time.sleep(SUSPICION_S + SILENCE_S + 15.0 if point is prefect_for_long else 3.0)
    left = sum(1 for each in now.trainers() if each.ppid() == 1)
    attempts = 0
    made.regraft("up")
    if now.run.wait(timeout=PATIENCE_S) == 0:  # it survived
        attempts = 1
    while attempts == 0 or not _is_done(made, project):
        attempts += 1
        if attempts > MOST_ATTEMPTS:
            return 0, False, left, time.monotonic() - started
        made.regraft("up")
        made.regraft("run", "--root", str(project.root), check=False)
    resumed = _released(project)
    made.regraft("run", "--root", str(project.root), "--force", STAGE, "--force", "evaluate")
    return attempts, resumed == _released(project), left, time.monotonic() - started


def _is_done(made: Stand, project: Project) -> bool:
    planned = json.loads(made.regraft("plan", "--root", str(project.root), "--json").stdout)
    ended = made.regraft("run", "--root", str(project.root), "--json", check=False)
    return not any(each["stale"] for each in planned["stages"]) and ended.returncode == 0


def _released(project: Project) -> dict[str, str]:
    lock = YAML(typ="safe").load((project.root / "dvc.lock").read_text("utf-8"))
    outs = {out["path"]: str(out["md5"]) for stage in lock["stages"].values() for out in stage["outs"]}
    return {path: outs[path] for path in RELEASED}


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


if __name__ == "__main__":
    main()
