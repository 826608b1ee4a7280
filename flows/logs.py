"""What the runs of a project said, from wherever it is kept: the Prefect server, or the project's own log files."""

from collections.abc import Iterator

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.refusals import explained
from flows.retrain import retrain
from regraft.errors import RegraftError
from regraft.paths import Paths
from regraft.quiet import NOISE

PAGE = 200  # the server gives no more lines at a time


def of_server(paths: Paths, address: str, stage: str | None) -> Iterator[str]:
    """Yield the lines of the last run of the project that the Prefect server at `address` knows.

    Args:
        paths: The project.
        address: Of the server's API.
        stage: Only what this stage said; None: everything.

    Raises:
        RegraftError: If the server knows no run of this project.
        ResourceError: If it does not answer.
    """
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        try:
            run = _last_run(client, paths)
            state = run.state_name or "not begun"
            yield f"run {run.name} ({run.id}) of {run.expected_start_time:%Y-%m-%d %H:%M:%S %Z}: {state}"
            names = {each.id: each.name for each in client.read_task_runs(flow_run_filter=_by_id(run))}
            for line in _lines(client, run):
                said_by = names.get(line.task_run_id, "retrain") if line.task_run_id else "retrain"
                if stage in (None, said_by):
                    yield f"{line.timestamp:%H:%M:%S} {said_by:<10} {line.message}"
        except httpx.HTTPError as error:
            raise explained(error, address, "See `regraft status`.") from error


def of_project(paths: Paths, stage: str | None) -> Iterator[str]:
    """Yield the lines that stages of the project left on this machine when each ran last.

    Raises:
        RegraftError: If there are none.
    """
    files = sorted(paths.logs.glob("*.log"), key=lambda file: file.stat().st_mtime)
    chosen = [file for file in files if stage in (None, file.stem)]
    if not chosen:
        known = ", ".join(file.stem for file in files) or "none"
        raise RegraftError(f"{paths.logs} has no log{f' of stage {stage}' if stage else ''}; there is: {known}.")
    for file in chosen:
        for line in file.read_text("utf-8", errors="replace").splitlines():
            if not NOISE.match(line):
                yield f"{file.stem:<10} {line}"


def _last_run(client: SyncPrefectClient, paths: Paths) -> FlowRun:
    name = f"{retrain.name} {paths.root}"
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    if not found:
        raise RegraftError(f"the Prefect server knows no run of {paths.root}.")
    return found[0]


def _by_id(run: FlowRun) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"id": {"any_": [str(run.id)]}})


def _lines(client: SyncPrefectClient, run: FlowRun) -> Iterator[Log]:
    wanted, offset = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), 0
    while page := client.read_logs(wanted, offset=offset, limit=PAGE, sort=LogSort.TIMESTAMP_ASC):
        yield from page
        offset += len(page)
