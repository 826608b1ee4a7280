"""Checks of this machine and project that explain most failures before they happen."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError
from regraft.paths import Paths
from regraft.settings import load_settings

PACKAGES = ("tensorflow", "keras", "keras-hub", "tensorflow-datasets", "prefect", "fastapi", "mlflow", "dvc")
FREE_BYTES = 2 * 1024**3


def check(paths: Paths) -> list[dict[str, Any]]:
    """Return one finding a check: {"check", "ok", "found", "advice"}; nothing is changed."""
    checks: dict[str, Callable[[], tuple[str, bool, str]]] = {
        "python": _python,
        "packages": _packages,
        "prefect server imports": _prefect_server,
        "project": lambda: _project(paths),
        "dvc cache links": lambda: _links(paths),
        "disk": lambda: _disk(paths.root),
        "devices": _devices,
        "tracking server": lambda: _tracking(paths),
    }
    findings = []
    for name, run in checks.items():
        try:
            found, ok, advice = run()
        except (RegraftError, OSError) as error:
            found, ok, advice = str(error), False, ""
        findings.append({"check": name, "ok": ok, "found": found, "advice": advice})
    return findings


def _python() -> tuple[str, bool, str]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return sys.version.split()[0], supported, "use Python 3.11, 3.12 or 3.13"


def _packages() -> tuple[str, bool, str]:
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if "No module named pip" in result.stderr:
        return found + " (pip is not installed, so their agreement was not checked)", True, ""
    return found, result.returncode == 0, result.stdout.strip()


def _prefect_server() -> tuple[str, bool, str]:
    """Import Prefect's server, which newer versions of FastAPI break with a TypeError."""
    try:
        importlib.import_module("prefect.server.api.server")
    except (ImportError, TypeError) as error:
        return (
            str(error),
            False,
            f"fastapi {version('fastapi')} is too new for prefect {version('prefect')}; use < 0.151",
        )
    return f"prefect {version('prefect')} with fastapi {version('fastapi')}", True, ""


def _project(paths: Paths) -> tuple[str, bool, str]:
    settings = load_settings(paths.params)
    if not (paths.root / ".dvc").is_dir():
        return f"{paths.root} has no .dvc folder", False, "make a project with `regraft init`"
    return f"{settings.name} in {paths.root}, source {', '.join(settings.download.sources)}", True, ""


def _links(paths: Paths) -> tuple[str, bool, str]:
    from flows import repository

    kind = repository.cache_link_type(paths.root)
    return kind, kind != "copy", "files are copied, so data takes twice the space: keep the cache on the project's disk"


def _disk(folder: Path) -> tuple[str, bool, str]:
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 1024**3:.1f} GiB free of {usage.total / 1024**3:.1f} GiB"
    return found, usage.free >= FREE_BYTES, "less than 2 GiB are free; runs may fail"


def _devices() -> tuple[str, bool, str]:
    """Ask TensorFlow, in a process of its own: it holds on to GPU memory while it lives."""
    program = (
        "import tensorflow as tf; d = tf.config.list_physical_devices();"
        "print(', '.join(f'{sum(x.device_type == k for x in d)} {k}' for k in sorted({x.device_type for x in d})))"
    )
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    found = result.stdout.strip() or result.stderr.strip()[-300:]
    return f"{found}, {os.cpu_count()} processors", result.returncode == 0, "TensorFlow does not start"


def _tracking(paths: Paths) -> tuple[str, bool, str]:
    from regraft.registry.tracking import check_reachable, tracking_uri

    uri = tracking_uri(paths, load_settings(paths.params))
    check_reachable(uri)
    return uri, True, ""
