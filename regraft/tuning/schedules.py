"""Learning-rate schedules: plain functions of the step, so they can be plotted and tested."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate at `step`: a linear rise to `peak`, then a half cosine to zero.

    Args:
        step: Optimizer steps already taken, in [0, total_steps].
        total_steps: Length of training in optimizer steps, not epochs.
        warmup_steps: Steps spent rising; 0 starts at `peak`.
        peak: Highest learning rate, reached when `step == warmup_steps`.

    Raises:
        ValueError: If `step` lies outside the schedule.

    Source: cosine part from Loshchilov & Hutter, 2017, section 3 (arXiv:1608.03983).
    """
    if not 0 <= step <= total_steps:
        raise ValueError(f"step must be in [0, {total_steps}], got {step}")
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
