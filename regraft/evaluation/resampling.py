"""How sure a number measured on examples is: resamples of the examples, and intervals."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WEIGHTS_AT_ONCE = 4_000_000


def draw_weights(rows: int, *, samples: int, seed: int, groups: NDArray[Any] | None = None) -> Iterator[Array]:
    """Yield how often each of `samples` bootstrap samples holds each of `rows` examples, in parts of shape (S, rows).

    The parts are of bounded size, and the same in whatever parts they come. Of examples that come in groups, groups are
    drawn first, and then from each as many examples as it has: two-stage resampling, which is a little wider than it
    need be, and with few groups not as narrow as drawing them whole (Davison & Hinkley, 1997, section 3.8).

    Args:
        rows: N.
        samples: In all parts together.
        seed: Makes them repeatable.
        groups: Whose each example is, shape (N,); None if they have nothing to do with each other.
    """
    random = np.random.default_rng(seed)
    draw = _draw_of_groups(groups) if groups is not None else lambda random: random.integers(0, rows, rows)
    at_once = max(1, _WEIGHTS_AT_ONCE // rows)
    for start in range(0, samples, at_once):
        picks = [draw(random) for _ in range(min(at_once, samples - start))]
        yield np.stack([np.bincount(each, minlength=rows) for each in picks]).astype(np.float64)


def _draw_of_groups(groups: NDArray[Any]) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    """Return what draws one two-stage sample of about as many examples."""
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    by_group, starts = np.argsort(group_of, kind="stable"), np.cumsum(sizes) - sizes

    def draw(random: np.random.Generator) -> NDArray[np.int64]:
        drawn = random.integers(0, len(sizes), len(sizes))
        of_each = np.repeat(drawn, sizes[drawn])
        picks: NDArray[np.int64] = by_group[starts[of_each] + random.integers(0, sizes[of_each])]
        return picks

    return draw


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
