"""Run one stage as a process of its own: `python -P -m tasks STAGE` in a project's folder, which is what DVC calls.

The process dies with whoever started it, refuses to run twice at once, keeps half-made work in `.scratch`, and ends
with an exit code that says whether trying again can help (see `regraft.errors`).
"""

import ctypes
import faulthandler
import fcntl
import importlib
import inspect
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType

from regraft.errors import DISK_ERRORS, RegraftError, ResourceError
from regraft.fingerprint import moved_inputs, require_current_graph, stage_fingerprint
from regraft.paths import Paths
from regraft.settings import Settings, load_settings
from regraft.workers import this_worker

PR_SET_PDEATHSIG = 1  # linux/prctl.h

log = logging.getLogger("tasks")


def main(stage: str) -> int:
    """Run `stage` in the project of the current folder and return the exit code of the process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    _write_output_to(os.environ.get("REGRAFT_LOG"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    sys.excepthook = _say_before_traceback
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if timeout_s := int(os.environ.get("REGRAFT_TIMEOUT_S", "0")):
        faulthandler.dump_traceback_later(timeout_s, exit=True)
    try:
        paths = Paths(Path.cwd())
        settings = load_settings(paths.params)
        require_current_graph(paths, settings, stage)
        fingerprint = stage_fingerprint(paths, stage)
        _require_planned_inputs(paths, settings, stage)
        # Workers that train one model may share a disk, so each has a scratch folder of its own.
        worker = this_worker().number
        work = f"worker{worker}-{stage}" if worker else stage
        scratch = paths.scratch_of(work, fingerprint)
        lock = _take_over(scratch, work)
        os.environ["REGRAFT_SCRATCH"] = str(scratch)
        run = importlib.import_module(f"tasks.{stage}").run
        known = {"paths": paths, **{name: getattr(settings, name) for name in type(settings).model_fields}}
        run(**{name: known[name] for name in inspect.signature(run).parameters})
        os.close(lock)
        if stage_fingerprint(paths, stage) != fingerprint:
            # DVC reads settings and inputs anew when it records the result, and would record these as having made it.
            raise ResourceError("params.yaml or what the stage reads changed while it ran; run again.")
        _require_planned_inputs(paths, settings, stage)
    except RegraftError as error:
        log.error("error: %s", error)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        log.error("error: the disk gave out: %s. Make room or check the disk; then run again.", error)
        return ResourceError.exit_code
    return 0


def _say_before_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say of an error nobody foresaw that it is one; what follows goes to the log, and to people only if it must."""
    log.error("error: unexpected %s", kind.__name__)
    sys.__excepthook__(kind, error, traceback)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: no trainer may outlive the run that records it."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("REGRAFT_PARENT_PID")
    if parent and os.getppid() != int(parent):  # it died before the call above
        sys.exit(f"the process that started this stage (pid {parent}) is gone")


def _write_output_to(path: str | None) -> None:
    """Send all that this process prints, TensorFlow's C++ included, to the file the flow reads."""
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _require_planned_inputs(paths: Paths, settings: Settings, stage: str) -> None:
    """Check that code and source are still as planning saw them: its fingerprints are what DVC records.

    Raises:
        ResourceError: If they are not.
    """
    if moved := moved_inputs(paths, settings, stage):
        raise ResourceError(f"{' and '.join(moved)} changed after this run was planned; run again.")


def _take_over(scratch: Path, stage: str) -> int:
    """Lock `scratch`, drop the scratch folders of other attempts at `stage`, and return the lock's descriptor.

    Raises:
        ResourceError: If another process holds the lock: the same work is being done already.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResourceError(
            f"another process is running stage {stage} on the same inputs ({scratch}); wait for it."
        ) from None
    for other in scratch.parent.glob(f"{stage}-*"):
        if other != scratch:
            shutil.rmtree(other, ignore_errors=True)
    return descriptor


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
