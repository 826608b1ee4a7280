"""Small files written whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError, ResourceError


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8: readers see the old file or the new one, never a part, and no link is written through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, "utf-8", newline="")
    temporary.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` as `write_text` writes text: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, whole or not at all; a file that holds just that is left as it is."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote to `path`.

    Raises:
        RegraftError: If the file was damaged since.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:  # of bytes that are no UTF-8, or of a text that is no JSON
        raise RegraftError(f"{path} is damaged: {error}. Delete it and run again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that `write_json` wrote to `path`.

    Raises:
        RegraftError: If the file was damaged since.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RegraftError(f"{path} is damaged: it holds no JSON object. Delete it and run again.")
    return value


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; on success it becomes `path`, on an exception it is deleted."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well


def require_room(directory: Path, needed_bytes: int, what: str) -> None:
    """Raise ResourceError unless the disk that holds `directory` has room for `what`."""
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"{directory.parent} has {free_bytes / 1e6:.0f} MB left and {what} needs {needed_bytes / 1e6:.0f} MB. "
            "Free some space, then run again."
        )
