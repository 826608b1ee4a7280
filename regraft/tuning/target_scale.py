"""Real targets are learned in standard deviations from their mean, and answered in their own unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.tuning.batches import Source

Values = NDArray[Any]


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of each of K targets over the training split, float64, shape (K,)."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, values: Values) -> "TargetScale":
        """Return the scale of `values` (N, K); a constant target keeps its unit."""
        deviation = values.std(axis=0, dtype=np.float64)
        return cls(values.mean(axis=0, dtype=np.float64), np.where(deviation > 0.0, deviation, 1.0))

    def apply(self, values: Values) -> Values:
        """Return standardised `values`, float32, shape (N, K)."""
        return ((values.astype(np.float64) - self.mean) / self.deviation).astype(np.float32)

    def fold_into(self, kernel: Values, bias: Values) -> tuple[Values, Values]:
        """Return the head (D, K), (K,) that answers in the targets' own units where the given one is standardised."""
        return (
            (kernel.astype(np.float64) * self.deviation).astype(np.float32),
            (bias.astype(np.float64) * self.deviation + self.mean).astype(np.float32),
        )


@dataclass(frozen=True)
class Relabelled:
    """The examples of `source` with other labels, one row an example."""

    source: Source
    labels: NDArray[Any]

    @property
    def kind(self) -> str:
        return self.source.kind

    def inputs(self, indices: Sequence[int]) -> list[Any]:
        """Return the contents of the rows `indices`, in that order."""
        return self.source.inputs(indices)
