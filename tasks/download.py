"""Bring the source's files into the project, as they came."""

import logging

from regraft.data.fetch import common_kind, fetch_all
from regraft.data.sources import at_hand, parse_all
from regraft.files import replace_directory, write_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings

log = logging.getLogger(__name__)


def run(download: DownloadSettings, paths: Paths) -> None:
    """Copy, unpack or export `download.source` to data/raw, write reports/download.json."""
    named = parse_all(download.sources, paths.root)
    found = {folder: at_hand(source, paths.root, paths.state) for folder, source in named.items()}
    common_kind(found)  # raises before anything is copied if nothing in a source can be used
    with replace_directory(paths.raw) as directory:
        facts = fetch_all(found, directory)
    write_json(paths.reports / "download.json", facts)
    made = facts.get("unpacked", facts)
    log.info("fetched %d files, %.1f MB, from %s", made["files"], made["bytes"] / 1e6, ", ".join(download.sources))
