"""Data from machine to machine: a DVC remote holds what stages made, small entries of dvc.lock say what that is."""

import contextlib
import io
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dvc.config import ConfigError, NoRemoteError, RemoteConfigError
from dvc.exceptions import DownloadError, DvcException, UploadError
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, RunCacheNotSupported
from dvc.stage.cache import _can_hash as has_run_cache
from dvc.stage.cache import _get_stage_hash as run_cache_key
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.db import HashFileDB, get_index
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from flows.imports import backend_errors
from flows.repository import chain, discard_damaged_files, open_repository
from regraft.errors import RegraftError, ResourceError
from regraft.paths import Paths

log = logging.getLogger(__name__)

# What a worker needs to find the same place; a login is its own.
HANDED_ON = (
    "url", "region", "endpointurl", "use_ssl", "ssl_verify", "listobjects", "port", "user", "projectname",
    "account_name", "endpoint", "allow_anonymous_login", "keyfile", "allow_agent", "auth", "timeout", "jobs",
    "read_timeout", "connect_timeout",
)  # fmt: skip

# Of Python (S3's client raises it for every 401 and 403), of S3's client and of SSH's.
REFUSALS = ("PermissionError", "NoCredentialsError", "PartialCredentialsError", "PermissionDenied")


class NotInRemote(RegraftError):
    """The remote does not hold what a stage made, or holds it damaged; `outputs` are the paths, as in dvc.yaml."""

    def __init__(self, message: str, outputs: Sequence[str]) -> None:
        super().__init__(message)
        self.outputs = tuple(outputs)


def remote_of(root: Path) -> dict[str, Any] | None:
    """Return the project's default DVC remote as {"name", "url", further options}, without secrets; None without one.

    Raises:
        RegraftError: If the default names a remote that is not defined, or whose URL is not fit to be sent.
    """
    with open_repository(Paths(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return None
        if name not in repo.config["remote"]:
            raise RegraftError(f"DVC's default remote {name!r} is not defined in {root}; see `dvc remote list`.")
        options = {key: value for key, value in repo.config["remote"][name].items() if key in HANDED_ON}
        url = urlsplit(str(options["url"]))
        if url.password is not None or url.scheme == "remote":
            what = "holds a password" if url.password is not None else "is given by way of another remote"
            raise RegraftError(
                f"the URL of DVC's remote {name!r} {what}, which cannot be sent to other machines. Write the plain "
                "address, and give each machine its login (`dvc remote modify --global`)."
            )
        return {"name": name, **options, "url": url.geturl()}


def use_remote(root: Path, remote: Mapping[str, Any]) -> None:
    """Make `remote` (see `remote_of`) the default one of the project `root`, every file out of it to be verified.

    What this machine's own DVC settings (`dvc remote modify --global`) say of a remote of that name is added.
    """
    options = {key: value for key, value in remote.items() if key != "name"} | {"verify": True}
    with open_repository(Paths(root)) as repo, repo.config.edit("repo") as config:
        config["core"]["remote"] = remote["name"]
        config["remote"][remote["name"]] = options


def lock_entry(root: Path, name: str) -> dict[str, Any]:
    """Return what dvc.lock says of stage `name`: a small JSON object."""
    with open_repository(Paths(root)) as repo:
        return dict(to_single_stage_lockfile(repo.stage.load_one("dvc.yaml", name)))


def record(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Write `entry`, made on another machine, into dvc.lock as that of stage `name`; its data need not be here.

    Raises:
        ResourceError: If it is not about the stage as dvc.yaml has it now.
    """
    with open_repository(Paths(root)) as repo, repo.lock:
        stage = repo.stage.load_one("dvc.yaml", name)
        about = {out["path"] for out in entry.get("outs", ())}
        if entry.get("cmd") != stage.cmd or about != {out.def_path for out in stage.outs}:
            raise ResourceError(f"what dvc.yaml says of stage {name} changed while it ran; run again.")
        StageLoader.fill_from_lock(stage, dict(entry))
        stage.dump(update_pipeline=False)


def fetch_inputs(root: Path, name: str) -> None:
    """Put what stage `name` reads of other stages into the project, from its cache or its remote.

    Raises:
        NotInRemote: If the remote does not hold all of it, or holds it damaged; nothing damaged is kept.
        ResourceError: If the remote does not answer.
    """
    with open_repository(Paths(root)) as repo:
        stage = repo.stage.load_one("dvc.yaml", name)
        read = {dep.fs_path for dep in stage.deps if dep.def_path}
        stages = repo.stage.load_all("dvc.yaml")
        _fetch(repo, [out for other in stages for out in other.outs if out.fs_path in read])


def fetch_below(root: Path, places: Sequence[Path]) -> None:
    """Put those outputs of all stages into the project that are one of `places`, or lie in one; else `fetch_inputs`."""
    with open_repository(Paths(root)) as repo:
        outs = [out for stage in repo.stage.load_all("dvc.yaml") for out in stage.outs]
        _fetch(repo, [out for out in outs if any(Path(out.fs_path).is_relative_to(place) for place in places)])


def _fetch(repo: Repo, outs: Sequence[Output]) -> None:
    """Put recorded outputs into the project."""
    lacking = [out for out in outs if out.changed_cache()]
    if lacking:
        with _answers(repo):
            try:
                repo.fetch(targets=_names(lacking))
            except NoRemoteError as error:
                raise NotInRemote(_not_there(lacking, "and the project has no DVC remote"), _names(lacking)) from error
            except DownloadError as error:
                log.debug("%s", error)  # it says how many files, and neither which nor why
                _require_remote(repo)
        if missing := [out for out in lacking if out.changed_cache()]:
            where = f"nor, whole and unchanged, in the DVC remote {_url(repo)}"
            raise NotInRemote(_not_there(missing, where), _names(missing))
    changed = [out.def_path for out in outs if out.status()]
    if changed:
        repo.checkout(targets=changed, force=True)


def missing(root: Path, names: Sequence[str]) -> list[str]:
    """Return those recorded outputs (paths as in dvc.yaml) of the stages `names` that the remote does not hold whole.

    That its files are undamaged is not looked at.

    Raises:
        ResourceError: If the remote does not answer.
    """
    with open_repository(Paths(root)) as repo, _answers(repo):
        remote = repo.cloud.get_remote_odb(None, "fetch")
        outs = [out for name in names for out in repo.stage.load_one("dvc.yaml", name).outs if out.hash_info]
        return _names([out for out in outs if not _is_held(remote, out.hash_info)])


def _is_held(remote: HashFileDB, recorded: HashInfo) -> bool:
    if not remote.exists(recorded.value):
        return False
    try:
        files = {info.value for _, _, info in Tree.load(remote, recorded)} if recorded.isdir else set()
    except ObjectFormatError:  # the list of its files is damaged
        return False
    return files.issubset(remote.oids_exist(files))


def holds(root: Path, name: str) -> bool:
    """Return whether the cache here holds all outputs of stage `name`, undamaged, as dvc.lock records them."""
    with open_repository(Paths(root)) as repo:
        outs = repo.stage.load_one("dvc.yaml", name).outs
        if not all(out.hash_info and not out.changed_cache() for out in outs):
            return False
        return sum(discard_damaged_files(repo, out) for out in outs) == 0


def check_remote(root: Path) -> None:
    """Write a small file into the project's remote, and delete it.

    Raises:
        RegraftError: If the remote refuses the login.
        ResourceError: If it does not answer, or takes nothing.
    """
    with open_repository(Paths(root)) as repo:
        _require_remote(repo, for_writing=True)


def _names(outs: Sequence[Output]) -> list[str]:
    return [out.def_path for out in outs]


def _not_there(outs: Sequence[Output], where: str) -> str:
    return f"{', '.join(_names(outs))} is not in the DVC cache of this machine, {where}"


def restore(root: Path, name: str) -> bool:
    """Record the result of stage `name` without running it, if the remote has one of the same inputs; say whether.

    Args:
        root: The project; what the stage reads is at hand.
        name: The stage.

    Raises:
        ResourceError: If the remote does not answer.
    """
    with open_repository(Paths(root)) as repo, _answers(repo), repo.lock:
        try:
            if not has_run_cache(repo.stage.load_one("dvc.yaml", name)):
                return False
            _pull_run_cache(repo, name)
            # Loaded anew: what dvc.lock says that it was made from decides whether its entry there still holds.
            stage = repo.stage.load_one("dvc.yaml", name)
            repo.stage_cache.restore(stage, pull=True)
        except (RunCacheNotFoundError, RunCacheNotSupported, RemoteConfigError, DownloadError):
            return False
        stage.save()
        stage.dump(update_pipeline=False)
        return True


def _pull_run_cache(repo: Repo, name: str) -> None:
    """Fetch what the remote knows of earlier runs of a stage with the same inputs; DVC would fetch it of all stages."""
    stage = repo.stage.load_one("dvc.yaml", name)
    stage.save_deps()
    remote = repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix")
    key = run_cache_key(stage)
    known = remote.fs.join(remote.path, "runs", key[:2], key)
    if remote.fs.protocol in ("http", "https") or not remote.fs.exists(known):
        return
    folder = Path(repo.stage_cache._get_cache_dir(key))
    folder.mkdir(parents=True, exist_ok=True)
    for file in remote.fs.find(known):
        remote.fs.get_file(file, str(folder / remote.fs.name(file)))


def _push_run_cache(repo: Repo, name: str) -> None:
    """Tell the remote which inputs stage `name` was run with last; DVC would copy that of all runs each time."""
    stage = repo.stage.load_one("dvc.yaml", name)
    remote = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
    if remote.fs.protocol in ("http", "https") or not has_run_cache(stage):
        return
    key = run_cache_key(stage)
    known = remote.fs.join(remote.path, "runs", key[:2], key)
    for file in sorted(Path(repo.stage_cache._get_cache_dir(key)).glob("*")):
        target = remote.fs.join(known, file.name)
        if not remote.fs.exists(target):
            remote.fs.put_file(str(file), target)


def push(root: Path, name: str, *, repair: bool = False) -> None:
    """Store the outputs of stage `name`, and which inputs they were made from, in the remote.

    Args:
        root: The project.
        name: The stage.
        repair: Look at every file of these outputs that the remote holds, and replace what is missing or damaged;
            else what it is known to hold is taken to be there.

    Raises:
        ResourceError: If the remote does not answer, or does not take everything.
    """
    with open_repository(Paths(root)) as repo, _answers(repo):
        repo.config["remote"][repo.config["core"]["remote"]]["verify"] = False  # it would read back all that it wrote
        if repair:
            _drop_damaged(repo, repo.stage.load_one("dvc.yaml", name))
        try:
            repo.push(targets=[name])
            _push_run_cache(repo, name)
        except UploadError as error:
            _require_remote(repo, for_writing=True)
            raise ResourceError(
                f"the DVC remote {_url(repo)} did not take {error.amount} file(s); run again."
            ) from error


def _drop_damaged(repo: Repo, stage: PipelineStage) -> None:
    """Delete from the remote what is damaged of the outputs of `stage`, and forget what it was known to hold."""
    remote = repo.cloud.get_remote_odb(None, "push")
    for out in stage.outs:
        held = out.get_obj()
        files = {info.value for _, _, info in held} if isinstance(held, Tree) else set()
        for digest in sorted(files | {out.hash_info.value}):
            with contextlib.suppress(FileNotFoundError, ObjectFormatError):  # a damaged one is deleted by then
                HashFileDB.check(remote, digest)
    with contextlib.closing(get_index(remote)) as index:
        index.clear()


@contextlib.contextmanager
def _answers(repo: Repo) -> Iterator[None]:
    """Turn what DVC and its clients raise if a remote cannot be used into one message.

    Raises:
        ResourceError: If it does not answer.
        RegraftError: If it refuses the login, its settings are wrong, or its client is not installed.
    """
    try:
        yield
    except (RegraftError, RunCacheNotFoundError):
        raise
    except ImportError as error:
        scheme = _url(repo).partition("://")[0]
        raise RegraftError(
            f"DVC lacks what it takes to use the remote {_url(repo)} ({error}). Install it beside Regraft, on every "
            f"machine: `pip install 'dvc[{scheme}]'`."
        ) from error
    except (ConfigError, NoRemoteError) as error:
        raise RegraftError(f"the DVC remote cannot be used: {chain(error)}. See `dvc remote list`.") from error
    except backend_errors() as error:
        if isinstance(error, DvcException) and not isinstance(error.__cause__, OSError):
            raise RegraftError(f"DVC cannot use the remote {_url(repo)}: {chain(error)}") from error
        if any(type(each).__name__ in REFUSALS for each in _causes(error)):
            raise RegraftError(
                f"the DVC remote {_url(repo)} refuses this machine's login: {chain(error) or type(error).__name__}. "
                "Renew it (`dvc remote modify --global NAME ...`, or what the store's own client reads, as "
                "AWS_ACCESS_KEY_ID), or its right to write; then run again."
            ) from error
        raise ResourceError(
            f"the DVC remote {_url(repo)} cannot be used now: {chain(error) or type(error).__name__}. Check that it "
            "can be reached from this machine, and the login (`dvc remote modify --global NAME ...`); then run again."
        ) from error


def _require_remote(repo: Repo, *, for_writing: bool = False) -> None:
    """Raise RegraftError unless the remote answers: DVC counts failed files, and does not say why."""
    with _answers(repo):
        remote = repo.cloud.get_remote_odb(None, "fetch")
        remote.fs.exists(remote.path)
        if for_writing:
            probe = remote.fs.join(remote.path, f"probe-{secrets.token_hex(8)}")
            remote.fs.upload_fobj(io.BytesIO(b"Regraft looks whether it may write here."), probe)
            remote.fs.rm(probe)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _url(repo: Repo) -> str:
    name = repo.config["core"].get("remote")
    return str(repo.config["remote"].get(name, {}).get("url", name))
