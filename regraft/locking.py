"""One run at a time for a project: a lock that the kernel drops when its holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from regraft.errors import ResourceError
from regraft.paths import Paths

_POLL_S = 1.0
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # projects locked around this code


@contextmanager
def project_lock(paths: Paths, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the project's run lock for the length of the block.

    Inside the block it may be entered again: the command line holds it from planning to the end of the flow that it
    calls, and the flow, which may also be started without a command line, takes it too.

    Args:
        paths: Of the project.
        wait_s: How long to wait for another run to end.

    Raises:
        ResourceError: If another run holds it still; the message says which process.
    """
    if paths.root in _held.get():
        yield
        return
    paths.state.mkdir(parents=True, exist_ok=True)
    with exclusive(paths.state / "run.lock", paths.root, wait_s=wait_s):
        token = _held.set(_held.get() | {paths.root})
        try:
            yield
        finally:
            _held.reset(token)


@contextmanager
def exclusive(lock: Path, what: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the file `lock`, which stands for `what`, for the length of the block; it stays behind.

    Raises:
        ResourceError: If another process holds it for longer than `wait_s`; the message says which.
    """
    deadline = time.monotonic() + wait_s
    with lock.open("a+") as file:
        while not _try_lock(file):
            if (left_s := deadline - time.monotonic()) > 0.0:
                time.sleep(min(_POLL_S, left_s))
                continue
            file.seek(0)
            raise ResourceError(
                f"another process ({file.read().strip() or 'unknown'}) is at work on {what}; "
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
