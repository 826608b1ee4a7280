"""How long each stage took in earlier runs, and so how long a run will take."""

from pathlib import Path
from typing import Any

from regraft.files import read_object, write_json
from regraft.paths import Paths

KEPT = 50  # runs of a stage


def note(paths: Paths, stage: str, seconds: float, pool: str) -> None:
    """Write down that `stage` ran for `seconds`, waiting for a worker included."""
    known = _read(paths)
    known[stage] = [*known.get(stage, []), {"seconds": round(seconds, 1), "pool": pool}][-KEPT:]
    write_json(_file(paths), known)


def history(paths: Paths, stage: str) -> list[dict[str, Any]]:
    """Return what is known of the runs of `stage`, the latest last: [{"seconds": 12.3, "pool": "gpu"}, ...]."""
    return list(_read(paths).get(stage, []))


def estimate_s(paths: Paths, stage: str) -> float | None:
    """Return how long `stage` is likely to run, in seconds: as long as last time; None if it never ran."""
    runs = history(paths, stage)
    return float(runs[-1]["seconds"]) if runs else None


def _read(paths: Paths) -> dict[str, Any]:
    file = _file(paths)
    return read_object(file) if file.exists() else {}


def _file(paths: Paths) -> Path:
    return paths.state / "durations.json"
