"""What a backbone is pretrained on: where it lies, and the texts in it."""

import re
from pathlib import Path

from regraft.data import sources
from regraft.data.sources import Listing, Source
from regraft.errors import DataError

TEXT = "text:"
SUFFIXES = (".txt", ".text")


def parse_source(source: str, root: Path) -> Source:
    """Turn the setting `backbone.pretrain.source` into a source that exists.

    Args:
        source: `text:FILE_OR_DIR` for plain text, or any local source that `download.source` may name.
        root: The project's folder, where relative paths start.

    Raises:
        DataError: If nothing is there, it holds no text file, or it is what `sources.parse` refuses.
    """
    if ":" not in source and (root / Path(source).expanduser()).exists():
        raise DataError(
            f"backbone.pretrain.source: {source!r} lacks its scheme; write `text:{source}` for plain text, "
            f"`folder:{source}` for images, `csv:{source}` for tables."
        )
    if not source.startswith(TEXT):
        found = sources.parse(source, root)
        if found.url:
            raise DataError(
                f"backbone.pretrain.source: {source!r} is on a server. Fetch it once and name the copy: folder:DIR, "
                "text:DIR or csv:FILE."
            )
        return found
    path = (root / Path(source.removeprefix(TEXT).strip()).expanduser()).resolve()
    if path.is_file():
        return Source(source, "text", path, Listing({path.name: path.stat()}, {}, ()))
    if not path.is_dir():
        raise DataError(f"backbone.pretrain.source: {source!r} names neither a file nor a folder ({path}).")
    listing = sources.list_files(path)
    texts = {name: facts for name, facts in listing.files.items() if name.lower().endswith(SUFFIXES)}
    if not texts:
        raise DataError(
            f"backbone.pretrain.source: {path} holds no text file (.txt); found "
            f"{sources.describe_suffixes(list(listing.files))}."
        )
    return Source(source, "text", path, Listing(texts, listing.skipped, listing.empty_folders))


def read_paragraphs(source: Source) -> list[str]:
    """Return the paragraphs of a source of texts in order, every kind of space in them a single blank.

    Paragraphs of a text file are divided by empty lines; every text of a table is one. A file named README is left out.

    Raises:
        DataError: If a file is not UTF-8, the source holds no text, or it is one of images or recordings.
    """
    from regraft.data.against import read_others  # heavy, and planning needs but `parse_source`

    if source.scheme == "text":
        parts = [part for name in source.listing.files if _is_text(name) for part in _paragraphs(source, name)]
    elif source.scheme == "csv" and not source.is_archive:
        parts = [str(content) for content in read_others("text", source.path, None).contents]
    else:
        raise DataError(
            f"backbone.pretrain.source: {source.text!r} is no source of plain text, which masked and causal language "
            "modelling learn from. Name text:FILE_OR_DIR or csv:FILE."
        )
    cleaned = [" ".join(part.split()) for part in parts]
    paragraphs = [part for part in cleaned if part]
    if not paragraphs:
        raise DataError(f"backbone.pretrain.source: {source.text!r} holds no text: there is nothing to learn from.")
    return paragraphs


def _is_text(name: str) -> bool:
    return Path(name).stem.lower() != "readme"


def _paragraphs(source: Source, name: str) -> list[str]:
    content = source.file(name).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"backbone.pretrain.source: {name} is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}). "
            "Convert it, for example with `iconv -f latin1 -t utf-8`."
        ) from None
    return re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
