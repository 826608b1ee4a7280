"""How unlike the training data an input is, by the model's own features: what an answer cannot say of itself.

The distance is one minus the cosine to the k-th most alike of known training examples, as in Sun et al., Out-of-
Distribution Detection with Deep Nearest Neighbors, 2022 (arXiv:2204.06507): no assumption on how features are spread,
and none on classes, so that it serves real values too. `benchmarks/unusual.py` compares it with the alternatives.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.resampling import share_with_interval

NEIGHBOURS = 5
MOST_KNOWN = 1000  # training examples that travel with the model, 2 bytes a number of their features
USUAL = 0.95  # share of inputs like those of validation that are at most 1
TINY = 1e-6  # the least limit: of copies alone every distance would be 0


@dataclass(frozen=True)
class Familiar:
    """What a model is familiar with.

    Attributes:
        known: Features of training examples, of length 1, float16 (M, D).
        limit: Distance that `USUAL` of validation examples stay within, in (0, 2].
        examples: Validation examples that it was read off.
    """

    known: NDArray[np.float16]
    limit: float
    examples: int

    @property
    def neighbours(self) -> int:
        """Which of the most alike counts."""
        return min(NEIGHBOURS, len(self.known))

    def facts(self) -> dict[str, Any]:
        """Return what `labels.json` beside the exported model says of it."""
        return {"unusual": {"known": len(self.known), "limit": self.limit, "neighbours": self.neighbours}}


def known_rows(examples: int) -> list[int]:
    """Return which of so many training examples travel with the model: all, or `MOST_KNOWN` evenly spread."""
    return np.linspace(0, examples - 1, min(MOST_KNOWN, examples)).astype(np.int64).tolist()


def settle_familiar(train: NDArray[Any], validation: NDArray[Any]) -> Familiar | None:
    """Return what a model with these features is familiar with; None if validation is too small to set a limit.

    The limit is the conformal quantile, so that of new inputs like those of validation at most 5% are beyond it
    (on average over such validation sets); fewer than 19 examples allow no such limit.

    Args:
        train: Features of training examples, at least one, shape (M, D).
        validation: Features of validation examples, shape (N, D).
    """
    rank = math.ceil((len(validation) + 1) * USUAL)
    if rank > len(validation):
        return None
    known = _of_length_one(train).astype(np.float16)
    limit = float(np.sort(distances(known, validation))[rank - 1])
    return Familiar(known, max(limit, TINY), len(validation))


def distances(known: NDArray[np.float16], features: NDArray[Any]) -> NDArray[np.float32]:
    """Return how far each of `features` (N, D) is from the k-th most alike of `known` (M, D), in [0, 2], shape (N,)."""
    place = min(NEIGHBOURS, len(known))
    alike = _of_length_one(features) @ known.astype(np.float32).T
    return np.asarray(1.0 - np.partition(alike, -place, axis=1)[:, -place], np.float32)


def _of_length_one(features: NDArray[Any]) -> NDArray[np.float32]:
    wide = features.astype(np.float32)
    return np.asarray(wide / np.sqrt(np.maximum((wide**2).sum(axis=1, keepdims=True), 1e-12)), np.float32)


def measure_unusual(familiar: Familiar | None, unusual: NDArray[Any], *, interval: float) -> dict[str, Any]:
    """Return what metrics.json says: the limit, and which share of test examples is beyond it.

    Args:
        familiar: What was settled.
        unusual: What the exported model says of test examples, shape (N,); not looked at without `familiar`.
        interval: Coverage of the interval around the share.
    """
    if familiar is None:
        fewest = math.ceil(USUAL / (1.0 - USUAL))
        return {"why": f"fewer than {fewest} validation examples cannot say which distance is usual"}
    return {
        **familiar.facts()["unusual"],
        "examples": familiar.examples,
        "usual": USUAL,
        "test": share_with_interval(int((unusual > 1.0).sum()), len(unusual), interval),
    }
