"""A Prefect worker that leaves nothing behind when it is told to stop, as `docker stop` and systemd tell it.

On SIGTERM Prefect's process worker ends within seconds, and its runs with it, but tells the server nothing of them:
they would be shown as running for ever.
"""

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Never

from flows.services import record_crashes, require_pool, worker_name
from regraft.errors import TERMINATED, RegraftError
from regraft.processes import MARK, stop

STOPS = (signal.SIGTERM, signal.SIGINT)


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
        raise RegraftError(
            "a worker needs PREFECT_API_URL, the address of the Prefect server, e.g. http://HOST:4200/api."
        )
    require_pool(address, pool)
    mark = f"worker:{pool}:{os.getpid()}"
    for number in STOPS:
        signal.signal(number, _stop)
    try:
        record_crashes(address, [pool])
        # In a session of its own: a signal to the whole group would reach it twice, which it takes for impatience.
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--install-policy", "never"),
                *("--pool", pool, "--name", worker_name(pool), "--no-create-pool-if-not-found", *options),
            ],
            env={**os.environ, MARK: mark},
            start_new_session=True,
        )
        return worker.wait()
    except _Stopped:
        return TERMINATED
    finally:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        stop(mark)
        record_crashes(address, [pool])


def _stop(_number: int, _frame: FrameType | None) -> Never:
    raise _Stopped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.worker", description=__doc__)
    parser.add_argument("--pool", required=True, help="the work pool; all other options are those of Prefect's worker")
    known, others = parser.parse_known_args()
    try:
        sys.exit(main(known.pool, others))
    except RegraftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
