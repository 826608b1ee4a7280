"""Predicting with a registered model from the command line: the same model, the same way in as for any consumer."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.data import audio, images, pairs, sources
from regraft.errors import DataError, RegistryError
from regraft.paths import Paths
from regraft.registry import tracking
from regraft.registry.versions import resolve
from regraft.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

Input = bytes | str | Mapping[str, str]


def predict(paths: Paths, settings: Settings, reference: str, inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Answer `inputs` with the registered model `reference`.

    Args:
        paths: The project whose registry is asked.
        settings: Its settings.
        reference: `NAME` (the champion), `NAME@ALIAS` or `NAME/VERSION`.
        inputs: For a model of images, paths of image files of any format that Pillow reads. For a model of recordings,
            paths of audio files of any format that libsndfile reads. For a model of texts, the
            texts; one that is the path of a file stands for the content of that file, in UTF-8 and no table. For a
            model of pairs of texts `FIRST ||| SECOND`.

    Returns:
        For each input, in order: input (as given) and the model's answer, ready for JSON: label, probability of that
        label and probabilities by label; or labels and probabilities; or value, or a value for each target; and what it
        says about how sure it is, see `consumer_model.RawInputModel.predict`.

    Raises:
        RegistryError: If there is no such model, or its files are gone.
        DataError: If a file is missing or no readable image or recording.
        ResourceError: If MLflow does not answer.
    """
    with open_model(paths, settings, reference) as opened:
        answers = opened.answer([opened.read(given) for given in inputs])
    return [
        {"input": given, **as_json(answer)} for given, answer in zip(inputs, answers.to_dict("records"), strict=True)
    ]


@dataclass(frozen=True)
class OpenModel:
    """A version of the registry, loaded.

    Attributes:
        name: Of the registered model.
        version: Its number.
        columns: What it takes: `image`, `audio`, `text`, or the names of the two texts of a pair.
        loaded: What `mlflow.pyfunc.load_model` returned.
    """

    name: str
    version: int
    columns: tuple[str, ...]
    loaded: Any

    @property
    def kind(self) -> str:
        """What it takes: "image", "audio" or "text"."""
        return self.columns[0] if len(self.columns) == 1 else "text"

    def read(self, given: str) -> Input:
        """Return the input that a path or a text stands for; see `predict`.

        Raises:
            DataError: If it is none.
        """
        return _read_pair(given, self.columns) if len(self.columns) == 2 else _READERS[self.columns[0]](given)

    def answer(self, inputs: Sequence[Input]) -> "pd.DataFrame":
        """Return the model's answers, a row for each of `inputs`; see `consumer_model.RawInputModel.predict`.

        Raises:
            DataError: If one of them cannot be answered; the message names its row.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        rows = list(inputs) if len(self.columns) == 2 else {self.columns[0]: list(inputs)}
        try:
            return self.loaded.predict(pd.DataFrame(rows, columns=list(self.columns)))
        except MlflowException as error:
            raise DataError(str(error)) from error


@contextmanager
def open_model(paths: Paths, settings: Settings, reference: str) -> Iterator[OpenModel]:
    """Load the registered model `reference`; arguments and errors as for `predict`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    name, number = resolve(paths, settings, reference)
    client = tracking.connect(paths, settings)
    uri = tracking.tracking_uri(paths, settings)
    with tempfile.TemporaryDirectory(prefix="regraft-") as downloads:
        with tracking.plain_errors(uri, f"loading {name} version {number}"):
            import mlflow.artifacts
            import mlflow.pyfunc

            source = client.get_model_version_download_uri(name, str(number))
            try:
                folder = mlflow.artifacts.download_artifacts(
                    artifact_uri=source, tracking_uri=uri, dst_path=None if Path(source).is_dir() else downloads
                )
            except OSError as error:
                raise RegistryError(
                    f"the files of {name} version {number} are not at {source} any more ({error}). Restore that "
                    "folder, or delete the version in MLflow and register the model again with `regraft run`."
                ) from error
            loaded = mlflow.pyfunc.load_model(folder)
            columns = loaded.metadata.get_input_schema().input_names()
            if len(columns) != 2 and (len(columns) != 1 or columns[0] not in _READERS):
                raise RegistryError(
                    f"{name} version {number} takes {columns}; only models of images, recordings or texts can be asked."
                )
        yield OpenModel(name, number, tuple(columns), loaded)


def as_json(answer: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an answer, a row of what the model returned, as JSON can hold it."""
    return {str(column): _plain(cell) for column, cell in answer.items()}


def _plain(cell: Any) -> Any:
    """Return a cell of an answer as JSON can hold it."""
    if isinstance(cell, Mapping):
        return {str(label): float(value) for label, value in cell.items()}
    if isinstance(cell, str | bool):
        return cell
    return float(cell) if np.ndim(cell) == 0 else [str(label) for label in cell]


def _read_image(given: str) -> bytes:
    """Return the bytes of an image file, as a PNG if TensorFlow would not read its format."""
    try:
        content = Path(given).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{given} cannot be read: {error.strerror}. This model answers image files.") from None
    from regraft.data.examples import tensorflow_reads  # TensorFlow, which a model of texts loads later

    try:
        is_served = images.inspect(content).suits_tensorflow and tensorflow_reads(content)
        return content if is_served else images.to_png(content)
    except images.UnreadableImage as error:
        raise DataError(f"{given} {error}.") from None


def _read_audio(given: str) -> bytes:
    """Return the bytes of an audio file, as a WAV file of one channel in 16-bit PCM unless it is one."""
    try:
        content = Path(given).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{given} cannot be read: {error.strerror}. This model answers audio files.") from None
    try:
        recording = audio.decode(content)
    except audio.UnreadableAudio as error:
        raise DataError(f"{given} {error}.") from None
    return content if recording.is_plain else recording.to_wav()


def _read_pair(given: str, names: Sequence[str]) -> dict[str, str]:
    """Return the two texts of `FIRST ||| SECOND` by their names."""
    try:
        return dict(zip(names, pairs.split(given), strict=True))
    except ValueError as error:
        raise DataError(f"{given!r} {error}; this model answers '{' ||| '.join(names).upper()}'.") from None


def _read_text(given: str) -> str:
    path = Path(given)
    if not _is_file(path) and (not given.lower().endswith(".txt") or "\n" in given or "\0" in given):
        return given
    if path.suffix.lower() in sources.TABLE_SUFFIXES:
        raise DataError(f"{given} is a table, and this model answers texts; answer all of it with `regraft score`.")
    try:
        return path.read_text("utf-8")
    except OSError as error:
        if not _is_file(path) and any(map(str.isspace, given)):
            return given  # a sentence that ends so
        raise DataError(f"{given} cannot be read: {error.strerror}. This model answers texts and text files.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{given} is not UTF-8 text: {error}. This model answers texts and text files.") from None


def _is_file(path: Path) -> bool:
    """Return whether there is a file `path`; a text that is too long for a path is none."""
    try:
        return path.is_file()
    except OSError:
        return False


_READERS: dict[str, Callable[[str], bytes | str]] = {"image": _read_image, "audio": _read_audio, "text": _read_text}
