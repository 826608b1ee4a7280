"""The services of one machine: a Prefect server, an MLflow server, and a worker for each of the pools cpu and gpu."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType, WorkerStatus, WorkPool, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from prefect.states import Crashed

from flows import postgres
from flows.refusals import LOGIN, explained, is_refusal
from regraft import gpus, services
from regraft.errors import RegraftError, ResourceError
from regraft.locking import exclusive
from regraft.paths import REPOSITORY
from regraft.processes import start, stop
from regraft.registry import tracking
from regraft.services import NAMES, POOLS, SERVERS, WORKERS, Service
from regraft.state import machine_id, state_folder

log = logging.getLogger(__name__)

DEFAULT_HOST, DEFAULT_PORTS = "127.0.0.1", {"prefect": 4200, "mlflow": 5000}
START_TIMEOUT_S = 300.0  # for one service on a busy machine; 10 to 30 s are usual
POLL_S = 0.5
LAST_LINES = 5
ALWAYS = ("REGRAFT_STATE", "PREFECT_API_URL", "PYTHONPATH")  # set whatever this process's environment says of them
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (what a client calls a server that listens everywhere)
HEALTH_ERRORS = (httpx.HTTPError, PrefectException)
UNDER_WAY = (StateType.RUNNING, StateType.CANCELLING)
QUEUED = (StateType.SCHEDULED, StateType.PENDING)


def up(host: str | None, prefect_port: int | None, mlflow_port: int | None) -> dict[str, Service]:
    """Start what does not run yet of the four services, and return all of them by name.

    What is not given is as it was at the last `up`, else that of `DEFAULT_HOST` and `DEFAULT_PORTS`.

    Args:
        host: The address that both servers listen on.
        prefect_port: Of the Prefect server and its web page.
        mlflow_port: Of the MLflow server and its web page.

    Raises:
        RegraftError: If a port is taken, a server runs already at another address, or clients lack its password.
        ResourceError: If a service does not come up, or PostgreSQL not answer; see `postgres.databases`. What this call
            had started is stopped again.
    """
    password = PREFECT_SERVER_API_AUTH_STRING.value()
    if password and PREFECT_API_AUTH_STRING.value() != password:
        raise RegraftError(
            "PREFECT_SERVER_API_AUTH_STRING is set, so the Prefect server will want a login, and its clients have "
            "another or none: set PREFECT_API_AUTH_STRING to the same USER:PASSWORD."
        )
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # databases and logs
    with exclusive(folder / "services.lock", folder):
        known = services.load()
        host = host or next((service.host for service in known.values()), DEFAULT_HOST)
        ports = {
            "prefect": prefect_port or _last_port(known, "prefect"),
            "mlflow": mlflow_port or _last_port(known, "mlflow"),
        }
        if ports["prefect"] == ports["mlflow"]:
            raise RegraftError(
                f"both servers were given port {ports['mlflow']}; choose another for one of them with --prefect-port "
                "or --mlflow-port."
            )
        addresses = _addresses(host, ports)
        alive = _in_place(known, addresses)
        missing = [name for name in NAMES if name not in alive]
        for name in missing:
            stop(services.mark_of(name))  # what a service that died has left
        for name, port in ports.items():
            if name in missing:
                _require_free(name, host, port)
        stores = {} if set(missing).isdisjoint(SERVERS) else postgres.databases(folder)
        with ExitStack() as undo:
            for group in (SERVERS, WORKERS):  # those of a group start side by side
                starting = [name for name in group if name in missing]
                for name in starting:
                    undo.callback(_end, name, alive)
                    alive[name] = _start(name, host, addresses, stores)
                    services.save(alive)
                for name in starting:
                    _wait_until_healthy(alive[name])
                if group is SERVERS:
                    _make_pools(addresses["prefect"])
            if not set(missing).isdisjoint(WORKERS):
                record_crashes(addresses["prefect"])
            undo.pop_all()
        return {name: alive[name] for name in NAMES}


def _in_place(known: dict[str, Service], addresses: dict[str, str]) -> dict[str, Service]:
    """Return the services that run and may stay; a worker that asks for work at another address than these may not.

    Raises:
        RegraftError: If a server runs at another address.
    """
    alive = {name: service for name, service in known.items() if service.process.is_alive}
    for name in SERVERS:
        if name in alive and alive[name].address != addresses[name]:
            raise RegraftError(
                f"{name} is up already, at {alive[name].address}, not at {addresses[name]}; "
                "name that host and port, or run `regraft down` first."
            )
    return {name: service for name, service in alive.items() if service.address == _address_of(name, addresses)}


def _end(name: str, alive: dict[str, Service]) -> None:
    """Stop a service that is not to stay, and forget it."""
    stop(services.mark_of(name))
    alive.pop(name, None)
    services.save(alive)


def down() -> dict[str, int]:
    """Stop the services of this state folder and all that they began; return how many processes each was."""
    folder = state_folder()
    if not folder.exists():
        return {}
    with exclusive(folder / "services.lock", folder):
        try:
            known = services.load()
        except RegraftError:
            known = {}  # processes are found by their marks; nothing else could put a damaged list right
        ended = {name: stop(services.mark_of(name)) for name in reversed(NAMES) if name not in SERVERS}
        if "prefect" in known and known["prefect"].process.is_alive:  # workers may not have come to report their runs
            record_crashes(known["prefect"].address)
        ended |= {name: stop(services.mark_of(name)) for name in reversed(SERVERS)}
        services.save({})
    return {name: count for name, count in ended.items() if count}


def status() -> dict[str, Any]:
    """Return what is up: {"services": [...], "pools": [...], "deployments": [...]}; nothing is changed.

    The lists of pools and deployments are empty if the Prefect server does not answer.
    """
    known = services.load()
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"services": rows, "pools": [], "deployments": []}
    if "prefect" in known:
        with _client(known["prefect"].address) as client:
            try:
                found["pools"] = [_pool(client, pool) for pool in client.read_work_pools()]
                found["deployments"] = [_deployment(client, each) for each in client.read_deployments()]
            except HEALTH_ERRORS as error:
                log.debug("the Prefect server says nothing of pools and deployments: %s", error)  # its row says why
    for service in (known[name] for name in NAMES if name in known):
        problem, version = _health(service)
        alive = service.process.is_alive
        rows.append(
            {
                "name": service.name,
                "healthy": alive and problem is None,
                "problem": problem if alive else "the process has ended",
                "address": service.address,
                "version": version,
                "pid": service.process.pid,
                "log": str(service.log),
            }
        )
    return found


def _last_port(known: dict[str, Service], name: str) -> int:
    port = urlsplit(known[name].address).port if name in known else None
    return port or DEFAULT_PORTS[name]


def _addresses(host: str, ports: dict[str, int]) -> dict[str, str]:
    """Return what clients on this machine call the two servers that listen on `host`."""
    name = WILDCARDS.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return {"prefect": f"http://{name}:{ports['prefect']}/api", "mlflow": f"http://{name}:{ports['mlflow']}"}


def _address_of(name: str, addresses: dict[str, str]) -> str:
    return addresses.get(name, addresses["prefect"])


def _require_free(name: str, host: str, port: int) -> None:
    """Raise RegraftError unless a server could listen on `port` of `host` now."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            probe.bind(address)
    except OSError as error:
        raise RegraftError(
            f"{name} cannot listen on port {port} of {host}: {error.strerror}. Nothing was started; "
            f"choose another with --{name}-port, or end what holds it."
        ) from None


def _start(name: str, host: str, addresses: dict[str, str], stores: dict[str, str]) -> Service:
    """Start one service; settings of Prefect's and MLflow's own that are in the environment are inherited, and win.

    Without any, servers keep their databases where `stores` says, or else in files of SQLite.
    """
    folder = state_folder()
    environment = {
        "REGRAFT_STATE": str(folder),
        "PREFECT_API_URL": addresses["prefect"],
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A run is found by the name of its module; so the worker needs no working copy of its own.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        **tracking.MLFLOW_ENVIRONMENT,
    }
    port = str(urlsplit(addresses.get(name, addresses["prefect"])).port)
    listen = ["--host", host, "--port", port]
    if name == "prefect":
        module = ["prefect", "server", "start", *listen]
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
    elif name == "mlflow":
        module = ["mlflow", "server", *listen, "--workers", "2"]
        environment["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        environment["MLFLOW_ARTIFACTS_DESTINATION"] = str(folder / "mlartifacts")
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes for what is not used here
    else:
        pool = name.removeprefix("worker-")
        limits = {"gpu": max(1, len(gpus.present())), "cpu": max(1, (os.cpu_count() or 1) // 2)}
        module = ["prefect", "worker", "start", "--type", "process", "--pool", pool]
        module += ["--limit", str(limits[pool])] if pool in limits else []
        module += ["--name", worker_name(pool), "--install-policy", "never"]
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"  # 10 unless told so: half of a short run's time
    if name in SERVERS:
        environment |= stores
    mine = {variable: value for variable, value in environment.items() if variable in ALWAYS}
    defaults = {variable: value for variable, value in environment.items() if variable not in os.environ}
    process = start(
        [sys.executable, "-m", *module],
        mark=services.mark_of(name),
        log=services.log_file(name),
        folder=folder,
        environment=defaults | mine,
    )
    return Service(name, _address_of(name, addresses), host, process)


def _wait_until_healthy(service: Service) -> None:
    """Return when `service` answers.

    Raises:
        ResourceError: If it ends, or does not answer in time; with the last lines of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.process.is_alive:
        problem, _ = _health(service)
        if problem is None:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    how = f"did not answer within {START_TIMEOUT_S:.0f} s" if service.process.is_alive else "ended at once"
    lines = service.log.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    raise ResourceError(f"{service.name} {how}. The end of {service.log}:\n" + "\n".join(lines))


def _health(service: Service) -> tuple[str | None, str | None]:
    """Return (what is wrong, version); a worker is well if the server has heard of it lately, paused or not."""
    if service.name == "mlflow":
        try:
            status, body = tracking.get(service.address, "/health")
            if (status, body.strip()) != (200, b"OK"):
                return f"{service.address} answers, but not as MLflow does (status {status})", None
            return None, tracking.get(service.address, "/version")[1].decode(errors="replace").strip()
        except ResourceError as error:
            return str(error), None
    with _client(service.address) as client:
        try:
            version = client.api_version()
            pool = None if service.name == "prefect" else client.read_work_pool(service.name.removeprefix("worker-"))
        except HEALTH_ERRORS as error:
            return f"refuses the login: {LOGIN}" if is_refusal(error) else f"{type(error).__name__}: {error}", None
    is_ready = pool is None or pool.status in (WorkPoolStatus.READY, WorkPoolStatus.PAUSED)
    return None if is_ready else "the server has not heard of it lately", version


def _make_pools(address: str) -> None:
    """Make the pools, so that projects can be deployed to them from the first moment."""
    with _client(address) as client:
        for pool in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            except ObjectAlreadyExists:
                continue


@contextmanager
def _client(address: str) -> Iterator[SyncPrefectClient]:
    settings = {PREFECT_API_URL: address, PREFECT_CLIENT_MAX_RETRIES: 0}  # a dead server is said to be so at once
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def require_pool(address: str, pool: str) -> None:
    """Check that there is a Prefect server at `address`, with a work pool of that name.

    Raises:
        ResourceError: If nothing answers there.
        RegraftError: If what answers is no Prefect server, or it has no such pool.
    """
    with _client(address) as client:
        try:
            client.api_version()
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise RegraftError(
                f"the Prefect server at {address} has no work pool {pool!r}, or is none: an address ends in /api, and "
                "`prefect work-pool ls` shows the pools."
            ) from None
        except (httpx.HTTPStatusError, httpx.UnsupportedProtocol) as error:
            if is_refusal(error):
                raise explained(error, address, "") from None
            raise RegraftError(
                f"{address} is no address of a Prefect server, e.g. http://HOST:4200/api ({error})."
            ) from None
        except httpx.HTTPError as error:
            raise ResourceError(f"no Prefect server answers at {address} ({error}).") from None


def record_crashes(address: str, pools: Sequence[str] = POOLS) -> None:
    """Tell the server of runs that it takes to be under way on this machine and whose process is gone.

    A worker that was killed cannot; such a run would be shown as running for ever, and keep the next one waiting.
    Prefect knows of a run only its process id, so nothing is said of a pool that other machines work for too.
    """
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(UNDER_WAY)))
    with _client(address) as client:
        try:
            for pool in pools:
                workers = client.read_workers_for_work_pool(pool)
                if any(each.status == WorkerStatus.ONLINE and each.name != worker_name(pool) for each in workers):
                    continue
                of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
                for run in client.read_flow_runs(work_pool_filter=of_pool, flow_run_filter=FlowRunFilter(state=states)):
                    pid = run.infrastructure_pid or ""
                    if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                        gone: State[None] = Crashed(message="Its process ended without a report, with its worker.")
                        client.set_flow_run_state(run.id, gone, force=True)
        except HEALTH_ERRORS as error:
            log.warning("runs that ended with their worker could not be recorded as crashed: %s", error)


def worker_name(pool: str) -> str:
    """Return what the worker for `pool` on this machine calls itself."""
    return f"{pool}@{socket.gethostname()}-{machine_id()}"


def _until_now() -> FlowRunFilterExpectedStartTime:
    """Return the filter that leaves out the future runs of a schedule, of which Prefect keeps a hundred."""
    return FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)})


def _pool(client: SyncPrefectClient, pool: WorkPool) -> dict[str, Any]:
    def count(types: tuple[StateType, ...], due: FlowRunFilterExpectedStartTime | None = None) -> int:
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
        return client.count_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name])),
            flow_run_filter=FlowRunFilter(state=state, expected_start_time=due),
        )

    return {
        "name": pool.name,
        "type": pool.type,
        "status": pool.status and pool.status.value,
        "running": count(UNDER_WAY),
        "queued": count(QUEUED, _until_now()),  # those of a schedule's future are not
    }


def _deployment(client: SyncPrefectClient, deployment: DeploymentResponse) -> dict[str, Any]:
    name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(expected_start_time=_until_now()),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    last = None
    if runs:
        run = runs[0]
        last = {
            "name": run.name,
            "state": run.state_name,
            "start": run.start_time and run.start_time.isoformat(timespec="seconds"),
            "seconds": round(run.total_run_time.total_seconds(), 1),
        }
    schedules = [
        f"{each.schedule.cron} {each.schedule.timezone}"
        if isinstance(each.schedule, CronSchedule)
        else f"every {each.schedule.interval.total_seconds() / 60:.0f} min"
        if isinstance(each.schedule, IntervalSchedule)
        else f"{each.schedule}"
        for each in deployment.schedules
        if each.active
    ]
    due = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"after_": datetime.now(UTC)})
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    when = due[0].expected_start_time if due else None
    of_pool = {"name": name, "pool": deployment.work_pool_name}
    return of_pool | {
        "schedules": schedules,
        "next_start": when and when.isoformat(timespec="seconds"),
        "last_run": last,
    }
