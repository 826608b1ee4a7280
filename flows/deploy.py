"""A project's deployments: `retrain/NAME`, on a schedule or by hand, and `score/NAME`, by hand.

With `placement.mode: pools` also those that projects share: `run-stage/POOL` for each pool of stages, `publish/POOL`.
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows import automations, handover, pipeline, pools
from flows.refusals import explained
from flows.retrain import retrain
from flows.score import score
from flows.stage import publish, run_stage
from flows.watchdog import TAG, watchdog
from regraft.errors import RegraftError
from regraft.paths import REPOSITORY, Paths
from regraft.settings import Settings

log = logging.getLogger(__name__)

FLOWS_POOL = "flows"  # of runs that wait for stages on other pools, whose places they must not take
HERE = {"env": {"PYTHONPATH": str(REPOSITORY), **automations.BEATING}}  # in this installation
WATCHDOG = "all"  # its deployment, which all projects share
WATCH_EVERY = timedelta(minutes=10)


def deploy(
    paths: Paths,
    settings: Settings,
    address: str,
    cron: str | None,
    timezone: str,
    *,
    refuse_second: bool = False,
    notify: str | None = None,
) -> dict[str, Any]:
    """Make or update the deployments of a project.

    Returns {"deployments": its own, "shared": those of all projects, "pool": where its own `retrain` runs}.

    A worker of the pool imports the flows from this installation, wherever it was started. One run of a deployment at
    a time, the next one waits: a second run of a project would be refused by its lock.

    Args:
        paths: Of the project.
        settings: The project's; `placement.pool` says where, else the pool cpu.
        address: Of the Prefect server's API.
        cron: When to retrain, e.g. "0 3 * * *"; None: by hand only.
        timezone: In which `cron` is meant, e.g. Europe/Berlin.
        refuse_second: Cancel a run that comes while another of the same deployment is at work; else it waits.
        notify: URL to which the server posts a message when a run of the project fails or crashes.

    Raises:
        RegraftError: If the schedule or the URL is none, there is no such pool, another project has the name, or
            stages are to run on several machines and the project has no remote, or may not write to it.
        ResourceError: If the server or the remote does not answer.
    """
    if notify is not None and urlsplit(notify).scheme not in ("http", "https"):
        raise RegraftError(f"--notify {notify!r} is no address that the server could post to: https://HOST/... is.")
    stage_pools = pipeline.stage_pools(paths.root) if settings.placement.mode == "pools" else []
    if stage_pools:
        pools.require_remote(paths.root)
        handover.check_remote(paths.root)
    home = settings.placement.pool or pipeline.DEFAULT_POOL
    pool = FLOWS_POOL if stage_pools else home
    schedule = None if cron is None else _schedule(cron, timezone)
    with temporary_settings({PREFECT_API_URL: address}):
        try:
            _check(paths, settings.name, {pool, home, *stage_pools}, address)
            collision = ConcurrencyLimitStrategy.CANCEL_NEW if refuse_second else ConcurrencyLimitStrategy.ENQUEUE
            own: dict[str, Any] = {
                "parameters": {"root": str(paths.root)},
                "tags": [TAG, settings.name],
                "concurrency_limit": ConcurrencyLimitConfig(limit=1, collision_strategy=collision),
                "job_variables": HERE,
            }
            made = [
                _apply(retrain, settings.name, pool, schedules=[] if schedule is None else [schedule], **own),
                _apply(score, settings.name, home, **own),
            ]
            _watch(settings.name, made, pool, notify)
            # A worker takes these from the installation that it was started from, which need not lie where this does.
            anywhere = {"env": automations.BEATING}
            shared = [_apply(run_stage, each, each, job_variables=anywhere) for each in stage_pools]
            shared += [_apply(publish, home, home, job_variables=anywhere)] if stage_pools else []
        except httpx.HTTPError as error:
            raise explained(error, address, "Start it (`regraft up`), or correct PREFECT_API_URL.") from error
    return {"deployments": made, "shared": shared, "pool": pool}


def _schedule(cron: str, timezone: str) -> Schedule:
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise RegraftError(
            f"--cron {cron!r} --timezone {timezone!r} is no schedule: {problems}. Five fields are expected, minute, "
            'hour, day, month and weekday ("0 3 * * *": daily at 3:00), and a zone such as Europe/Berlin or UTC.'
        ) from None
    return Schedule(cron=cron, timezone=timezone)


def _watch(name: str, deployments: list[str], pool: str, url: str | None) -> None:
    """Have the server notice crashes and begin crashed runs again, and tell `url` of failures."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(FLOWS_POOL)
            pool = FLOWS_POOL
        except ObjectNotFound:
            log.debug("no pool %s: the watchdog runs on the pool %s", FLOWS_POOL, pool)
        # One for all projects, and one run of it at a time.
        one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
        often = [Schedule(interval=WATCH_EVERY)]
        _apply(watchdog, WATCHDOG, pool, schedules=often, job_variables=HERE, concurrency_limit=one)
        automations.watch(client, client.read_deployment_by_name(f"{watchdog.name}/{WATCHDOG}").id)
        own = [client.read_deployment_by_name(each).id for each in deployments]
        automations.notify(client, name, own, url)


def _check(paths: Paths, name: str, pools: set[str], address: str) -> None:
    """Raise RegraftError if there is no such pool, or the deployments of this name are another project's."""
    with get_client(sync_client=True) as client:
        for pool in sorted(pools):
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                raise RegraftError(
                    f"the Prefect server at {address} has no work pool {pool!r}. `regraft up` makes cpu, gpu, flows; "
                    f"make others by `prefect work-pool create {pool} --type process`. Or correct placement.pool in "
                    "params.yaml."
                ) from None
        try:
            present = client.read_deployment_by_name(f"{retrain.name}/{name}")
        except ObjectNotFound:
            return
    other = Path(str(present.parameters.get("root", paths.root)))
    if other != paths.root and Paths(other).params.exists():
        raise RegraftError(
            f"the deployment {retrain.name}/{name} is that of the project {other}. Give this one another name "
            f"(in {paths.params}), or run `prefect deployment delete {retrain.name}/{name}` first."
        )


def _apply(flow: Flow[Any, Any], name: str, pool: str, **options: Any) -> str:
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        **options,
    )
    deployment.apply()
    return f"{flow.name}/{name}"
