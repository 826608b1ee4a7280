"""Fine-tuning killed at random moments and run again: is the end the same to the byte, and how much work is lost?

python -m benchmarks.kills SOURCE [--kills 30] [--strategy lp_ft] [--checkpoint-s 0] [--evaluations 3]

A project on SOURCE is run once without interruption. Then the process of its finetune stage is started again as DVC
starts it, killed (SIGKILL) at a moment drawn evenly from the time after the probe is solved, pilots included, and
started once more. What it leaves is compared with the first run's. After the first few kills the evaluate stage runs
too, and metrics.json is compared. Lost work is what was done since the latest write into scratch before a kill. Give
more seconds between checkpoints than 0 (one at each step) to see what that comes to; the last line has the default.
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
    parser.add_argument(
        "--evaluations", type=int, default=3, help="after so many kills metrics.json is compared as well"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    often = {"REGRAFT_CHECKPOINT_S": arguments.checkpoint_s}
    with temporary_project(arguments.source) as project:
        project.change("finetune.strategy", arguments.strategy)
        project.change("embed.image_size_px", arguments.image_size_px)
        project.change("finetune.epochs", arguments.epochs)
        project.run()
        expected = _digests(project, (*COMPARED, METRICS))
        undisturbed = _attempt(project, often)
        print(f"checkpoints every {arguments.checkpoint_s} s; undisturbed: {_cost(project)}", flush=True)
        same = [_digests(project, COMPARED) == expected[: len(COMPARED)]]
        lost: list[float] = []
        while len(lost) < arguments.kills:
            shutil.rmtree(project.root / ".scratch", ignore_errors=True)
            attempt = _attempt(project, often, kill_after_s=moments.uniform(0.0, undisturbed.training_s))
            if not attempt.killed:
                continue  # it was done before its moment came
            _attempt(project, often)
            compared: tuple[str, ...] = COMPARED
            if len(lost) < arguments.evaluations:
                subprocess.run(_stage("evaluate"), cwd=project.root, stderr=subprocess.DEVNULL, check=True)
                compared = (*COMPARED, METRICS)
            found = _digests(project, compared)
            differing = [name for name, one, two in zip(compared, found, expected, strict=False) if one != two]
            same.append(not differing)
            lost.append(attempt.lost_s)
            ended = f"DIFFERENT: {', '.join(differing)}" if differing else f"{len(compared)} files the same"
            print(
                f"kill {len(lost)} at {attempt.training_s:.1f} s ({attempt.last_line}): {attempt.lost_s:.1f} s lost, "
                f"{ended}",
                flush=True,
            )
    print(f"{sum(same[1:])} of {len(lost)} ended in the same bytes; the most work lost: {max(lost):.1f} s")
    if not all(same):
        sys.exit("not all ended in the same bytes")


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


def _digests(project: Project, names: tuple[str, ...]) -> list[str]:
    return [hashlib.sha256((project.root / name).read_bytes()).hexdigest() for name in names]


def _cost(project: Project) -> str:
    """Return what checkpoints took of the time of the final run."""
    times = json.loads(Path(project.root / "reports" / "training_time.json").read_text("utf-8"))
    spent, whole = times["checkpoints_seconds"], times["finetune_seconds"]
    return f"{times['checkpoints']} checkpoints took {spent:.1f} of {whole:.1f} s of training ({spent / whole:.1%})"


if __name__ == "__main__":
    main()
