"""What workers of the pools run: the flow `run-stage`, one stage of a project, and `publish`, its last step.

What a run comes to is left as an artifact of it, which whoever dispatched it reads from the server: a result on the
worker's disk would be out of reach.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.logging.loggers import PrefectLogAdapter

from flows import workspace
from flows.handover import NotInRemote
from flows.pipeline import StageFailed
from flows.workspace import Errand, Parcel
from regraft.errors import DISK_ERRORS, RegraftError, ResourceError
from regraft.state import state_folder

TAG = "regraft-stage"  # of the runs that `flows.pools` makes
RESULT = "regraft-result"  # type of the artifact
LOGGER = "prefect.flow_runs.stage"  # of what the stage says, among all that the run logs


@flow(name="run-stage", persist_result=False)
def run_stage(parcel: Parcel, errand: Errand) -> None:
    """Run one stage on this machine; see `flows.workspace.run_errand`."""
    with _leaving() as leave:
        leave(workspace.run_errand(parcel, errand, _sayer()))


@flow(name="publish", persist_result=False)
def publish(parcel: Parcel, lineage: dict[str, str], fingerprint: str, tracking: str) -> None:
    """Register and judge a project's model from this machine; see `flows.workspace.publish`."""
    with _leaving() as leave:
        leave(workspace.publish(parcel, lineage, fingerprint, tracking, _sayer()))


@contextmanager
def _leaving() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what leaves a result with the run; an error of the block is left with it, too."""
    try:
        with _disk_errors():
            yield _leave
    except RegraftError as error:
        _leave(
            {
                "error": f"on {socket.gethostname()}: {error}",
                "exit_code": error.exit_code,
                "was_killed": isinstance(error, StageFailed) and error.was_killed,
                "missing": list(error.outputs) if isinstance(error, NotInRemote) else [],
            }
        )
        raise


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Say of a disk that gives out which one it is.

    Raises:
        ResourceError: In place of the OSError of a disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ResourceError(
            f"the disk of {state_folder()} gave out: {error}. Make room there, or set REGRAFT_STATE to another."
        ) from error


def _sayer() -> Callable[[str], None]:
    """Return what logs a line of the stage, from any thread."""
    logger = get_run_logger()
    return cast(PrefectLogAdapter, logger).getChild("stage").info


def _leave(result: dict[str, Any]) -> None:
    Artifact(type=RESULT, description="What came of the run, for the run that waits for it", data=result).create()
