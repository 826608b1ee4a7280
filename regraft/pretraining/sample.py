"""Where the examples lie that may judge a pretraining, and in it how a backbone is to look at them.

Apart from `regraft.paths`, on whose code every stage hangs.
"""

from pathlib import Path

from regraft.paths import Paths

ABOUT = "about.json"


def sample_folder(paths: Paths) -> Path:
    """Return the folder that `tasks.choose` writes: see `regraft.ranking.sample`."""
    return paths.root / "data" / "sample"
