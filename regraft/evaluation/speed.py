"""How fast the exported model answers on this machine."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_WARM_UP_CALLS = 3


def measure_speed(
    answer: Callable[[Sequence[Any]], np.ndarray], inputs: Sequence[Any], *, batch_size: int = 32, budget_s: float
) -> dict[str, Any]:
    """Time `answer` on one input at a time and on full batches, about `budget_s` seconds each.

    Args:
        answer: Maps raw inputs to probabilities; what a consumer calls.
        inputs: Raw inputs to take turns with, at least one; repeated when there are fewer than `batch_size`.
        batch_size: Inputs in a call when measuring throughput.
        budget_s: Time to spend on each of the two measurements, in seconds; at least 20 calls of one input are made.

    Returns:
        {"latency_ms": {"p50", "p99", "calls"}, "throughput": {"examples_per_s", "batch_size", "calls"}, "cpu_cores"}.
    """
    singles = [[one] for one in inputs]
    batches = [
        [inputs[(start + place) % len(inputs)] for place in range(batch_size)]
        for start in range(0, len(inputs), batch_size)
    ]
    single_s = _times(answer, singles, budget_s, at_least=20)
    batch_s = _times(answer, batches, budget_s, at_least=3)
    return {
        "latency_ms": {
            "p50": round(1000 * float(np.quantile(single_s, 0.5)), 3),
            "p99": round(1000 * float(np.quantile(single_s, 0.99)), 3),
            "calls": len(single_s),
        },
        "throughput": {
            "examples_per_s": round(batch_size / float(np.median(batch_s)), 1),
            "batch_size": batch_size,
            "calls": len(batch_s),
        },
        "cpu_cores": os.cpu_count(),
    }


def _times(
    answer: Callable[[Sequence[Any]], np.ndarray], calls: Sequence[Sequence[Any]], budget_s: float, *, at_least: int
) -> list[float]:
    """Return the seconds each call took, going round `calls` until the budget is spent."""
    for turn in range(_WARM_UP_CALLS):
        answer(calls[turn % len(calls)])
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < at_least or time.perf_counter() - began < budget_s:
        start = time.perf_counter()
        answer(calls[len(seconds) % len(calls)])
        seconds.append(time.perf_counter() - start)
    return seconds
