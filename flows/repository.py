"""A project's DVC repository: made, opened, and kept in order.

DVC's Python interface is not officially stable, so it is used by four modules here and nowhere else, at one pinned
version: this one, `pipeline` (stages), `imports` (sources at a URL) and `handover` (data from machine to machine).
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from dvc_objects.fs.generic import test_links

from regraft.errors import RegraftError
from regraft.paths import Paths


def start_project(root: Path) -> None:
    """Make `root` a DVC project of its own, inside a git repository or not.

    Raises:
        RegraftError: If DVC refuses.
        OSError: If the disk is full or cannot be written to. In both cases nothing of DVC's stays behind.
    """
    quiet_dvc()

    def git_agrees(*arguments: str) -> bool:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False).returncode == 0

    in_git = git_agrees("rev-parse") and not git_agrees("check-ignore", "--quiet", ".")
    is_top = (root / ".git").exists()
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, root / ".dvc", ignore_errors=True)
        try:
            Repo.init(str(root), no_scm=not in_git, subdir=in_git and not is_top).close()
        except DvcException as error:
            raise RegraftError(f"DVC cannot make a project of {root}: {chain(error)}") from error
        with Repo(str(root)) as repo, repo.config.edit("repo") as config:
            config["core"] |= {"analytics": False, "check_update": False}
            config["cache"] = {"type": ["reflink", "hardlink", "symlink", "copy"]}
        undo.pop_all()


def borrow_cache(root: Path, lender: Path) -> None:
    """Make `root` a DVC project that uses the cache and the remotes of the project `lender`."""
    quiet_dvc()
    Repo.init(str(root), no_scm=True).close()
    with Repo(str(lender)) as repo:
        cache, remotes_of = repo.cache.local_cache_dir, repo.config["remote"]
        core = {name: repo.config["core"][name] for name in ("remote",) if name in repo.config["core"]}
        links = repo.config["cache"].get("type")
    with Repo(str(root)) as repo, repo.config.edit("local") as config:
        config["core"] = {"analytics": False, "check_update": False, **core}
        config["cache"] = {"dir": str(cache), **({"type": links} if links else {})}
        config["remote"] = dict(remotes_of)


def cache_link_type(root: Path) -> str:
    """Return how DVC puts cached files into the project here: reflink, hardlink, symlink or copy."""
    with open_repository(Paths(root)) as repo:
        cache = repo.cache.local
        possible = test_links(cache.cache_types, cache.fs, cache.path, repo.fs, str(root / "probe"))
        return str(possible[0]) if possible else "copy"


@contextlib.contextmanager
def open_repository(paths: Paths) -> Iterator[Repo]:
    """Open the project's DVC repository with the project as current folder, which DVC's run cache needs."""
    before = Path.cwd()
    if not (paths.root / ".dvc").is_dir():
        raise RegraftError(f"{paths.root} is not a project (it has no .dvc folder); make one with `regraft init`.")
    quiet_dvc()
    os.chdir(paths.root)
    try:
        with Repo(str(paths.root), _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        advice = (
            " If dvc.lock was damaged, take it back from git, or delete it: the next run makes it anew."
            if paths.lock.name in str(error)
            else ""
        )
        raise RegraftError(f"DVC cannot use {paths.root}: {error}.{advice}") from error
    finally:
        os.chdir(before)


def forget_files_in_use(paths: Paths) -> None:
    """Delete DVC's list of files in use: to be called where nobody but the caller works on the project.

    What a killed run left there would keep all later ones out, if its process id is another process's by now.
    """
    (paths.root / ".dvc" / "tmp" / RWLOCK_FILE).unlink(missing_ok=True)


def drop_broken_lock(paths: Paths) -> bool:
    """Delete DVC's list of files in use if it is cut short, with which DVC refuses to run; return whether it was.

    A process killed while writing it leaves it so. Nobody else uses it now: the project's lock is held.
    """
    file = paths.root / ".dvc" / "tmp" / RWLOCK_FILE
    try:
        json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return False
    except json.JSONDecodeError:
        file.unlink()
        return True
    return False


def quiet_dvc() -> None:
    """Keep the messages of DVC and its web client back: what matters of them arrives as an exception."""
    for name in ("dvc", "dvc_data", "dvc_objects", "aiohttp_retry"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def discard_damaged_files(repo: Repo, out: Output) -> int:
    """Delete those files of `out` in the cache that are no longer what was put there; return how many."""
    recorded, damaged = out.get_obj(), 0
    files = {info.value for _, _, info in recorded} if isinstance(recorded, Tree) else set()
    for digest in sorted(files | {out.hash_info.value}):
        with contextlib.suppress(FileNotFoundError):  # then there is nothing to trust
            try:
                HashFileDB.check(repo.cache.local, digest)
            except ObjectFormatError:  # by then it is deleted
                damaged += 1
    return damaged


def chain(error: BaseException | None) -> str:
    """Return the message of `error` and those of its causes, in one line."""
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__
    return ": ".join(part for part in parts if part)
