"""Services and projects of a benchmark's own, which it stops and deletes at its end."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.projects import Project
from regraft import services
from regraft.processes import with_mark
from tests.file_server import FileServer
from tests.project import draw_images

PATIENCE_S = 900.0
QUICK = {
    "backbone.name": "cnn_small",
    "backbone.mode": "scratch",
    "embed.image_size_px": 48,
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "finetune.learning_rate": 0.001,
    "evaluate.bootstrap_samples": 100,
}


@dataclass(frozen=True)
class Stand:
    """Services in a state folder of their own, and a server of files from which all machines can download."""

    folder: Path
    images: str  # address of an archive of class folders

    def regraft(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-P", "-m", "regraft.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=PATIENCE_S)

    def project(self, name: str, mode: str) -> Project:
        """Make a small project with a remote, deploy it, and run it once."""
        project = Project(self.folder / name)
        self.regraft("init", str(project.root), "--source", f"folder:{self.images}", "--kind", "image", "--name", name)
        for setting, value in (QUICK | {"placement.mode": mode}).items():
            project.change(setting, value)
        dvc = [sys.executable, "-m", "dvc", "--cd", str(project.root)]
        subprocess.run(
            [*dvc, "remote", "add", "-d", "store", str(self.folder / "store")], check=True, capture_output=True
        )
        self.regraft("deploy", "--root", str(project.root))
        self.regraft("run", "--root", str(project.root))
        return project

    def prefect(self, path: str, **body: object) -> Any:
        """Post to the Prefect server, and return its answer."""
        address = services.load()["prefect"].address
        return httpx.post(f"{address}/{path}", json=body, timeout=60.0).raise_for_status().json()


@contextmanager
def stand() -> Iterator[Stand]:
    """Start services with `regraft up`; all of it is stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-stand-"))
    os.environ["REGRAFT_STATE"] = str(folder / "state")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    draw_images(folder / "images")
    server = FileServer()
    archive = shutil.make_archive(str(folder / "images"), "zip", folder / "images")
    server.files["/images.zip"] = Path(archive).read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Stand(folder, server.url("/images.zip"))
    try:
        made.regraft("up", "--prefect-port", str(_free_port()), "--mlflow-port", str(_free_port()))
        yield made
    finally:
        made.regraft("down")
        server.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def started_by(service: str) -> list[psutil.Process]:
    """Return the processes of a service and what they started."""
    return with_mark(services.mark_of(service))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
