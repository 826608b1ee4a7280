"""Checkpoints of a stage in the DVC remote, so that another machine goes on where one died."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.beside import repeated
from flows.imports import backend_errors
from flows.repository import open_repository
from regraft.fingerprint import stage_fingerprint
from regraft.paths import Paths

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # of the remote, beside what DVC keeps there
UNFINISHED = (".part", ".tmp")  # files that are being written


@contextmanager
def mirrored(
    paths: Paths, home: str, stage: str, every_s: float | None, on_line: Callable[[str], None]
) -> Iterator[None]:
    """Keep the files that `stage` leaves in its scratch folder (not below it) in the remote while the block runs.

    Before, what another machine left there of the same work is fetched, unless there is some here; after a block that
    ends well it is deleted. A copy that fails is told, and does not stop the stage.

    Args:
        paths: The project.
        home: What tells it from others; see `flows.workspace.home_of`.
        stage: Its name; its inputs are those that it will run with.
        every_s: How often to look for new files; None: not at all, and the remote is left alone.
        on_line: Is told what was fetched, and what failed.
    """
    if every_s is None:
        yield
        return
    with open_repository(paths) as repo:
        remote = repo.cloud.get_remote(None, "push")
    here = paths.scratch_of(stage, stage_fingerprint(paths, stage))
    mirror = _Mirror(remote.fs, remote.fs.join(remote.path, FOLDER, home, here.name), here, on_line)
    mirror.fetch()
    with repeated(mirror.push, every_s, f"checkpoints of {stage}"):
        yield
    mirror.delete()


class _Mirror:
    """A scratch folder and its copy in a remote."""

    def __init__(self, fs: Any, there: str, here: Path, on_line: Callable[[str], None]) -> None:
        self.fs, self.there, self.here, self.on_line = fs, there, here, on_line
        self.pushed: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        if self.here.exists():
            return
        partial = self.here.with_name(f"fetched-{self.here.name}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if not self.fs.exists(self.there):
                return
            files = [file for file in self.fs.find(self.there) if not file.endswith(UNFINISHED)]
            for file in files:
                partial.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(file, str(partial / self.fs.name(file)))
        except backend_errors() as error:
            shutil.rmtree(partial, ignore_errors=True)
            self.on_line(f"checkpoints of another machine could not be fetched: {error}")
            return
        if files:
            partial.rename(self.here)
            self.on_line(f"going on from {len(files)} checkpoint file(s) that another machine left in the remote")

    def push(self) -> None:
        """Copy the files that are new or have changed, each under another name until it is whole."""
        for file in sorted(path for path in self.here.glob("*") if path.is_file()):
            name = file.name
            if name == "lock" or file.suffix in UNFINISHED:
                continue
            try:
                facts = file.stat()
                if self.pushed.get(name) == (facts.st_mtime_ns, facts.st_ino):
                    continue
                target = self.fs.join(self.there, name)
                with file.open("rb") as content:  # which stays what it was if the stage replaces the file meanwhile
                    self.fs.upload_fobj(content, f"{target}.part")
                self.fs.move(f"{target}.part", target)
                self.pushed[name] = (facts.st_mtime_ns, facts.st_ino)
            except FileNotFoundError:
                continue  # replaced or deleted in this moment; the next round sees what is there then
            except backend_errors() as error:
                self.on_line(f"a checkpoint could not be copied into the remote, and will be tried again: {error}")
                return

    def delete(self) -> None:
        try:
            if self.fs.exists(self.there):
                self.fs.rm(self.there, recursive=True)
        except backend_errors() as error:
            log.warning("checkpoints of a finished stage stay in the remote at %s: %s", self.there, error)
