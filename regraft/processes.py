"""Processes that outlive the command which starts them: begun, known again, and ended with all that they began.

A process id alone is no identity, since the kernel gives it to another process later, so each record holds the time of
the start as well; and what a service begets (the runs of a worker stand in sessions of their own) is known by a mark
in its environment, which is inherited.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "REGRAFT_SERVICE"
GRACE_S = 20.0  # that a process has to end by itself


@dataclass(frozen=True)
class Process:
    """A process as it was started.

    Attributes:
        pid: Its id, and that of its process group and session.
        created: When it was started, in seconds since 1970.
        mark: What it and all that it starts carry in their environment as REGRAFT_SERVICE.
    """

    pid: int
    created: float
    mark: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process runs, not another that has its id now."""
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.created) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def start(command: Sequence[str], *, mark: str, log: Path, folder: Path, environment: Mapping[str, str]) -> Process:
    """Start `command` in a session of its own, with its output appended to `log`.

    Args:
        command: The program and its arguments.
        mark: Names the service; unique on this machine.
        log: File for what it prints.
        folder: Its current folder.
        environment: Variables that it gets besides those of this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # A shell starts commands with `&` deaf to SIGINT, which is inherited; Prefect's worker ends itself by SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**os.environ, **environment, MARK: mark},
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    return Process(child.pid, psutil.Process(child.pid).create_time(), mark)


def with_mark(mark: str) -> list[psutil.Process]:
    """Return the live processes of this user that carry `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            continue  # of another user, or ended in the meantime
    return [process for process in found if process.pid != os.getpid()]


def stop(mark: str) -> int:
    """End all processes that carry `mark`, first by SIGTERM, then by SIGKILL; return how many there were.

    The oldest, which began the others, is told first: a worker can still report of its runs that they were stopped.
    """
    members = sorted(with_mark(mark), key=psutil.Process.create_time)
    told, patience_s = members[:1], GRACE_S / 4
    for _ in range(2):
        _signal(told, signal.SIGTERM)
        psutil.wait_procs(told, timeout=patience_s)
        told, patience_s = with_mark(mark), GRACE_S
    _signal(told, signal.SIGKILL)
    psutil.wait_procs(told, timeout=GRACE_S)
    return len(members)


def _signal(targets: list[psutil.Process], number: signal.Signals) -> None:
    for target in targets:
        try:
            target.send_signal(number)  # which checks that the id is not another process's by now
        except psutil.NoSuchProcess:
            continue
