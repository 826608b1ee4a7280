"""Fine-tuning killed at random moments and run again: is the end the same to the byte, and how much work is lost?

python -m benchmarks.kills SOURCE [--kills 30] [--kills-a-run 3] [--strategy lp_ft] [--checkpoint-s 0]

A project on SOURCE is run once without interruption. Then its finetune stage is started again and again as DVC starts
it, and killed (SIGKILL) a random time after the probe is solved, in pilots or after; after some kills it may finish,
and what it leaves is compared with the first run's; after the first few times the evaluate stage runs too, and
metrics.json is compared. Lost work is what was done since the latest write into scratch before a kill. With 0 seconds
between checkpoints each step has one; with 30, the default of `regraft run`, see what the two may cost.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.projects import Project, temporary_project
from flows.pipeline import ALLOCATOR

COMPARED = ("models/model/model.weights.h5", "reports/training.json", "reports/selection.json")
METRICS = "reports/metrics.json"
STARTED = "the probe is solved"


def main() -> None:
    """Print a line for each kill, how many ended the same, the most work lost, and what checkpoints cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--strategy", default="lp_ft")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size-px", type=int, default=64)
    parser.add_argument("--checkpoint-s", default="0", help="REGRAFT_CHECKPOINT_S of the killed runs")
    parser.add_argument("--kills-a-run", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=2, help="metrics.json is compared after so many runs")
    parser.add_argument("--backbone", default="efficientnet_lite0_imagenet")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with temporary_project(arguments.source) as project:
        project.change("backbone.name", arguments.backbone)
        project.change("finetune.strategy", arguments.strategy)
        project.change("embed.image_size_px", arguments.image_size_px)
        project.change("finetune.epochs", arguments.epochs)
        project.run()
        trials = _Trials(project, {"REGRAFT_CHECKPOINT_S": arguments.checkpoint_s}, random.Random(arguments.seed))
        while len(trials.lost_s) < arguments.kills:
            trials.run(arguments.kills_a_run, evaluate=trials.runs < arguments.evaluations)
    print(
        f"{trials.same} of {trials.runs} runs with {len(trials.lost_s)} kills ended in the same bytes; "
        f"the most work lost: {max(trials.lost_s):.1f} s"
    )
    if trials.same < trials.runs:
        sys.exit("not all ended in the same bytes")


class _Trials:
    """Runs of the finetune stage of a project that has run once."""

    def __init__(self, project: Project, env: dict[str, str], moments: random.Random) -> None:
        self._project, self._env, self._moments = project, env, moments
        self._expected = _digests(project)
        shutil.rmtree(project.root / ".scratch", ignore_errors=True)
        self._undisturbed_s = _attempt(project, env).training_s
        print(f"{env}, undisturbed: {_cost(project)}", flush=True)
        self.runs, self.same = 0, 0
        self.lost_s: list[float] = []

    def run(self, kills: int, *, evaluate: bool) -> None:
        """Kill it at most so many times, let it finish, compare, and print a line for each kill and one for the end."""
        shutil.rmtree(self._project.root / ".scratch", ignore_errors=True)
        for _ in range(kills):
            moment_s = self._moments.uniform(0.0, 2 * self._undisturbed_s / (kills + 1))
            attempt = _attempt(self._project, self._env, moment_s)
            if not attempt.killed:  # it was done before its moment came
                break
            self.lost_s.append(attempt.lost_s)
            print(
                f"kill {len(self.lost_s)} after {attempt.training_s:.1f} s, {attempt.lost_s:.1f} s lost: "
                f"{attempt.last_line}",
                flush=True,
            )
        else:
            _attempt(self._project, self._env)
        if evaluate:
            subprocess.run(_stage("evaluate"), cwd=self._project.root, stderr=subprocess.DEVNULL, check=True)
        found = _digests(self._project)
        compared = [name for name in found if evaluate or name != METRICS]
        differing = [name for name in compared if found[name] != self._expected[name]]
        self.runs, self.same = self.runs + 1, self.same + (not differing)
        print(f"run {self.runs}: {f'DIFFERENT: {differing}' if differing else f'the same: {compared}'}", flush=True)


@dataclass(frozen=True)
class Attempt:
    """How a process of the finetune stage ended.

    Attributes:
        killed: Whether it was killed, or ended by itself.
        training_s: From the solved probe to its end.
        lost_s: From the latest write into scratch, or the solved probe, to its end.
        last_line: The last thing it said.
    """

    killed: bool
    training_s: float
    lost_s: float
    last_line: str


def _attempt(project: Project, env: dict[str, str], kill_after_s: float | None = None) -> Attempt:
    """Run the finetune stage, and kill it so many seconds after the probe is solved."""
    log = project.root / "attempt.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            _stage("finetune"), cwd=project.root, stderr=stream, env=os.environ | ALLOCATOR | env
        )
    started = None
    while process.poll() is None:
        time.sleep(0.02)
        if started is None and STARTED in log.read_text("utf-8", "replace"):
            started = time.time()
        if started and kill_after_s is not None and time.time() - started >= kill_after_s:
            process.send_signal(signal.SIGKILL)
            process.wait()
    ended = time.time()
    lines = log.read_text("utf-8", "replace").splitlines()
    if process.returncode not in (0, -signal.SIGKILL) or started is None:
        sys.exit("\n".join(["the finetune stage failed:", *lines[-20:]]))
    writes = [file.stat().st_mtime for file in (project.root / ".scratch").glob("finetune-*/*.[nj][ps]*[zn]")]
    return Attempt(
        process.returncode != 0, ended - started, ended - max([started, *writes]), lines[-1] if lines else ""
    )


def _stage(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tasks", name]


def _digests(project: Project) -> dict[str, str]:
    return {name: hashlib.sha256((project.root / name).read_bytes()).hexdigest() for name in (*COMPARED, METRICS)}


def _cost(project: Project) -> str:
    """Return what checkpoints took of the time of the final run."""
    times = json.loads(Path(project.root / "reports" / "training_time.json").read_text("utf-8"))
    spent, whole = times["checkpoints_seconds"], times["finetune_seconds"]
    return f"{times['checkpoints']} checkpoints took {spent:.1f} of {whole:.1f} s of training ({spent / whole:.1%})"


if __name__ == "__main__":
    main()
