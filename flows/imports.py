"""Sources at a URL: which version their server has, and DVC's import of it into a project."""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dvc.dependency.base import DependencyDoesNotExistError
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.fs import parse_external_url
from dvc.repo import Repo
from dvc_data.hashfile.meta import Meta

from flows.repository import chain, discard_damaged_files, quiet_dvc
from regraft.data import remotes, sources
from regraft.errors import DISK_ERRORS, DataError, RegraftError, ResourceError
from regraft.fingerprint import hash_json
from regraft.paths import Paths
from regraft.settings import Settings, load_settings

# How long a server may take to say which version of a file it has.
LOOK_TIMEOUTS_S = {"connect_timeout": 5, "read_timeout": 5}


def check_remotes(texts: Sequence[str], root: Path) -> None:
    """Ask the servers of those sources that are remote whether they have them, before there is a project at `root`.

    Raises:
        RegraftError: If a source is none, is not there, or its server does not answer.
    """
    quiet_dvc()
    for source in sources.parse_all(texts, Path.cwd(), root).values():
        if source.url and not source.url.startswith("remote:"):  # those are defined in a project
            remote_version(source.url, None)


def look_at_remotes(repo: Repo, paths: Paths, settings: Settings) -> None:
    """Note the version of each remote source; where its server is silent, that of the copy at hand.

    Raises:
        ResourceError: If a server does not answer and there is no copy.
        DataError: If a server says that there is no such file, or does not let us have it.
    """
    urls = [source.url for source in sources.parse_all(settings.download.sources, paths.root).values() if source.url]
    versions: dict[str, dict[str, Any]] = {}
    for url in urls:
        try:
            versions[url] = remote_version(url, repo.config)
        except ResourceError as error:
            known = remotes.imported_version(remotes.copy_of(url, paths.root))
            if known is None:
                raise
            _warn_once(f"warning: {error} Until then the copy that this project has counts as unchanged.")
            versions[url] = known
        if versions[url].get("modified", "") is None:
            _warn_once(
                f"warning: the server of {url} says neither which version it has nor when that changed, so a change "
                "that leaves its size is not noticed; `regraft run --force` of the first stage fetches it anew."
            )
    if urls:
        remotes.write_planned(paths.state, versions)


def reads_source(repo: Repo, name: str) -> bool:
    """Return whether stage `name` depends on the source's content."""
    stage = repo.stage.load_one("dvc.yaml", name)
    return any(isinstance(dep, ParamsDependency) and "source" in dep.params for dep in stage.deps)


def import_remotes(repo: Repo, paths: Paths, *, force: bool, on_line: Callable[[str], None]) -> None:
    """Have DVC import what was planned with and is not at hand: into its cache, with a .dvc file that says what it is.

    Args:
        repo: The project's repository, with the project as current folder.
        paths: The project.
        force: Whether to import also what is at hand.
        on_line: Receives what is said about it.

    Raises:
        ResourceError: If a server does not answer, or has changed a file since planning.
        DataError: If a server says that there is no such file, or does not let us have it.
    """
    for source in sources.parse_all(load_settings(paths.params).download.sources, paths.root).values():
        if source.url is None:
            continue
        url, copy = source.url, source.path
        planned = remotes.planned_version(paths.state, url)
        if not force and remotes.imported_version(copy) == planned and _is_at_hand(repo, copy):
            continue
        _require_version(repo, url, planned)
        on_line(f"importing {url}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = repo.imp_url(url, out=str(copy.relative_to(paths.root)), force=True)
        except backend_errors() as error:
            raise _not_imported(url, error) from error
        _require_version(repo, url, planned)
        record.meta = {"version": planned}
        record.dump()


def _is_at_hand(repo: Repo, copy: Path) -> bool:
    """Return whether the copy of a remote is as DVC recorded it, after putting it back from the cache if need be."""
    out = repo.stage.load_one(str(remotes.record_of(copy))).outs[0]
    if not out.status():
        return True
    if discard_damaged_files(repo, out) or out.changed_cache():
        return False
    out.checkout(force=True)
    return True


def _require_version(repo: Repo, url: str, planned: dict[str, Any]) -> None:
    if remote_version(url, repo.config) != planned:
        raise ResourceError(f"{url} changed after this run was planned; run again.")


def remote_version(url: str, config: Any) -> dict[str, Any]:
    """Return what tells this version of `url` from another, as its server says, without fetching it.

    Args:
        url: Of a file or a folder.
        config: DVC's configuration of the project, which may say how to log in; None without a project.

    Raises:
        ResourceError: If the server does not answer within seconds, or says that it cannot now.
        DataError: If it says that there is no such file, or does not let us have it; or means to ask it are missing.
    """
    scheme = url.partition("://")[0].lower()
    timeouts = LOOK_TIMEOUTS_S if scheme in ("http", "https", "s3") else {}
    try:
        fs, path = parse_external_url(url, timeouts, config)
    except ImportError as error:
        extra = remotes.EXTRAS[scheme] or "s3, ssh, ..."
        raise DataError(
            f"{url}: DVC lacks what it takes to fetch from there ({error}). "
            f"Install it beside Regraft: `pip install 'dvc[{extra}]'`."
        ) from error
    except DvcException as error:
        raise DataError(f"{url}: {chain(error)}. Check the URL, and `dvc remote list` in the project.") from error
    fs.SESSION_RETRIES = 1  # of HTTP; five would keep a person waiting
    try:
        info = fs.info(path)
        if info["type"] != "directory":
            return _version_of(fs.protocol, info)
        names = sorted(fs.find(path))
        versions = [_version_of(fs.protocol, info) for info in fs.info(names)]
    except backend_errors() as error:
        raise _not_had(url, error) from error
    listed = dict(zip((fs.relpath(name, path) for name in names), versions, strict=True))
    return {"files": len(listed), "digest": hash_json(listed)}


def backend_errors() -> tuple[type[Exception], ...]:
    """Return what DVC, its client for HTTP, and the clients for S3 and SSH that may be installed beside it raise."""
    from aiohttp import ClientError

    others = (("botocore.exceptions", "BotoCoreError"), ("asyncssh", "Error"), ("asyncssh", "KeyImportError"))
    installed = [getattr(sys.modules[module], name) for module, name in others if module in sys.modules]
    return (OSError, DvcException, ClientError, *installed)


def _version_of(protocol: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return what a server says of a file: its ETag or version if it has one, else size and time of change."""
    meta = Meta.from_info(info, protocol)
    for key, value in (("version_id", meta.version_id), ("etag", meta.etag or meta.checksum), ("md5", meta.md5)):
        if value:
            return {key: str(value)}
    modified = info.get("Last-Modified") or info.get("LastModified") or info.get("mtime")
    return {"bytes": meta.size, "modified": None if modified is None else str(modified)}


def _not_imported(url: str, error: Exception) -> RegraftError:
    """Return a message for what DVC or a backend raised when it imported `url`."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in DISK_ERRORS):
        cause = cause.__cause__
    if cause is not None:
        return ResourceError(f"{url} could not be stored: {cause}. Make room or check the disk; then run again.")
    if isinstance(error, DependencyDoesNotExistError):  # it was there a moment ago
        return ResourceError(f"{url} vanished while it was imported; run again.")
    if isinstance(error, DvcException):
        return RegraftError(f"DVC cannot import {url}: {chain(error)}")
    return _not_had(url, error)


def _not_had(url: str, error: Exception) -> RegraftError:
    """Return a message for what a backend raised when it was asked for `url`: final if the server says no, else not."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "status"):
        cause = cause.__cause__
    status = getattr(cause, "status", None)
    if status in (401, 403) or isinstance(error, PermissionError):
        return DataError(
            f"{url} may not be fetched: its server answers {status or error}. If it wants a login, put that in DVC's "
            "own settings (`dvc remote add`, `dvc remote modify --local`) and write remote://NAME/FILE for the URL."
        )
    if (status is not None and 400 <= status < 500 and status not in (408, 425, 429)) or (
        status is None and isinstance(error, FileNotFoundError) and error.__cause__ is None
    ):
        said = f"its server answers {status}" if status else "its server knows no such file"
        return DataError(f"{url} does not exist: {said}. Correct the source, or put it back there.")
    reason = re.sub(r" ssl:\w+", "", str(error.__cause__ or error)) or type(error.__cause__ or error).__name__
    said = f"answers {status}" if status else f"does not answer ({reason})"
    return ResourceError(f"{url} cannot be had now: its server {said}. Check the URL, or try again later.")


@cache
def _warn_once(message: str) -> None:
    """Log a warning, but not again when the same process plans again."""
    logging.getLogger(__name__).warning(message)
