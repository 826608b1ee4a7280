"""The flow `watchdog`: starts runs again that crashed, because their process, worker or machine died.

It is run by an automation as soon as a run is recorded as crashed, and every few minutes besides, for what happened
while the server was away. Prefect may report one crash twice; a new run is keyed by the crashed one, so it begins once.
"""

from datetime import UTC, datetime, timedelta

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

TAG = "regraft"  # of the deployments that it watches
MOST_ATTEMPTS = 3
OLD = timedelta(days=1)


@flow(name="watchdog", persist_result=False)
def watchdog(attempts: int = MOST_ATTEMPTS) -> list[str]:
    """Start the last run of each project's deployment again if it crashed; return the names of the new runs.

    A run that failed or was cancelled is left alone: what it met stays as it is. So is a crash of more than a day ago,
    which is nobody's present concern.

    Args:
        attempts: So many runs in a row may crash; then it is left to people.
    """
    logger, begun = get_run_logger(), []
    watched = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    with get_client(sync_client=True) as client:
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
