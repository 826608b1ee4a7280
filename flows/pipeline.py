"""The graph in dvc.yaml: what is stale and why, run one stage, record it."""

import contextlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.exceptions import StageCmdFailedError
from dvc_data.hashfile import load
from dvc_data.hashfile.checkout import CheckoutError, checkout
from dvc_data.hashfile.hash_info import HashInfo

from flows.beside import repeated
from flows.imports import import_remotes, look_at_remotes, reads_source
from flows.repository import chain, discard_damaged_files, drop_broken_lock, open_repository
from regraft import progress
from regraft.errors import INTERRUPTED, RegraftError, ResourceError
from regraft.fingerprint import refresh_inputs
from regraft.gpus import leased
from regraft.paths import REPOSITORY, Paths
from regraft.quiet import NOISE
from regraft.settings import load_settings

TAIL_LINES = 15
DEFAULT_POOL = "cpu"  # of a stage that names none
# For glibc's allocator, in the processes of stages. Left to itself it gives the large blocks of a training step back to
# the kernel and takes them anew in the next one, and a third of the processor time goes into page faults:
# `python -m benchmarks.page_faults` prints how much.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2 * 10**9),
}


@dataclass(frozen=True)
class StagePlan:
    """A stage of the graph as planning found it."""

    name: str
    pool: str
    timeout_s: int
    retries: int
    gpus: int
    stale: bool
    why: tuple[str, ...]


class StageFailed(RegraftError):
    """A stage's process ended with an error; the message holds its last lines."""

    def __init__(self, message: str, exit_code: int, *, was_killed: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.was_killed = was_killed

    @property
    def is_transient(self) -> bool:
        """Whether the same work may succeed if it is tried again at once (disk, network, server; not memory)."""
        return self.exit_code == ResourceError.exit_code and not self.was_killed


def plan(
    root: Path, *, force: tuple[str, ...] = (), refresh: bool = True, data_elsewhere: bool = False
) -> list[StagePlan]:
    """Return the stages in running order, each clean or stale and why.

    A stage below a stale one counts as stale; when its turn comes it is skipped if its inputs came out the same.

    Args:
        root: The project's folder.
        force: Names of stages to run even if clean.
        refresh: Whether to look at code and source anew; not while a run is at work, which would record what it did
            not run with.
        data_elsewhere: Whether what stages made need not be here: what dvc.lock says of it counts.

    Raises:
        RegraftError: If the settings, the source or the graph are invalid, or `force` names no stage.
    """
    paths = Paths(root)
    settings = load_settings(paths.params)
    with open_repository(paths) as repo:
        stages = _ordered(repo)
        names = [stage.name for stage in stages]
        if unknown := [name for name in force if name not in names]:
            raise RegraftError(f"there is no stage {', '.join(unknown)}; dvc.yaml has {', '.join(names)}.")
        if refresh:
            look_at_remotes(repo, paths, settings)
            refresh_inputs(paths, settings, names)
        plans: list[StagePlan] = []
        for stage in stages:
            why = ["forced"] if stage.name in force else []
            why += _reasons(stage, stages if data_elsewhere else None)
            stale_before = {earlier.name for earlier in plans if earlier.stale}
            why += [f"runs after {name}" for name in _upstream(stage, stages) if name in stale_before]
            meta = stage.meta or {}
            pool = meta.get("pool", DEFAULT_POOL)
            plans.append(
                StagePlan(
                    name=stage.name,
                    pool=settings.placement.pool or pool,
                    timeout_s=int(meta.get("timeout_s", 0)),
                    retries=int(meta.get("retries", 0)),
                    gpus=settings.placement.gpus if pool != DEFAULT_POOL else 0,
                    stale=bool(why),
                    why=tuple(why),
                )
            )
        return plans


def is_stale(root: Path, name: str, *, data_elsewhere: bool = False) -> bool:
    """Return whether stage `name` must run, given what the stages before it left; `data_elsewhere` as for `plan`."""
    with open_repository(Paths(root)) as repo:
        stage = repo.stage.load_one("dvc.yaml", name)
        return bool(_reasons(stage, repo.stage.load_all("dvc.yaml") if data_elsewhere else None))


def run_stage(
    root: Path,
    name: str,
    *,
    force: bool = False,
    timeout_s: int = 0,
    gpus: int | None = None,
    on_line: Callable[[str], None] = print,
) -> bool:
    """Run stage `name` through DVC and record it in dvc.lock; return False if DVC had its result already.

    Args:
        root: The project's folder.
        name: The stage.
        force: Run it even if it is clean.
        timeout_s: Stop its process after so many seconds; 0 never.
        gpus: How many of this machine's GPUs it gets, if there are any; it waits until so many are free. None: it sees
            what this process sees, and nothing is leased.
        on_line: Receives each line the stage's process prints, as it comes.

    Raises:
        StageFailed: If the process ends with an error; nothing is recorded.
        ResourceError: If the disk gives out while outputs are moved into the cache, or a remote source cannot be had.
        DataError: If a remote source is gone.
    """
    paths = Paths(root)
    log = paths.logs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    environment = {
        **{name: os.environ.get(name, value) for name, value in ALLOCATOR.items()},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "REGRAFT_LOG": str(log),
        "REGRAFT_PARENT_PID": str(os.getpid()),
        "REGRAFT_TIMEOUT_S": str(timeout_s),
    }
    with _devices(gpus, on_line) as devices, open_repository(paths) as repo, _follow(log, on_line):
        if drop_broken_lock(paths):
            on_line("a run was killed while it wrote DVC's list of files in use: made anew")
        if damaged := _discard_damaged(repo, name, even_if_unchanged=force):
            on_line(f"{damaged} file(s) in the DVC cache were changed through their links in the project: made again")
        if reads_source(repo, name):
            import_remotes(repo, paths, force=force, on_line=on_line)
        try:
            repo.reproduce(name, single_item=True, force=force, run_env=environment | devices)
        except DvcException as error:
            raise _explain(error, name, log, timeout_s) from error
        except OSError as error:
            raise _not_stored(name, error, log) from error
    for scratch in paths.scratch.glob(f"*{name}-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    return log.exists()


def _devices(gpus: int | None, on_line: Callable[[str], None]) -> contextlib.AbstractContextManager[dict[str, str]]:
    return contextlib.nullcontext({}) if gpus is None else leased(gpus, on_line)


def made_by_no_stage(root: Path) -> dict[str, list[str]]:
    """Return, by stage, what it reads of the project that no stage makes; those that read nothing else are left out."""
    with open_repository(Paths(root)) as repo:
        stages = repo.stage.load_all("dvc.yaml")
        made = {out.fs_path for stage in stages for out in stage.outs}
        found = {
            stage.name: [
                dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency) and dep.fs_path not in made
            ]
            for stage in stages
        }
        return {name: paths for name, paths in found.items() if paths}


def stage_pools(root: Path) -> list[str]:
    """Return the names of the work pools on which the project's stages run, each once."""
    override = load_settings(Paths(root).params).placement.pool
    with open_repository(Paths(root)) as repo:
        return sorted({override or (stage.meta or {}).get("pool", DEFAULT_POOL) for stage in _ordered(repo)})


def makers(root: Path, outputs: Sequence[str]) -> list[str]:
    """Return the names of the stages that make `outputs` (paths as in dvc.yaml), in running order."""
    with open_repository(Paths(root)) as repo:
        return [stage.name for stage in _ordered(repo) if any(out.def_path in outputs for out in stage.outs)]


def ancestors(root: Path, names: Sequence[str]) -> list[str]:
    """Return the stages whose outputs the stages `names` read, directly or through others; not `names` themselves."""
    with open_repository(Paths(root)) as repo:
        stages = _ordered(repo)
        found = set(names)
        for stage in reversed(stages):
            if stage.name in found:
                found.update(_upstream(stage, stages))
        return [stage.name for stage in stages if stage.name in found.difference(names)]


def reads_inputs(root: Path, name: str) -> set[str]:
    """Return which keys of `.regraft/inputs.json` stage `name` depends on, e.g. {"source", "code.download"}."""
    with open_repository(Paths(root)) as repo:
        deps = repo.stage.load_one("dvc.yaml", name).deps
        return {
            key
            for dep in deps
            if isinstance(dep, ParamsDependency) and Path(dep.fs_path) == Paths(root).inputs
            for key in dep.params
        }


def run_before(root: Path, name: str, *, on_line: Callable[[str], None]) -> None:
    """Run what is stale of the stages that come before `name`; arguments and errors as for `plan` and `run_stage`."""
    for stage in itertools.takewhile(lambda stage: stage.name != name, plan(root)):
        if stage.stale and is_stale(root, stage.name):
            on_line(f"running stage {stage.name}")
            run_stage(root, stage.name, timeout_s=stage.timeout_s, gpus=stage.gpus, on_line=on_line)


def restore_output(root: Path, output_hash: str, folder: Path) -> None:
    """Put an output of an earlier run into the missing `folder`, from the project's DVC cache.

    Args:
        root: The project's folder.
        output_hash: As dvc.lock has it, e.g. `3f...c2.dir`; see `regraft.fingerprint.locked_hash`.
        folder: Becomes a folder of links to the cache: read it, do not write to it.

    Raises:
        RegraftError: If the cache does not hold all of it.
    """
    with open_repository(Paths(root)) as repo:
        cache = repo.cache.local
        try:
            checkout(str(folder), repo.fs, load(cache, HashInfo("md5", output_hash)), cache, quiet=True)
        except (FileNotFoundError, CheckoutError) as error:
            raise RegraftError(
                f"the DVC cache of {root} does not hold {output_hash} any more, so that version cannot be read. "
                "If the project has a DVC remote, `dvc fetch --all-commits` may bring it back."
            ) from error


def restore_stages(root: Path, names: Sequence[str]) -> None:
    """Put the outputs of stages, as dvc.lock records them, into the project: from its cache, or from its remote.

    Raises:
        RegraftError: If neither holds all of them.
    """
    with open_repository(Paths(root)) as repo:
        try:
            if repo.config["core"].get("remote"):
                repo.fetch(targets=list(names))
            repo.checkout(targets=list(names), force=True)
        except (DvcException, FileNotFoundError) as error:
            raise RegraftError(
                f"what the stages {', '.join(names)} had made is no longer in the DVC cache, nor in a remote: "
                f"{chain(error)}"
            ) from error


def split_stages(root: Path, output: Path) -> tuple[list[str], list[str]]:
    """Return the names of the stages, in running order, up to the one that makes `output`, and those after it."""
    with open_repository(Paths(root)) as repo:
        stages = _ordered(repo)
        made = [place for place, stage in enumerate(stages) if any(Path(out.fs_path) == output for out in stage.outs)]
        names = [stage.name for stage in stages]
        return names[: made[0] + 1], names[made[0] + 1 :]


def _discard_damaged(repo: Repo, name: str, *, even_if_unchanged: bool) -> int:
    """Delete those files in the cache that no longer are what stage `name` once made; return how many.

    Outputs are links to the cache. They are read-only, but root writes through them all the same, and DVC trusts every
    file in the cache that is read-only: it would bring the changed file back as the stage's result.
    """
    stage = repo.stage.load_one("dvc.yaml", name)
    return sum(
        discard_damaged_files(repo, out) for out in stage.outs if out.hash_info and (even_if_unchanged or out.status())
    )


def _ordered(repo: Repo) -> list[PipelineStage]:
    """Return the stages of the project's dvc.yaml, each after those whose outputs it reads, else as there."""
    waiting = list(repo.stage.load_all("dvc.yaml"))
    if not waiting:
        raise RegraftError(f"dvc.yaml names no stage. Copy {REPOSITORY / 'dvc.yaml'} over it.")
    ordered: list[PipelineStage] = []
    while waiting:
        ready = next((stage for stage in waiting if not _upstream(stage, waiting)), None)
        if ready is None:
            raise RegraftError(f"dvc.yaml: {', '.join(stage.name for stage in waiting)} read each other's outputs.")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _upstream(stage: PipelineStage, stages: list[PipelineStage]) -> list[str]:
    """Return the names of the stages that make a file or folder `stage` reads."""
    reads = [Path(dep.fs_path) for dep in stage.deps]
    return [
        other.name
        for other in stages
        if other is not stage and any(path.is_relative_to(out.fs_path) for out in other.outs for path in reads)
    ]


def _reasons(stage: PipelineStage, makers: list[PipelineStage] | None) -> list[str]:
    """Return why `stage` must run, in a person's words; empty if it need not.

    Args:
        stage: The stage.
        makers: None: the files here count; else all stages: what dvc.lock says of their outputs counts.
    """
    if not any(out.hash_info for out in stage.outs):
        return ["has never run"]
    why = ["its definition in dvc.yaml changed"] if stage.changed_stage() else []
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            recorded = dep.hash_info.value if dep.hash_info else {}
            why += _differences(_without_prefix(recorded), _without_prefix(dep.read_params()))
        elif makers is not None:
            made = [out.hash_info for other in makers for out in other.outs if out.fs_path == dep.fs_path]
            why += [f"{dep.def_path} is modified"] if made != [dep.hash_info] else []
        else:
            why += [f"{path} is {state}" for path, state in dep.workspace_status().items()]
    for out in stage.outs:
        if makers is None:
            why += [f"its output {path} is {state}" for path, state in out.status().items()]
        elif not out.hash_info:
            why.append(f"its output {out.def_path} is new")
    return why


def _without_prefix(values: dict[str, Any]) -> dict[str, Any]:
    """Return `code.finetune` as `code`, so that its content reads `code.regraft/...`, and the rest as it is."""
    return {"code" if key.startswith("code.") else key: value for key, value in values.items()}


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Return a line for each value that differs between two nested dictionaries."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        join = ": " if where == "code" else "."
        return [
            line
            for key in keys
            for line in _differences(before.get(key), after.get(key), f"{where}{join}{key}" if where else str(key))
        ]
    if where.startswith("code: "):
        state = "is new" if before is None else "is gone" if after is None else "changed"
        versions = (
            f" from {before} to {after}" if state == "changed" and "/" not in where and "default" not in where else ""
        )
        return [f"{where} {state}{versions}"]
    return [f"{where} changed from {_shorten(before)} to {_shorten(after)}"]


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _explain(error: DvcException, name: str, log: Path, timeout_s: int) -> RegraftError:
    """Return the failure of stage `name` as its last lines and an exit code."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, StageCmdFailedError | OSError):
        cause = cause.__cause__
    if isinstance(cause, OSError):
        return _not_stored(name, cause, log)
    if cause is None:
        return RegraftError(f"stage {name} could not be run: {chain(error)}")
    status = int(str(cause).rpartition("exited with ")[2])  # DVC keeps the exit code in its message only
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if errors and status in (RegraftError.exit_code, ResourceError.exit_code):
        return StageFailed(f"stage {name}: " + "\n".join(lines[errors[-1] :]).removeprefix("error: "), status)
    if status in (-signal.SIGINT, 128 + signal.SIGINT):
        return StageFailed(f"stage {name} was interrupted; run again to go on from its last checkpoint", INTERRUPTED)
    exit_code, was_killed = 1, False
    if any("No space left on device" in line for line in lines):
        what, exit_code = f"ran out of disk space. {_room(log)}", ResourceError.exit_code
    elif any(line.startswith("Timeout (") for line in lines):
        what = f"was stopped after {timeout_s} s (`timeout_s` in dvc.yaml)"
    elif status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        was_killed = number == signal.SIGKILL
        what = (
            f"was killed by {signal.Signals(number).name if number in signal.valid_signals() else number} "
            "(the kernel does that when memory runs out); run again to go on from its last checkpoint"
        )
    else:
        what = f"failed with exit code {status}"
    if exit_code == ResourceError.exit_code:
        return StageFailed(f"stage {name} {what}", exit_code)
    tail = [f"  {line}" for line in lines if not progress.LINE.match(line) and not NOISE.match(line)][-TAIL_LINES:]
    said = "\n".join([f"stage {name} {what}. Its last lines, all of them in {log}:", *tail])
    return StageFailed(said, ResourceError.exit_code if was_killed else exit_code, was_killed=was_killed)


def _not_stored(name: str, error: OSError, log: Path) -> ResourceError:
    return ResourceError(f"stage {name} ran, but its outputs could not be stored: {error}. {_room(log)}")


def _room(log: Path) -> str:
    """Return how much room the disk has that holds the project, and what to do about it."""
    free_mb = shutil.disk_usage(log.parent).free / 1e6
    return f"The disk of {log.parent.parent.parent} has {free_mb:.0f} MB left; make room and run again."


@contextlib.contextmanager
def _follow(log: Path, on_line: Callable[[str], None]) -> Iterator[None]:
    """Hand each line that appears in the file `log` to `on_line`, from another thread, until the block ends."""
    rest, position = "", 0

    def read() -> None:
        nonlocal rest, position
        if not log.exists():
            return
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(position)
            text = rest + file.read()
            position = file.tell()
        *lines, rest = text.split("\n")
        hand_on(lines)

    def hand_on(lines: Sequence[str]) -> None:
        for line in lines:
            if not NOISE.match(line):
                on_line(line)

    with repeated(read, 0.2, f"follow {log.name}"):
        yield
    hand_on([rest] if rest else [])
