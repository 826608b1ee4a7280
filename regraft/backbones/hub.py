"""KerasHub's presets on kaggle.com: downloaded once, file by file, into the cache that kagglehub keeps."""

import logging
import time
from pathlib import Path

import kagglehub
import requests
from kagglehub.exceptions import BackendError, DataCorruptionError

from regraft.backbones.catalogue import Hub
from regraft.backbones.weights import CONFIG, METADATA, TOKENIZER, WEIGHTS, is_downloaded
from regraft.errors import BackboneError, ResourceError

log = logging.getLogger(__name__)

ATTEMPTS = 3
WAIT_S = 2.0  # before the second attempt; doubled before each further one
# Of tokenizers each kind has its own files.
ASSETS = tuple(f"assets/tokenizer/{file}" for file in ("vocabulary.txt", "vocabulary.json", "merges.txt"))
OF_IMAGES, OF_TEXT = (METADATA, "image_converter.json"), (METADATA, TOKENIZER, *ASSETS)
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
NOT_FOUND = 404


def download(hub: Hub, *, kind: str) -> Path:
    """Return the folder of the preset, downloading what is not there.

    kagglehub continues a file that was cut short, compares each with the checksum its server announces, and deletes it
    if they differ; only a file that was got whole counts as there. Heads of classifiers are left where they are.

    Raises:
        ResourceError: If the server cannot be reached, or keeps failing.
        BackboneError: If it does not have the preset, or wants to know who asks.
    """
    is_here = is_downloaded(hub.handle, kind)  # then nothing asks the network
    try:
        folder = Path(_file(hub, CONFIG)).parent
    except FileNotFoundError:
        raise BackboneError(f"kaggle.com has no {hub.handle}: KerasHub's presets have moved on since.") from None
    for file in () if is_here else OF_IMAGES if kind == "image" else OF_TEXT:
        try:
            _file(hub, file)
        except FileNotFoundError:
            continue
    _file(hub, WEIGHTS)
    return folder


def _file(hub: Hub, file: str) -> str:
    """Return where a file of the preset lies, downloading it if need be.

    Raises:
        FileNotFoundError: If the preset has no such file.
    """
    wait_s = WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return str(kagglehub.model_download(hub.handle, file))
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == NOT_FOUND:
                raise FileNotFoundError(file) from None
            if status not in TRY_AGAIN:
                raise BackboneError(f"kaggle.com refuses {hub.handle} ({file}): {_brief(error)}") from None
            problem: Exception = error
        except (requests.RequestException, BackendError, DataCorruptionError) as error:
            problem = error
        if attempt < ATTEMPTS:
            log.warning("downloading %s of %s failed, trying again: %s", file, hub.preset, _brief(problem))
            time.sleep(wait_s)
            wait_s *= 2
    raise ResourceError(f"{hub.handle} ({file}) could not be downloaded from kaggle.com: {_brief(problem)}")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
