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
_PARTS = 3
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
    samples: int,
    interval: float,
    seed: int,
) -> dict[str, Any]:
    """Return the measure (accuracy, micro F1 or RMSE) on thirds of the examples by each property, and the worst third.

    The more slices are looked at, the lower the lowest of them is by chance alone. So the intervals are widened until
    they hold for all slices at once (Bonferroni), and the worst slice is the one whose better end is worst: not the one
    with the worst figure, which mostly is a small one. It is clearly worse if even that end is worse than the whole.

    Args:
        task: "classification", "multilabel" or "regression".
        labels: Shape (N,), for other tasks (N, K).
        given: What was answered: classes (N,), label sets or values (N, K).
        properties: What `traits` returned: one number an example.
        samples: Bootstrap samples, for other tasks than classes.
        interval: Coverage of all the intervals together, in (0, 1).
        seed: Makes the intervals repeatable.

    Returns:
        {"metric", "looked_at": number of slices, "fewest": examples that a slice must have, "slices": rows with by,
        from, to (both included), examples, value, low and high, "worst": one of these rows with "clearly" (or None),
        "left_out": names of properties that divide the examples into no two large enough slices}.
    """
    found, left_out = [], []
    for name, values in properties.items():
        numbers: NDArray[np.float64] = np.round(np.asarray(values, np.float64), _DECIMALS).astype(np.float64)
        parts = _thirds(numbers)
        if len(parts) > 1:
            found += [(name, float(numbers[part].min()), float(numbers[part].max()), part) for part in parts]
        else:
            left_out.append(name)
    metric = SLICED[task]

    def score(part: NDArray[np.int64], coverage: float) -> dict[str, float]:
        if task == CLASSIFICATION:
            return share_with_interval(int((labels[part] == given[part]).sum()), len(part), coverage)
        chance: Any = {"samples": samples, "interval": coverage, "seed": seed}
        return columns.measure(task, labels[part], given[part], **chance)[metric]

    together = 1.0 - (1.0 - interval) / max(1, len(found))
    rows: list[dict[str, Any]] = [
        {"by": name, "from": low, "to": high, "examples": len(part), **score(part, together)}
        for name, low, high, part in found
    ]
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


def _thirds(values: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the rows of each third of `values` that is large enough; equal values are never parted."""
    edges = np.unique(np.quantile(values, np.arange(1, _PARTS) / _PARTS)) if len(values) else values
    place = np.searchsorted(edges, values)  # up to an edge, that included, and beyond the last one
    parts = [np.flatnonzero(place == number) for number in range(len(edges) + 1)]
    return [part for part in parts if len(part) >= FEWEST]
