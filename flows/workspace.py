"""A project as a worker of a pool sees it: a folder on the worker's machine, made from what the run sent along."""

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows import checkpoints, handover, pipeline
from flows.repository import forget_files_in_use, start_project
from regraft.data import remotes
from regraft.errors import RegraftError, ResourceError
from regraft.files import read_json, write_json, write_text
from regraft.fingerprint import code_fingerprint, hash_json, moved_inputs, release_fingerprint
from regraft.locking import project_lock
from regraft.paths import Paths
from regraft.registry.register import publish as register
from regraft.settings import load_settings
from regraft.state import state_folder

LOCK_POLL_S = 2.0
MOST_NAMED = 5


class Parcel(BaseModel):
    """What a worker needs to know of a project: its small files, and where the large ones are.

    Attributes:
        project: The project's name.
        home: Tells it from other projects of that name, see `home_of`.
        params: The text of params.yaml.
        graph: The text of dvc.yaml.
        lock: The text of dvc.lock.
        inputs: What .regraft/inputs.json holds.
        versions: Of remote sources, as planning saw them.
        remote: The DVC remote, see `flows.handover.remote_of`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str
    home: str
    params: str
    graph: str
    lock: str
    inputs: dict[str, Any]
    versions: dict[str, Any]
    remote: dict[str, Any]


class Errand(BaseModel):
    """A stage to run.

    Attributes:
        stage: Its name in dvc.yaml.
        force: Run it even if a result of the same inputs is known.
        repair: Make whole what the remote holds of its outputs: from the cache, if they are there, else by running it.
        timeout_s: Stop it after so many seconds; 0 never.
        gpus: How many GPUs it gets on a machine that has some.
        checkpoints_s: How often its checkpoints are copied into the remote, in s; None: not at all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    force: bool = False
    repair: bool = False
    timeout_s: int = 0
    gpus: int = 0
    checkpoints_s: float | None = None


def pack(paths: Paths, name: str, remote: dict[str, Any]) -> Parcel:
    """Return what a worker needs to know of the project at `paths` as it was planned."""
    versions = paths.state / remotes.NOTES
    return Parcel(
        project=name,
        home=home_of(paths),
        params=paths.params.read_text("utf-8"),
        graph=paths.graph.read_text("utf-8"),
        lock=paths.lock.read_text("utf-8") if paths.lock.exists() else "",
        inputs=read_json(paths.inputs),
        versions=read_json(versions) if versions.exists() else {},
        remote=remote,
    )


def home_of(paths: Paths) -> str:
    """Return what tells the project at `paths` from every other, even from a copy of its folder: 12 hexadecimal digits.

    It is drawn once and kept in .regraft/, since names of machines and paths change, or are the same in two containers.
    """
    kept = paths.state / "home"
    if not kept.exists():
        write_text(kept, secrets.token_hex(16))
    return hash_json([kept.read_text("utf-8"), str(paths.root)])[:12]


@contextmanager
def unpacked(parcel: Parcel, on_line: Callable[[str], None]) -> Iterator[Paths]:
    """Make or renew the folder of the project on this machine; yield it, locked against other runs."""
    root = state_folder() / "workspaces" / f"{parcel.project}-{parcel.home}"
    root.mkdir(parents=True, exist_ok=True)
    paths = Paths(root)
    with _locked(paths, on_line):
        config = root / ".dvc" / "config"
        if not config.is_file() or "[cache]" not in config.read_text("utf-8"):  # else it was cut short when it was made
            shutil.rmtree(root / ".dvc", ignore_errors=True)
            start_project(root)
        # Nobody else is at work here: what a killed run left would keep all later ones out.
        forget_files_in_use(paths)
        for file, text in ((paths.params, parcel.params), (paths.graph, parcel.graph), (paths.lock, parcel.lock)):
            if text:
                write_text(file, text)
            else:
                file.unlink(missing_ok=True)
        write_json(paths.inputs, parcel.inputs)
        remotes.write_planned(paths.state, parcel.versions)
        handover.use_remote(root, parcel.remote)
        yield paths


@contextmanager
def _locked(paths: Paths, on_line: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the workspace, after waiting for a run that is being ended, or was taken for dead and lives."""
    said = ""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(project_lock(paths))
                break
            except ResourceError as error:
                if str(error) != said:
                    said = str(error)
                    on_line(said)
                time.sleep(LOCK_POLL_S)
        yield


def run_errand(parcel: Parcel, errand: Errand, on_line: Callable[[str], None]) -> dict[str, Any]:
    """Run a stage here and push what it makes.

    Returns:
        {"ran": whether its process ran, or else a known result was taken, "entry": its entry for dvc.lock,
        "host": this machine, "seconds": all of it took}

    Raises:
        NotInRemote: If what the stage reads cannot be had.
        RegraftError: If this machine has another version of Regraft, or lacks something that the stage reads.
        StageFailed: As for `flows.pipeline.run_stage`.
    """
    started = time.monotonic()
    with unpacked(parcel, on_line) as paths:
        _require_same(paths, errand.stage)
        ran = perform(paths, parcel.home, errand, on_line)
        entry = handover.lock_entry(paths.root, errand.stage)
    return {"ran": ran, "entry": entry, "host": socket.gethostname(), "seconds": round(time.monotonic() - started, 1)}


def perform(paths: Paths, home: str, errand: Errand, on_line: Callable[[str], None]) -> bool:
    """Fetch what a stage reads, run it unless the remote knows its result, and push that; say whether it ran.

    Args:
        paths: The project, or a workspace of it.
        home: See `home_of`.
        errand: The stage, and how to run it.
        on_line: Is told what goes on.

    Raises:
        NotInRemote: If what the stage reads cannot be had.
        StageFailed: As for `flows.pipeline.run_stage`.
    """
    root, name, ran = paths.root, errand.stage, False
    if errand.repair and handover.holds(root, name):
        on_line(f"what stage {name} made is in the cache of {socket.gethostname()}, and is copied into the remote")
        handover.push(root, name, repair=True)
        return False
    handover.fetch_inputs(root, name)
    known = not errand.force and handover.restore(root, name)
    with checkpoints.mirrored(paths, home, name, None if known else errand.checkpoints_s, on_line):
        if not known:
            options: dict[str, Any] = {"timeout_s": errand.timeout_s, "gpus": errand.gpus, "on_line": on_line}
            ran = pipeline.run_stage(root, name, force=errand.force, **options)
        handover.push(root, name, repair=errand.repair)
    return ran


def publish(
    parcel: Parcel, lineage: dict[str, str], fingerprint: str, tracking: str, on_line: Callable[[str], None]
) -> dict[str, Any]:
    """Register and judge the project's model from here.

    Args:
        parcel: The project.
        lineage: Tags of the version.
        fingerprint: Of the model, where the run was planned; see `regraft.fingerprint.release_fingerprint`.
        tracking: Where MLflow is, unless this machine's MLFLOW_TRACKING_URI says else.
        on_line: Is told what goes on.

    Returns:
        {"publication": see `regraft.registry.register.Publication`, "metrics": what reports/metrics.json holds}

    Raises:
        RegraftError: If this machine would register it under another fingerprint.
        NotInRemote: If what the stages made cannot be had.
    """
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking)
    with unpacked(parcel, on_line) as paths:
        handover.fetch_below(paths.root, [paths.reports, paths.serving, paths.prepared])
        if release_fingerprint(paths) != fingerprint:
            raise RegraftError(
                f"the worker on {socket.gethostname()} would wrap the model with other code or libraries than the run "
                "that sent it: install the same commit with the same lock file on both, and restart the worker."
            )
        done = register(paths, load_settings(paths.params), lineage, fingerprint)
        return {"publication": done.as_json(), "metrics": read_json(paths.reports / "metrics.json")}


def _require_same(paths: Paths, stage: str) -> None:
    """Raise RegraftError unless this machine has the code, and what else lies outside a project, that was planned."""
    here, planned = code_fingerprint(stage), read_json(paths.inputs)["code"].get(stage, {})
    differ = sorted(name for name in here.keys() | planned.keys() if here.get(name) != planned.get(name))
    if differ:
        named = ", ".join(differ[:MOST_NAMED]) + (f" and {len(differ) - MOST_NAMED} more" * (len(differ) > MOST_NAMED))
        raise RegraftError(
            f"the worker on {socket.gethostname()} runs another version of Regraft than the run that sent it stage "
            f"{stage}; these differ: {named}. Install the same commit with the same lock file on both, and restart the "
            "worker."
        )
    if moved := moved_inputs(paths, load_settings(paths.params), stage):
        raise RegraftError(
            f"{' and '.join(moved)} that stage {stage} reads on {socket.gethostname()} differs from what the run saw "
            "where it was planned. Make them equal, or name what lies where every worker can read it."
        )
