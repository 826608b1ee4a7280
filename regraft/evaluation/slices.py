"""Where a model is worse: the measure on slices of the test split, by what can be read off the examples themselves."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from regraft.data import audio
from regraft.data.targets import CLASSIFICATION
from regraft.evaluation import columns
from regraft.evaluation.resampling import share_with_interval
from regraft.measures import LOWER_IS_BETTER, SLICED

FEWEST = 20  # examples in a slice; fewer say nothing
_THIRDS, _QUARTERS = 3, 4
_SIDE_PX = 64  # brightness needs no more
_DECIMALS = 6


def traits(kind: str, contents: Sequence[Any]) -> dict[str, list[float]]:
    """Return what can be read off examples, by name with its unit, one number an example.

    Args:
        kind: "image", "text" or "audio".
        contents: Encoded images, texts or WAV files, as the prepared data holds them.
    """
    rows = [_READERS[kind](content) for content in contents]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _read_text(text: str) -> dict[str, float]:
    return {"text length (characters)": float(len(text))}


def _read_image(encoded: bytes) -> dict[str, float]:
    with Image.open(io.BytesIO(encoded)) as image:
        shorter = float(min(image.size))
        image.draft("L", (_SIDE_PX, _SIDE_PX))  # a JPEG is then decoded at a fraction of its size
        grey = image.convert("L")
    return {"brightness (0 to 255)": ImageStat.Stat(grey).mean[0], "shorter side (px)": shorter}


def _read_audio(encoded: bytes) -> dict[str, float]:
    return {"length (s)": audio.decode(encoded).seconds}


_READERS: Mapping[str, Callable[[Any], dict[str, float]]] = {
    "image": _read_image,
    "text": _read_text,
    "audio": _read_audio,
}


def measure_slices(
    task: str,
    labels: NDArray[Any],
    given: NDArray[Any],
    properties: Mapping[str, Sequence[float]],
    *,
    told: Mapping[str, Sequence[str]] | None = None,
    samples: int,
    interval: float,
    seed: int,
) -> dict[str, Any]:
    """Return the measure (accuracy, micro F1 or RMSE) on slices of the examples, and the worst slice.

    Slices are thirds by each property that examples have; and by what tables tell of them quarters, where all that is
    told are numbers, else the examples of each value.

    The more slices are looked at, the lower the lowest of them is by chance alone. So the intervals are widened until
    they hold for all slices at once (Bonferroni), and the worst slice is the one whose better end is worst: not the one
    with the worst figure, which mostly is a small one. It is clearly worse if even that end is worse than the whole.

    Args:
        task: "classification", "multilabel" or "regression".
        labels: Shape (N,), for other tasks (N, K).
        given: What was answered: classes (N,), label sets or values (N, K).
        properties: What `traits` returned: one number an example.
        told: Cells of columns, one an example; empty ones are a value of their own.
        samples: Bootstrap samples, for other tasks than classes.
        interval: Coverage of all the intervals together, in (0, 1).
        seed: Makes the intervals repeatable.

    Returns:
        {"metric", "looked_at": number of slices, "fewest": examples that a slice must have, "slices": rows with by,
        from, to (both included) or is, examples, value, low and high, "worst": one of these rows with "clearly" (or
        None), "left_out": names of properties and columns that divide the examples into no two large enough slices}.
    """
    divided = [(name, _by_number(np.asarray(values, np.float64), _THIRDS)) for name, values in properties.items()]
    divided += [(name, _by_cell(cells)) for name, cells in (told or {}).items()]
    found, left_out = [], []
    for name, parts in divided:
        large = [(facts, part) for facts, part in parts if len(part) >= FEWEST]
        if len(large) > 1:
            found += [({"by": name, **facts}, part) for facts, part in large]
        else:
            left_out.append(name)
    metric = SLICED[task]

    def score(part: NDArray[np.int64], coverage: float) -> dict[str, float]:
        if task == CLASSIFICATION:
            return share_with_interval(int((labels[part] == given[part]).sum()), len(part), coverage)
        chance: Any = {"samples": samples, "interval": coverage, "seed": seed}
        return columns.measure(task, labels[part], given[part], **chance)[metric]

    together = 1.0 - (1.0 - interval) / max(1, len(found))
    rows: list[dict[str, Any]] = [{**facts, "examples": len(part), **score(part, together)} for facts, part in found]
    is_error = metric in LOWER_IS_BETTER
    worst = None
    if rows:
        whole = score(np.arange(len(labels)), interval)["value"]
        worst = max(rows, key=lambda row: row["low"]) if is_error else min(rows, key=lambda row: row["high"])
        worst = {**worst, "clearly": worst["low"] > whole if is_error else worst["high"] < whole}
    return {
        "metric": metric,
        "looked_at": len(rows),
        "fewest": FEWEST,
        "slices": rows,
        "worst": worst,
        "left_out": left_out,
    }


Parts = list[tuple[dict[str, Any], NDArray[np.int64]]]  # what tells a slice from others of its kind, and its rows


def _by_number(values: NDArray[np.float64], parts: int) -> Parts:
    """Return equal parts of the rows by `values`, finite or NaN for none; equal values are never parted."""
    numbers: NDArray[np.float64] = np.round(values, _DECIMALS).astype(np.float64)
    known = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(known, np.arange(1, parts) / parts)) if len(known) else known
    place = np.searchsorted(edges, numbers)  # up to an edge, that included, and beyond the last one
    place[np.isnan(numbers)] = -1
    held = [rows for part in range(len(edges) + 1) if len(rows := np.flatnonzero(place == part))]
    found: Parts = [({"from": float(numbers[rows].min()), "to": float(numbers[rows].max())}, rows) for rows in held]
    missing = np.flatnonzero(place == -1)
    return [*found, ({"is": ""}, missing)] if len(missing) else found


def _by_cell(cells: Sequence[str]) -> Parts:
    """Return quarters of the rows where all cells but empty ones are finite numbers, else the rows of each value."""
    try:
        numbers = np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        numbers = np.full(len(cells), np.inf)
    filled = np.array([bool(cell) for cell in cells], bool)
    if filled.any() and np.isfinite(numbers[filled]).all():
        return _by_number(numbers, _QUARTERS)
    values = np.array(cells, object)
    return [({"is": value}, np.flatnonzero(values == value)) for value in sorted(set(cells))]
