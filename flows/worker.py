"""A Prefect worker that takes its runs along when it is told to stop, as `docker stop`, Kubernetes and systemd tell it.

On SIGTERM Prefect's process worker begins no new run and waits for those at work, however long they train; when the
container's time is up the kernel kills all of it, and the server shows the runs as running for ever.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Never

import psutil

from flows.services import record_crashes, worker_name
from regraft.errors import TERMINATED, RegraftError
from regraft.processes import MARK, stop

GRACE_S = 40.0  # for the runs to end and to be reported; then whatever is left is killed
POLL_S = 0.5


class _Stopped(BaseException):
    """SIGTERM or SIGINT came."""


def main(pool: str, options: list[str]) -> int:
    """Work for `pool` until told to stop, and return the worker's exit code.

    What the server takes to be under way here is recorded as crashed before the start and after the end: a worker that
    was killed could not say so.

    Args:
        pool: The work pool; it must exist.
        options: More of `prefect worker start`'s, e.g. ["--limit", "1"].
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise RegraftError("a worker needs PREFECT_API_URL, the address of the Prefect server, e.g. http://HOST:4200/api.")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    mark = f"worker:{pool}:{os.getpid()}"
    record_crashes(address, [pool])
    try:
        # In a session of its own: a signal to the whole group would reach it twice, which it takes for impatience.
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--install-policy", "never"),
                *("--pool", pool, "--name", worker_name(pool), "--no-create-pool-if-not-found", *options),
            ],
            env={**os.environ, MARK: mark},
            start_new_session=True,
        )
        try:
            return worker.wait()
        except _Stopped:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            _end(worker)
            return TERMINATED
    finally:
        stop(mark)
        record_crashes(address, [pool])


def _stop(_number: int, _frame: FrameType | None) -> Never:
    raise _Stopped


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """Have the worker begin nothing new, end its runs, and wait until it has reported that and is gone itself."""
    deadline = time.monotonic() + GRACE_S
    told: set[psutil.Process] = set()
    worker.terminate()
    while worker.poll() is None and time.monotonic() < deadline:
        for run in set(psutil.Process(worker.pid).children()) - told:
            told.add(run)
            with contextlib.suppress(psutil.NoSuchProcess):
                run.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(POLL_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.worker", description=__doc__)
    parser.add_argument("--pool", required=True, help="the work pool; all other options are those of Prefect's worker")
    known, others = parser.parse_known_args()
    sys.exit(main(known.pool, others))
