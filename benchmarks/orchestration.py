"""What orchestration costs on a running server: runs with nothing to do, dispatch to a pool, many runs at once.

python -m benchmarks.orchestration [--nothing 20] [--dispatches 10] [--crowd 20] [--rounds 5]

Starts services with `regraft up` in a state folder of its own, and four small projects whose data come over HTTP: two
with `placement.mode: local`, two with `pools`. Then, one after another:

nothing     runs of a deployment with nothing to do: seconds of the flow's body, as Prefect has them, and what it
            dispatched (must be 0)
dispatches  `regraft run` with a setting changed, so that stages go to a pool: seconds from a run's being made to its
            body's start on the worker
crowd       so many runs triggered at once, for four projects in turn: all must finish, no two of a project at once
rounds      of four runs with nothing to do, one of each project at once: memory and open files of the server and the
            workers after a fifth of the rounds and at the end
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import psutil
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.stand import PATIENCE_S, Stand, stand, started_by
from flows.stage import TAG
from regraft import services

PROJECTS = {"one": "local", "two": "pools", "three": "local", "four": "pools"}
WATCHED = ("prefect", "worker-cpu", "worker-flows")
POLL_S = 0.5


def main() -> None:
    """Print a line for each measurement, and end with an error if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nothing", type=int, default=20)
    parser.add_argument("--dispatches", type=int, default=10)
    parser.add_argument("--crowd", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    failures = []
    with stand() as made:
        wanted = PROJECTS if options.crowd or options.rounds else ("one", "two")
        projects = {name: made.project(name, PROJECTS[name]) for name in wanted}
        with temporary_settings({PREFECT_API_URL: services.load()["prefect"].address}):
            for name in ("one", "two") if options.nothing else ():
                ended = [run for _ in range(options.nothing) for run in _finish(_trigger([name]))]
                before = min(run.start_time for run in ended)
                sent = [run for run in _dispatched(made) if datetime.fromisoformat(run["created"]) > before]
                print(f"nothing to do, mode {PROJECTS[name]}: {_spread(_bodies(ended))}, dispatched {len(sent)}")
                failures += ["a run with nothing to do dispatched something"] if sent else []
            if options.dispatches:
                known = {run["id"] for run in _dispatched(made)}
                for number in itertools.count(1):
                    projects["two"].change("finetune.label_smoothing", number / 1000)
                    projects["two"].run()
                    sent = [run for run in _dispatched(made) if run["id"] not in known]
                    if len(sent) >= options.dispatches:
                        break
                print(f"dispatch to a pool: {_spread(run['estimated_start_time_delta'] for run in sent)}")
            if options.crowd:
                started = time.monotonic()
                crowd = _finish(_trigger(itertools.islice(itertools.cycle(PROJECTS), options.crowd)))
                overlaps = _overlaps(crowd)
                done = sum(run.state.is_completed() for run in crowd)
                seconds = time.monotonic() - started
                print(
                    f"at once: {done} of {options.crowd} completed in {seconds:.0f} s, {overlaps} overlaps in a project"
                )
                failures += _failed(crowd)
                failures += ["runs of a project overlapped"] if overlaps else []
            for number in range(1, options.rounds + 1):
                failures += _failed(_finish(_trigger(PROJECTS)))
                if number in (max(1, options.rounds // 5), options.rounds):
                    print(f"after {number * len(PROJECTS)} runs: {'; '.join(map(_held, WATCHED))}", flush=True)
    if failures:
        raise SystemExit("\n".join(failures))


def _trigger(names: Iterable[str]) -> list[Any]:
    return [run_deployment(f"retrain/{name}", timeout=0, as_subflow=False) for name in names]


def _finish(runs: list[Any]) -> list[Any]:
    """Return `runs` as they ended."""
    deadline = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while True:
            runs = [client.read_flow_run(run.id) for run in runs]
            if all(run.state.is_final() for run in runs):
                return runs
            if time.monotonic() > deadline:
                raise RuntimeError(f"not finished: {[run.state.name for run in runs]}")
            time.sleep(POLL_S)


def _failed(runs: list[Any]) -> list[str]:
    return [f"{run.name}: {run.state.name}, {run.state.message}" for run in runs if not run.state.is_completed()]


def _dispatched(made: Stand) -> list[dict[str, Any]]:
    found = made.prefect("flow_runs/filter", flow_runs={"tags": {"all_": [TAG]}}, sort="START_TIME_DESC")
    return list(found)


def _bodies(runs: list[Any]) -> list[float]:
    return [run.total_run_time.total_seconds() for run in runs]


def _spread(values: Iterable[float]) -> str:
    seconds = sorted(values)
    return f"median {statistics.median(seconds):.2f} s of {len(seconds)}, {seconds[0]:.2f} to {seconds[-1]:.2f}"


def _overlaps(runs: list[Any]) -> int:
    """Return how often a run began before another of its project had ended."""
    count = 0
    for project in {run.deployment_id for run in runs}:
        own = sorted((run for run in runs if run.deployment_id == project), key=lambda run: run.start_time)
        count += sum(later.start_time < earlier.end_time for earlier, later in itertools.pairwise(own))
    return count


def _held(service: str) -> str:
    """Return the memory and the open files of a service, without the runs that it has started."""
    leader = psutil.Process(services.load()[service].process.pid)
    ours = [each for each in started_by(service) if each.pid == leader.pid or each.ppid() == leader.pid]
    ours = [each for each in ours if "engine" not in " ".join(each.cmdline())]
    memory = sum(each.memory_info().rss for each in ours) / 2**20
    return f"{service} {memory:.0f} MiB, {sum(each.num_fds() for each in ours)} open files"


if __name__ == "__main__":
    main()
