"""Which examples a backbone has learned from: so that a score on those that it has met is known to be one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEEN = "seen.npy"


def write_seen(preset: Path, ids: Sequence[str]) -> None:
    """Write into the folder `preset` what the network in it has learned from.

    Args:
        preset: An existing folder.
        ids: sha256 (hex) of each image file, or of each paragraph or text in UTF-8, as `records.Example.id` has it.
    """
    np.save(preset / SEEN, np.unique(_short(ids)))


def count_seen(preset: Path, ids: Sequence[str]) -> int | None:
    """Return how many of `ids` the network in `preset` has learned from; None if that was never written down.

    Exact copies alone are found: `regraft data audit --against SOURCE` finds near ones, with the source at hand. Eight
    bytes of each id are compared, so that one in 10^10 is counted by chance if a billion were learned from.
    """
    if not (preset / SEEN).is_file():
        return None
    return int(np.isin(_short(ids), np.load(preset / SEEN, allow_pickle=False)).sum())


def _short(ids: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(identity[:16], 16) for identity in ids], np.uint64)
