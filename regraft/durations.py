"""How long each stage took when it ran last, and so how long a run will take."""

from regraft.files import read_object, write_json
from regraft.paths import Paths

FILE = "durations.json"  # below .regraft: seconds by stage


def note(paths: Paths, stage: str, seconds: float) -> None:
    """Write down that `stage` ran for `seconds`."""
    write_json(paths.state / FILE, {**read(paths), stage: round(seconds, 1)})


def read(paths: Paths) -> dict[str, float]:
    """Return how long each stage that ran in this project ran last, in seconds; what is no number is left out."""
    file = paths.state / FILE
    noted = read_object(file) if file.exists() else {}
    return {stage: seconds for stage, seconds in noted.items() if isinstance(seconds, int | float)}
