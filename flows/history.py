"""Data of earlier versions of a project: by registered model, by git revision, or by folder."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flows import pipeline
from regraft.errors import RegraftError
from regraft.fingerprint import locked_hash
from regraft.paths import Paths
from regraft.registry.versions import data_hash
from regraft.settings import load_settings


@contextmanager
def prepared_data(paths: Paths, reference: str | None) -> Iterator[Path]:
    """Yield the folder of the prepared data that `reference` stands for, for reading inside the block.

    Args:
        paths: The project.
        reference: A folder (another project, or prepared data itself); `NAME`, `NAME@ALIAS` or `NAME/VERSION` of the
            registry: what that model was made from; any other text: a git revision of the project; None: the data as
            it is now.

    Raises:
        RegraftError: If it stands for nothing, or for a model and a folder, or its data is no longer in the DVC cache.
    """
    settings = load_settings(paths.params)
    if reference is None:
        yield paths.prepared
    elif (folder := Path(reference).expanduser()).is_dir():
        if reference == settings.name:
            raise RegraftError(
                f"{reference!r} is the model and a folder, too: write {reference}@champion, or ./{reference}."
            )
        inside = Paths(folder.resolve()).prepared
        yield inside if inside.is_dir() else folder
    else:
        is_model = reference.partition("@")[0].partition("/")[0] == settings.name
        output_hash = data_hash(paths, settings, reference) if is_model else _hash_in_git(paths, reference)
        with _restored(paths, output_hash) as restored:
            yield restored


@contextmanager
def data_of_version(paths: Paths, name: str, number: int) -> Iterator[Path]:
    """Yield the folder of the prepared data that version `number` of the registered model `name` was made from.

    Raises:
        RegistryError: If the registry holds no such version, or does not say what it was made from.
        RegraftError: If the data is not in this project's DVC cache.
    """
    with _restored(paths, data_hash(paths, load_settings(paths.params), f"{name}/{number}")) as restored:
        yield restored


@contextmanager
def _restored(paths: Paths, output_hash: str) -> Iterator[Path]:
    """Yield a folder with the prepared data of that hash, out of the DVC cache."""
    with TemporaryDirectory(prefix="regraft-") as temporary:
        restored = Path(temporary) / "prepared"
        pipeline.restore_output(paths.root, output_hash, restored)
        yield restored


def _hash_in_git(paths: Paths, revision: str) -> str:
    """Return the hash of the prepared data in the dvc.lock that was committed in `revision`."""
    shown = subprocess.run(
        ["git", "show", f"{revision}:./{paths.lock.name}"], cwd=paths.root, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise RegraftError(
            f"{revision!r} is no folder, no model of this project (NAME, NAME@ALIAS or NAME/VERSION) and no git "
            f"revision with a {paths.lock.name}: {shown.stderr.strip()}"
        )
    return locked_hash(paths, paths.prepared, shown.stdout)
