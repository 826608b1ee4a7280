"""The flow `retrain`: plan, run each stale stage as a Prefect task, then register and promote what came out."""

import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from flows import handover, pipeline
from flows.pipeline import StagePlan
from flows.pools import Pools, open_pools
from flows.promote import promote
from flows.repository import drop_broken_lock
from regraft import durations, progress
from regraft.errors import ResourceError
from regraft.fingerprint import release_fingerprint
from regraft.locking import is_running, project_lock
from regraft.measures import METRICS, headline, task_of, words
from regraft.paths import Paths
from regraft.registry.published import check_login, is_published
from regraft.registry.register import read_publication
from regraft.settings import Settings, load_settings

RETRY_DELAY_S = 10
PATIENCE_S = 3600.0


@flow(name="retrain", flow_run_name="retrain {root}", log_prints=False)
def retrain(root: str = ".", force: tuple[str, ...] = ()) -> dict[str, Any]:
    """Bring the project at `root` up to date and return what was run and published.

    Args:
        root: The project's folder.
        force: Stages to run even if nothing they depend on changed.

    Returns:
        {"stages_run": [names], "stages_restored": [names], "publication": {...}, "test": the test number in words,
        unless there was nothing to do}, see `flows.promote`.

    Raises:
        StageFailed: With the last lines of the stage that failed. What ran before it stays recorded.
        RegraftError: If settings, source or registry are at fault, or the project is locked by another run: a deployed
            one waits for `PATIENCE_S` first, for else a night's run would be lost to one that a person began.
    """
    logger = get_run_logger()
    paths = Paths(Path(root).resolve())
    wait_s = PATIENCE_S if is_deployed() else 0.0
    if wait_s and is_running(paths):
        logger.info("another run is at work on %s; this one waits for it, for an hour at most", paths.root)
    with project_lock(paths, wait_s=wait_s):
        settings = load_settings(paths.params)
        check_login(paths, settings)  # a store that MLflow does not know, or that refuses, would fail the last step
        pools = open_pools(paths, settings) if settings.placement.mode == "pools" else None
        drop_broken_lock(paths)
        outcome: dict[str, Any] = {"stages_run": [], "stages_restored": []}
        bring_up_to_date(paths, settings, pools, force, outcome)
        done = [*outcome["stages_run"], *outcome["stages_restored"]]
        if not done and is_published(paths, settings, release_fingerprint(paths)):
            logger.info("nothing has changed since the last run")
            return outcome | {"publication": read_publication(paths).as_json()}
        require_same_settings(paths, settings)
        while (published := promote(str(paths.root), flow_run_id(), pools)) is None:
            bring_up_to_date(
                paths, settings, pools, (), outcome
            )  # what the remote had lost may have come out otherwise
        publication, metrics = published
        publish_report(paths, publication, metrics)
    return outcome | {"publication": publication, "test": headline(task_of(metrics), metrics["test"])}


def require_same_settings(paths: Paths, settings: Settings) -> None:
    """Check that params.yaml says what the run began with: a model is made, and registered, by one set of settings.

    Raises:
        ResourceError: If it does not.
    """
    if load_settings(paths.params) != settings:
        raise ResourceError(
            f"{paths.params} changed while this run was at work; nothing was registered. Run again: what fits the new "
            "settings is kept."
        )


def bring_up_to_date(
    paths: Paths, settings: Settings, pools: Pools | None, force: tuple[str, ...], outcome: dict[str, Any]
) -> None:
    """Run what is stale until nothing is, and add to `outcome` which stages ran and which were restored."""
    logger, elsewhere = get_run_logger(), pools is not None
    to_force, is_first = set(force), True
    while True:
        made_again = len(pools.made_again) if pools else 0
        plan = pipeline.plan(paths.root, force=tuple(to_force), refresh=is_first, data_elsewhere=elsewhere)
        for stage in plan:
            if not stage.stale:
                logger.info("stage %s is clean", stage.name)
                continue
            if stage.name not in to_force and not pipeline.is_stale(paths.root, stage.name, data_elsewhere=elsewhere):
                logger.info("stage %s is clean: what it reads came out the same", stage.name)
                continue
            require_same_settings(paths, settings)
            logger.info("stage %s is stale: %s", stage.name, "; ".join(stage.why))
            run = run_stage.with_options(
                name=stage.name,
                task_run_name=stage.name,
                tags={stage.pool},
                retries=stage.retries,
                retry_delay_seconds=RETRY_DELAY_S,
                retry_condition_fn=may_succeed_later,
            )
            ran = run(str(paths.root), stage, pools, force=stage.name in to_force)
            to_force.discard(stage.name)
            outcome["stages_run" if ran else "stages_restored"].append(stage.name)
        # A stage that was made again for a later one may have come out otherwise, and one between reads it, too.
        if pools is None or len(pools.made_again) == made_again:
            return
        is_first = False


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(root: str, stage: StagePlan, pools: Pools | None, *, force: bool) -> bool:
    """Run one stage, here or on a worker of its pool; its log lines and progress become those of the task run."""
    logger, name = get_run_logger(), stage.name
    artifact = cast(UUID, create_progress_artifact(0.0, key=f"progress-{name}", description=f"stage {name}"))

    def show(percent: float, description: str) -> None:
        try:
            update_progress_artifact(artifact, progress=percent, description=description)
        except (httpx.HTTPError, PrefectException) as error:  # a picture of progress is not worth a stage
            logger.debug("progress could not be shown: %s", error)

    def on_line(line: str) -> None:
        logger.info(line)
        if match := progress.LINE.match(line):
            show(float(match["percent"]), f"{name}: {match['text']}")

    started, seconds = time.monotonic(), None
    if pools is not None:
        seconds = pools.run(stage, force=force, on_line=on_line)
        ran = seconds is not None
    else:
        ran = (force or not is_restored(Path(root), name)) and pipeline.run_stage(
            Path(root), name, force=force, timeout_s=stage.timeout_s, gpus=stage.gpus, on_line=on_line
        )
    show(100.0, f"stage {name} is done")
    if ran:
        seconds = time.monotonic() - started if seconds is None else seconds
        durations.note(Paths(Path(root)), name, seconds)
    if not ran:
        logger.info("stage %s was restored from the cache: the same inputs were seen before", name)
    return ran


def is_restored(root: Path, name: str) -> bool:
    """Take the result of a stage from the project's DVC remote, if it has one that knows it; say whether."""
    try:
        return handover.remote_of(root) is not None and handover.restore(root, name)
    except ResourceError as error:
        get_run_logger().warning("%s This stage goes on without it.", error)
        return False


def may_succeed_later(_task: Any, _run: TaskRun, state: State) -> bool:
    """Say whether a failed stage is worth another try: a disk, network or server gave out; bad data stays bad."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ResourceError) or (isinstance(error, pipeline.StageFailed) and error.is_transient)


def is_deployed() -> bool:
    """Return whether the Prefect run this is called in is one of a deployment: begun by a schedule or from afar."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def flow_run_id() -> str:
    """Return the id of the Prefect run this is called in."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def publish_report(paths: Paths, publication: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Show the test numbers, the decision and where the report is, beside the run in Prefect."""
    test = metrics["test"]
    rows = [
        f"| {words(name)} | {test[name]['value']:.4f} | {test[name]['low']:.4f} to {test[name]['high']:.4f} |"
        for name in METRICS[task_of(metrics)]
    ]
    decision = "is champion" if publication["promoted"] else "was not promoted"
    create_markdown_artifact(
        key="report",
        description=f"Test numbers of {paths.root.name}",
        markdown="\n".join(
            [
                f"Version {publication['version']} {decision}: {'; '.join(publication['reasons'])}",
                "",
                "| test metric | value | 95% interval |",
                "|---|---|---|",
                *rows,
                "",
                f"Full report: `{(paths.reports / 'report.html').relative_to(paths.root)}` where the last stage ran, "
                f"and with MLflow run `{publication['run_id']}`.",
            ]
        ),
    )
