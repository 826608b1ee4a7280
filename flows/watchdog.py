"""The flow `watchdog`: records runs as crashed that have fallen silent, and starts crashed ones again.

It is run by automations as soon as a run misses its heartbeats or is recorded as crashed, and every few minutes
besides, for what happened while the server was away. Prefect may report one crash twice; a new run is keyed by the
crashed one, so it begins once.

The server itself is not left to judge silence: after it has been away it finds all runs silent, the live ones too.
"""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import Crashed

from flows.stage import TAG as STAGE_TAG

TAG = "regraft"  # of the deployments that it watches
HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_S, SILENCE_S = 30, 45  # 30 s is the least that Prefect knows
POLL_S = 5.0
MOST_GAP_S = 20.0  # between two answers of a server that is there
UNDER_WAY = [StateType.RUNNING, StateType.CANCELLING]
MOST_ATTEMPTS = 3
OLD = timedelta(days=1)


@flow(name="watchdog", persist_result=False)
def watchdog(attempts: int = MOST_ATTEMPTS) -> list[str]:
    """Start the last run of each project's deployment again if it crashed; return the names of the new runs.

    Before that, runs that are silent are recorded as crashed. A run that failed or was cancelled is left alone: what it
    met stays as it is. So is a crash of more than a day ago, which is nobody's present concern.

    Args:
        attempts: So many runs in a row may crash; then it is left to people.
    """
    logger, begun = get_run_logger(), []
    watched = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    with get_client(sync_client=True) as client:
        for run_id in silent(client):
            logger.error("run %s is silent: it has crashed", run_id)
            crashed_state: State[None] = Crashed(message=f"Its heartbeats, one in {HEARTBEAT_S} s, are missing.")
            client.set_flow_run_state(run_id, crashed_state, force=True)
        for deployment in client.read_deployments(deployment_filter=watched):
            crashed = _crashed_in_a_row(client, deployment, attempts)
            if not crashed:
                continue
            if len(crashed) == attempts:
                logger.error("the last %d runs of %s crashed; it is not started again", attempts, deployment.name)
                continue
            last = crashed[0]
            if last.state is not None and last.state.timestamp < datetime.now(UTC) - OLD:
                continue
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters=last.parameters, idempotency_key=f"after-{last.id}"
            )
            logger.info("run %s of %s crashed; run %s takes its place", last.name, deployment.name, run.name)
            begun.append(run.name)
    return begun


def silent(client: SyncPrefectClient) -> list[UUID]:
    """Return the runs under way that do not beat while the server answers for `SILENCE_S`; ends when all have beaten.

    Heartbeats that come in are counted, and this process's time is measured: clocks of other machines do not matter,
    nor do beats that were lost while the server was away. A run that never beat is not judged.
    """
    suspects = {run_id: count for run_id, count in _beats(client).items() if count}
    begun = answered = time.monotonic()
    while suspects and time.monotonic() - begun < SILENCE_S:
        time.sleep(POLL_S)
        beats, now = _beats(client), time.monotonic()
        if now - answered > MOST_GAP_S:  # the server was away and runs may just be reconnecting
            begun = now
        answered = now
        suspects = {run_id: count for run_id, count in suspects.items() if beats.get(run_id) == count}
    return list(suspects)


def _beats(client: SyncPrefectClient) -> dict[UUID, int]:
    """Return how many heartbeats the server has had of each run under way."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))
    tags = FlowRunFilterTags(any_=[TAG, STAGE_TAG])  # runs of others may beat more slowly
    # Heartbeats carry the time of the machine that sent them, which may be ahead.
    occurred = EventOccurredFilter.model_validate({"until": datetime.now(UTC) + OLD})
    found = {}
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state, tags=tags)):
        about = EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
        beats = EventFilter(occurred=occurred, event=EventNameFilter(name=[HEARTBEAT]), resource=about)
        found[run.id] = client.read_events(beats, limit=1).total
    return found


def _crashed_in_a_row(client: SyncPrefectClient, deployment: DeploymentResponse, most: int) -> list[FlowRun]:
    """Return the crashed runs since the last one that ended otherwise, the latest first, and `most` at most."""
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        # those of a schedule's future are made long before they are due
        flow_run_filter=FlowRunFilter(
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)})
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=most,
    )
    crashed: list[FlowRun] = []
    for run in runs:
        if run.state is None or not run.state.is_crashed():
            break
        crashed.append(run)
    return crashed
