"""Raw data of several sources: each has a folder of its own, and a hidden file says which they are, in their order."""

from collections.abc import Sequence
from pathlib import Path

from regraft.files import read_json, write_json

# Hidden files are never part of a source, so none can bring a file of this name.
_FOLDERS = ".sources.json"


def write_folders(raw: Path, folders: Sequence[str]) -> None:
    """Note in the raw data that it holds several sources, in these folders."""
    write_json(raw / _FOLDERS, list(folders))


def read_folders(raw: Path) -> list[str]:
    """Return the folders of several sources in their order; none if the raw data is that of a single source."""
    return [str(folder) for folder in read_json(raw / _FOLDERS)] if (raw / _FOLDERS).is_file() else []
