"""One run at a time for a project: a lock that the kernel drops when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from regraft.errors import ResourceError
from regraft.paths import Paths


@contextmanager
def project_lock(paths: Paths) -> Iterator[None]:
    """Hold the project's run lock for the length of the block.

    Raises:
        ResourceError: If another run holds it; the message says which process.
    """
    paths.state.mkdir(parents=True, exist_ok=True)
    with (paths.state / "run.lock").open("a+") as file:
        if not _try_lock(file):
            file.seek(0)
            raise ResourceError(
                f"another run (process {file.read().strip() or 'unknown'}) is at work on {paths.root}; "
                "wait for it to end, or stop it."
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_running(paths: Paths) -> bool:
    """Return whether a run is at work on the project."""
    lock = paths.state / "run.lock"
    if not lock.exists():
        return False
    with lock.open("a+") as file:
        return not _try_lock(file)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
