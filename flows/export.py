"""Exporting a registered model to another format, proven on the data that it was made from."""

from pathlib import Path
from typing import Any

from flows.history import data_of_version
from regraft.errors import DataError
from regraft.files import replace_directory
from regraft.paths import Paths
from regraft.settings import Settings


def export(
    paths: Paths,
    settings: Settings,
    reference: str,
    name: str,
    *,
    out: Path | None,
    examples: int,
    tolerance: float,
) -> dict[str, Any]:
    """Write the network of the registered model `reference` in the format `name` into a folder, whole or not at all.

    Args:
        paths: The project whose registry is asked, and whose DVC cache holds what the model was made from.
        settings: Its settings.
        reference: `NAME` (the champion), `NAME@ALIAS` or `NAME/VERSION`.
        name: One of `formats.FORMATS`.
        out: The folder, which is replaced if it holds an earlier export and refused if anything else; None:
            exports/NAME-VERSION-FORMAT of the project.
        examples: As for `exports.export`.
        tolerance: As for `exports.export`.

    Returns:
        What export.json says, and "model", "version" and "folder".

    Raises:
        RegraftError: If the packages of the format are not installed, or the data is no longer in the DVC cache.
        RegistryError: If there is no such model, or it cannot be exported so.
        DataError: If `out` holds something else.
    """
    from regraft.registry import exports
    from regraft.registry.formats import FORMATS
    from regraft.registry.predict import open_model

    wanted = FORMATS[name]
    wanted.check_installed()
    with open_model(paths, settings, reference) as opened:
        folder = out or paths.root / "exports" / f"{opened.name}-{opened.version}-{name}"
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / exports.FACTS).exists()):
            raise DataError(f"{folder} holds something that is no export; choose another folder.")
        consumer = opened.loaded.unwrap_python_model()
        with data_of_version(paths, opened.name, opened.version) as prepared, replace_directory(folder) as fresh:
            facts = exports.export(
                consumer.exported,
                wanted,
                fresh,
                prepared=prepared,
                labels=consumer.labels,
                task=consumer.task,
                examples=examples,
                tolerance=tolerance,
            )
    return {"model": opened.name, "version": opened.version, "folder": str(folder), **facts}
