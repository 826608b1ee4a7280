"""How sure a number measured on examples is: resamples of the examples, and intervals."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WEIGHTS_AT_ONCE = 4_000_000


def draw_weights(rows: int, *, samples: int, seed: int) -> Iterator[Array]:
    """Yield how often each of `samples` bootstrap samples holds each of `rows` examples, in parts of shape (S, rows).

    The parts are of bounded size, and the same in whatever parts they come.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // rows)
    for start in range(0, samples, at_once):
        draws = min(at_once, samples - start)
        picks = random.integers(0, rows, (draws, rows)) + np.arange(draws)[:, None] * rows
        yield np.bincount(picks.ravel(), minlength=draws * rows).reshape(draws, rows).astype(np.float64)


def central(scores: Array, interval: float) -> dict[str, float]:
    """Return the ends of the central percentile interval (Efron & Tibshirani, 1993, section 13.3) as low and high."""
    tail = (1.0 - interval) / 2.0
    low, high = np.quantile(scores, [tail, 1.0 - tail])
    return {"low": float(low), "high": float(high)}


def mean_with_interval(values: Array, *, samples: int, interval: float, seed: int) -> dict[str, float]:
    """Return value, low and high of the mean of `values`, one number an example, shape (N,)."""
    means = [weights @ values / len(values) for weights in draw_weights(len(values), samples=samples, seed=seed)]
    return {"value": float(values.mean()), **central(np.concatenate(means), interval)}


def share_with_interval(hits: int, total: int, interval: float) -> dict[str, float]:
    """Return value, low and high of the share `hits` of `total`, exact also where all or none hit.

    Source: Clopper & Pearson, 1934.
    """
    from scipy.special import betaincinv  # promotion resamples too, and must not wait for SciPy

    tail = (1.0 - interval) / 2.0
    low = 0.0 if hits == 0 else float(betaincinv(hits, total - hits + 1, tail))
    high = 1.0 if hits == total else float(betaincinv(hits + 1, total - hits, 1.0 - tail))
    return {"value": hits / total, "low": low, "high": high}
