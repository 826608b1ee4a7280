"""Stages on workers of work pools: dispatched, waited for, and recorded without their data.

A stage is dispatched under a key made of all that decides its result, so a run that comes back after a crash finds
what it had dispatched, and waits for it or takes its result; nothing is dispatched twice.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPoolStatus
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort, LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import Abort, ObjectNotFound, TerminationSignal
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Crashed

from flows import handover, pipeline, stage, workspace
from flows.handover import NotInRemote
from flows.pipeline import StageFailed, StagePlan
from flows.refusals import explained, is_refusal
from flows.workspace import Errand
from regraft.data import sources
from regraft.errors import RegraftError, ResourceError, SettingsError
from regraft.files import read_json
from regraft.fingerprint import hash_json, release_fingerprint, stage_fingerprint
from regraft.paths import Paths
from regraft.pretraining.source import parse_source
from regraft.registry.tracking import redacted, tracking_uri
from regraft.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 1.0
QUEUE_PATIENCE_S = 20.0  # before it is said that nobody takes the stage up
PENDING_PATIENCE_S = 300.0  # from a worker's taking a run to its beginning, process start included
SERVER_PATIENCE_S = 300.0  # for a Prefect server that is being started again
MOST_LINES = 200  # of a log at a time; the server gives no more
UNDER_WAY = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
OnLine = Callable[[str], None]


@dataclass
class Pools:
    """Dispatches the stages of one project.

    Attributes:
        paths: The project.
        settings: Its settings.
        remote: Its DVC remote.
        tracking: Address of the MLflow server.
        made_again: Stages whose results were gone, and that this run has therefore made again.
    """

    paths: Paths
    settings: Settings
    remote: dict[str, Any]
    tracking: str
    made_again: set[str] = field(default_factory=set)

    def run(self, plan: StagePlan, *, force: bool, on_line: OnLine) -> float | None:
        """Have a stage run by a worker of its pool, or here if only this machine has what it reads, and record it.

        What is missing in the remote of what the stage reads is made again first, once in a run.

        Returns:
            How long it ran, in seconds; None if a known result was taken.

        Raises:
            StageFailed: As the worker reports it.
            ResourceError: If the worker, the Prefect server or the remote gave out.
            RegraftError: If the stage was cancelled, or the worker cannot run it.
            NotInRemote: If what was made again is gone again.
        """
        try:
            return self._run_once(plan, force=force, repair=False, on_line=on_line)
        except NotInRemote as error:
            self._make_again(error, on_line)
        return self._run_once(plan, force=force, repair=False, on_line=on_line)

    def _make_again(self, lacking: NotInRemote, on_line: OnLine) -> None:
        """Bring back what the remote has lost of what stages read, from a cache that has it, or by running its makers.

        All that is lost is looked for at once, and made good in running order: else each stage would be sent off only
        to fail for what the one before it made.
        """
        root = self.paths.root
        stages = {plan.name: plan for plan in pipeline.plan(root, refresh=False, data_elsewhere=True)}
        try:
            lost = handover.missing(root, pipeline.ancestors(root, pipeline.makers(root, lacking.outputs)))
        except RegraftError as error:  # this machine may have no access to the remote
            on_line(f"what else the remote has lost is not known here: {error}")
            lost = []
        for name in pipeline.makers(root, [*lacking.outputs, *lost]):
            if name in self.made_again:
                raise lacking
            self.made_again.add(name)
            on_line(f"{lacking}: stage {name} is to bring back what it made")
            if handover.holds(root, name):
                handover.push(root, name, repair=True)
                continue
            try:
                self._run_once(stages[name], force=True, repair=True, on_line=on_line)
            except NotInRemote as error:
                self._make_again(error, on_line)
                self._run_once(stages[name], force=True, repair=True, on_line=on_line)

    def _run_once(self, plan: StagePlan, *, force: bool, repair: bool, on_line: OnLine) -> float | None:
        errand = Errand(
            stage=plan.name,
            force=force,
            repair=repair,
            timeout_s=plan.timeout_s,
            gpus=plan.gpus,
            checkpoints_s=self.settings.placement.checkpoints_s,
        )
        if reads := self._only_here(plan.name):
            on_line(f"stage {plan.name} runs here: {reads} lies on this machine")
            started = time.monotonic()
            ran = workspace.perform(self.paths, workspace.home_of(self.paths), errand, on_line)
            return time.monotonic() - started if ran else None
        parcel = workspace.pack(self.paths, self.settings.name, self.remote)
        key = hash_json([parcel.home, plan.name, stage_fingerprint(self.paths, plan.name)])
        if force:
            key = hash_json([key, str(uuid4())])
        parameters = {"parcel": parcel.model_dump(), "errand": errand.model_dump()}
        name = f"{self.settings.name} {plan.name}"
        result = self.dispatch(f"{stage.run_stage.name}/{plan.pool}", name, key, parameters, on_line)
        handover.record(self.paths.root, plan.name, result["entry"])
        on_line(f"stage {plan.name} is done, on {result['host']} in {result['seconds']:.0f} s")
        return float(result["seconds"]) if result["ran"] else None

    def _only_here(self, name: str) -> str:
        """Return what stage `name` reads of this machine's own files; empty if it reads none."""
        keys = pipeline.reads_inputs(self.paths.root, name)
        read: list[str] = []
        if "source" in keys:
            found = sources.parse_all(self.settings.download.sources, self.paths.root).values()
            read += [f"the source {source.text}" for source in found if _is_local(source)]
        backbone = self.settings.backbone
        if "pretraining" in keys and backbone.mode == "pretrain" and backbone.pretrain.source is not None:
            source = parse_source(backbone.pretrain.source, self.paths.root)
            read += [f"the pretraining source {source.text}"] if _is_local(source) else []
        if "preset" in keys and (presets := read_json(self.paths.inputs)["preset"]):
            read += [f"the backbone {preset}" for preset in presets]
        return " and ".join(read)

    def publish(self, lineage: dict[str, str], on_line: OnLine) -> dict[str, Any] | None:
        """Have the model registered and judged by a worker of the pool cpu; see `flows.workspace.publish`.

        Each run has it done anew, which changes nothing in the registry if it was done before.

        Returns:
            None if the remote had lost what stages made, and they made it again: the plan is to be looked at anew.
        """
        pool = self.settings.placement.pool or pipeline.DEFAULT_POOL
        parcel = workspace.pack(self.paths, self.settings.name, self.remote)
        fingerprint = release_fingerprint(self.paths)
        parameters = {"lineage": lineage, "fingerprint": fingerprint, "tracking": self.tracking}
        deployment, name = f"{stage.publish.name}/{pool}", f"{self.settings.name} publish"
        key = hash_json([parcel.home, fingerprint, lineage])
        try:
            return self.dispatch(deployment, name, key, {"parcel": parcel.model_dump(), **parameters}, on_line)
        except NotInRemote as error:
            self._make_again(error, on_line)
        return None

    def dispatch(
        self, deployment: str, name: str, key: str, parameters: dict[str, Any], on_line: OnLine
    ) -> dict[str, Any]:
        """Run a deployment under `key`, unless that is under way or done already, and return the result it leaves."""
        home = f"home:{parameters['parcel']['home']}"
        with _server() as client:
            self._cancel_others(client, home, key)
            run, said = _latest(client, key), "found"
            if run is None or _is_lost(client, run):
                tags = [stage.TAG, home, f"key:{key}"]
                once = f"{key}-after-{run.id if run else 'nothing'}"
                run, said = _submit(deployment, name, once, parameters, tags), "dispatched"
            on_line(f"{said} as run {run.name} ({run.id}) of {deployment}")
            with _cancelled_with_us(client, run.id):
                run = _wait(client, run.id, on_line)
            return _outcome(client, run)

    def _cancel_others(self, client: SyncPrefectClient, home: str, key: str) -> None:
        """Stop what an earlier run of this project dispatched and did not wait for: its inputs are no longer these."""
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(UNDER_WAY)))
        tags = FlowRunFilterTags(all_=[home])
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state, tags=tags)):
            if f"key:{key}" not in run.tags:
                _cancel(client, run.id)


def open_pools(paths: Paths, settings: Settings) -> Pools:
    """Return what dispatches the stages of the project at `paths`.

    Raises:
        SettingsError: If it lacks what all machines share: a Prefect server, an MLflow server, a DVC remote.
    """
    needs = "placement.mode is pools"
    if not PREFECT_API_URL.value():
        raise SettingsError(f"{needs}, which needs a Prefect server: `regraft up` starts one, or set PREFECT_API_URL.")
    uri = tracking_uri(paths, settings)
    if urlsplit(uri).scheme in ("sqlite", "file", ""):
        raise SettingsError(
            f"{needs}, but MLflow is {redacted(uri)}, a file of this machine: name a server in tracking.uri or "
            "MLFLOW_TRACKING_URI (`regraft up` starts one; an mlflow.db in the project goes before it)."
        )
    if redacted(uri) != uri or redacted(settings.tracking.uri or "") != (settings.tracking.uri or ""):
        raise SettingsError(
            f"the address of MLflow, {redacted(uri)}, holds a password, which would be sent to the Prefect server. "
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on each machine, or its MLFLOW_TRACKING_URI."
        )
    remote = require_remote(paths.root)
    for name, others in pipeline.made_by_no_stage(paths.root).items():
        raise SettingsError(
            f"{needs}, but stage {name} reads {', '.join(others)}, which no stage makes and no worker has. Let a "
            "stage make it, or set placement.mode to local."
        )
    return Pools(paths, settings, remote, uri)


def require_remote(root: Path) -> dict[str, Any]:
    """Return the project's DVC remote; see `flows.handover.remote_of`.

    Raises:
        SettingsError: If it has none.
    """
    remote = handover.remote_of(root)
    if remote is None:
        raise SettingsError(
            "placement.mode is pools, which needs a place where machines leave data for each other: `dvc remote add "
            f"--default NAME URL` in {root} (a folder that all of them see, ssh://, s3://, gs://, azure://)."
        )
    return remote


def _is_local(source: sources.Source) -> bool:
    return source.url is None and source.scheme not in ("package", "tfds")  # those every machine gets for itself


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """Yield a client of the Prefect server.

    Raises:
        ResourceError: If the server does not answer, or forgets a run while it is waited for.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        advice = "Run again when it is back: what was dispatched is found again."
        raise explained(error, PREFECT_API_URL.value(), advice) from error
    except ObjectNotFound as error:
        raise ResourceError("a run was deleted from the Prefect server while it was waited for; run again.") from error


def _submit(deployment: str, name: str, key: str, parameters: dict[str, Any], tags: list[str]) -> FlowRun:
    """Make a run of `deployment`; if one was made under `key` before, return that."""
    try:
        made = run_deployment(
            deployment, parameters=parameters, flow_run_name=name, timeout=0, tags=tags, idempotency_key=key
        )
    except ObjectNotFound as error:
        raise RegraftError(f"the Prefect server has no deployment {deployment}; `regraft deploy` makes it.") from error
    return cast(FlowRun, made)


def _latest(client: SyncPrefectClient, key: str) -> FlowRun | None:
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[f"key:{key}"])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    return found[0] if found else None


def _is_lost(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Return whether nothing can come of `run` any more: it failed, or its result is no longer kept."""
    state = run.state
    if state is None or not state.is_final():
        return state is not None and state.is_cancelling()
    result = _result(client, run.id)
    return not state.is_completed() or result is None or "error" in result


def _wait(client: SyncPrefectClient, run_id: UUID, on_line: OnLine) -> FlowRun:
    """Return the run when it has ended, handing on its log lines meanwhile; a server that is away is waited for.

    A run whose worker died before it began would be pending for ever: nobody but us sees it.
    """
    pending_since: float | None = None
    seen, begun, silent_since, has_complained = 0, time.monotonic(), None, False
    said = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    while True:
        try:
            run = client.read_flow_run(run_id)
            lines = client.read_logs(said, offset=seen, limit=MOST_LINES, sort=LogSort.TIMESTAMP_ASC)
            silent_since = None
        except httpx.HTTPError as error:
            if is_refusal(error):
                raise
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > SERVER_PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        for line in lines:
            if line.name == stage.LOGGER:  # neither its worker nor Prefect itself
                on_line(line.message)
        seen += len(lines)
        if run.state is not None and run.state.is_final() and not lines:
            return run
        is_pending = run.state is not None and run.state.is_pending()
        pending_since = (pending_since or time.monotonic()) if is_pending else None
        if pending_since is not None and time.monotonic() - pending_since > PENDING_PATIENCE_S:
            client.set_flow_run_state(run_id, Crashed(message="Its worker took it and never began."))
        waits = run.state is None or run.state.is_scheduled()
        if waits and not has_complained and time.monotonic() - begun > QUEUE_PATIENCE_S:
            on_line(_why_it_waits(client, run))
            has_complained = True
        if len(lines) < MOST_LINES:
            time.sleep(POLL_S)


def _why_it_waits(client: SyncPrefectClient, run: FlowRun) -> str:
    pool = run.work_pool_name or ""
    if client.read_work_pool(pool).status == WorkPoolStatus.READY:
        return f"waiting: the workers of the pool {pool} are busy"
    return (
        f"waiting: no worker of the pool {pool} was heard of lately. Start one: `regraft up` where the servers are, "
        f"`python -P -m flows.worker --pool {pool}` on others."
    )


def _outcome(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any]:
    """Return what the ended run left, or raise what it ended with."""
    state, result = run.state or State(type=StateType.CRASHED), _result(client, run.id)
    if state.is_completed() and result is not None and "error" not in result:
        return result
    if result is not None and "error" in result:
        if result["missing"]:
            raise NotInRemote(result["error"], result["missing"])
        raise StageFailed(result["error"], result["exit_code"], was_killed=result["was_killed"])
    if state.is_cancelled():
        raise RegraftError(f"{run.name} was cancelled; run again to go on from its last checkpoint.")
    message = (state.message or "which said no more").rstrip(".")
    said = f"{run.name} ended without a result on its worker: {state.name}, {message}"
    if state.is_crashed() or state.is_completed():
        raise ResourceError(f"{said}. Run again to go on from its last checkpoint.")
    raise RegraftError(said)


def _result(client: SyncPrefectClient, run_id: UUID) -> dict[str, Any] | None:
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), type=ArtifactFilterType(any_=[stage.RESULT])
        ),
        sort=ArtifactSort.CREATED_DESC,  # a run that was begun again by its worker has left two
    )
    result = json.loads(str(found[0].data)) if found else None
    return result if isinstance(result, dict) else None


@contextmanager
def _cancelled_with_us(client: SyncPrefectClient, run_id: UUID) -> Iterator[None]:
    """Cancel a run if this process is stopped while it waits; if the server is gone, the run goes on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, TerminationSignal):
        try:
            _cancel(client, run_id)
        except httpx.HTTPError as error:
            log.warning("run %s goes on, since it could not be cancelled: %s", run_id, error)
        raise


def _cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    try:
        client.set_flow_run_state(run_id, Cancelling(message="the run that waited for it was stopped"))
    except Abort:
        return  # it has ended meanwhile
