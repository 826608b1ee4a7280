"""Bring the source's files into the project, as they came."""

import logging

from regraft.data.fetch import fetch, kind_of
from regraft.data.sources import parse
from regraft.files import replace_directory, write_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings

log = logging.getLogger(__name__)


def run(download: DownloadSettings, paths: Paths) -> None:
    """Copy, unpack or export `download.source` to data/raw, write reports/download.json."""
    source = parse(download.source, paths.root)
    kind_of(source)  # raises before anything is copied if nothing in it can be used
    with replace_directory(paths.raw) as directory:
        facts = fetch(source, directory)
    write_json(paths.reports / "download.json", facts)
    made = facts.get("unpacked", facts)
    log.info("fetched %d files, %.1f MB, from %s", made["files"], made["bytes"] / 1e6, download.source)
