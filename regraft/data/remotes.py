"""Remote sources: which URLs they are, where their copies lie, and which version of them counts.

DVC does the importing, in flows/imports.py; stages know the files that it leaves. Planning looks at each remote and
notes the version it saw in `.regraft/remotes.json`. A run then imports what is new to `imports/`, where a `.dvc` file
beside the copy, made for git, records URL, version and checksum.
"""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from regraft.errors import DataError
from regraft.files import read_json, write_json

# What DVC imports from, and the extra of its distribution that brings the means; "" comes with DVC itself.
EXTRAS = {
    "http": "", "https": "", "remote": "",
    "s3": "s3", "gs": "gs", "azure": "azure", "oss": "oss", "ssh": "ssh", "hdfs": "hdfs", "webhdfs": "webhdfs",
    "webdav": "webdav", "webdavs": "webdav",
}  # fmt: skip
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET = re.compile(r"token|secret|signature|password|credential|api.?key|^sig$|^key$", re.IGNORECASE)
NOTES = "remotes.json"  # below .regraft


def url_of(place: str) -> str | None:
    """Return `place`, what follows the scheme of a source, if it is a URL, else None."""
    return place if _URL.match(place) else None


def local_path(source: str, url: str) -> str | None:
    """Return the path that a `file://` URL stands for; None for a URL of something remote.

    Raises:
        DataError: If DVC does not import from such a URL, or it holds a password or, over HTTP, a user or token.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is looked at only now
    except ValueError as error:
        raise DataError(f"source {source!r}: {url} is no URL: {error}.") from None
    scheme = parts.scheme.lower()
    if scheme in EXTRAS and not parts.hostname:
        raise DataError(f"source {source!r}: {url} names no {'remote' if scheme == 'remote' else 'server'}.")
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"source {source!r}: a file URL starts with three slashes, as in file:///data/train.csv.")
        return unquote(parts.path)
    if scheme not in EXTRAS:
        raise DataError(
            f"source {source!r}: nothing here can fetch from {scheme}://; it may be file, {', '.join(EXTRAS)}."
        )
    secrets = [key for key, _ in parse_qsl(parts.query) if _SECRET.search(key)]
    if secrets:
        raise DataError(
            f"the source {scheme}://{parts.hostname}{parts.path} has {', '.join(secrets)} in its URL, which would be "
            "written to the lock file and the registry. Keep what a login needs in DVC's own settings: `dvc remote add "
            "NAME URL`, `dvc remote modify --local NAME ...`, and write remote://NAME/FILE for the URL."
        )
    login, at, _ = parts.netloc.rpartition("@")
    if at and (parts.password or not has_folders(url)):
        raise DataError(
            f"the source {url.replace(f'{login}@', '...@', 1)} holds a login, which would be written to the lock file "
            "and the registry. Keep it in DVC's own settings: `dvc remote add NAME URL`, `dvc remote modify --local "
            "NAME password ...`, and then write remote://NAME/FILE for the URL."
        )
    return None


def has_folders(url: str) -> bool:
    """Return whether the server of `url` can list folders; over HTTP there are files alone."""
    return urlsplit(url).scheme.lower() not in ("http", "https")


def copy_of(url: str, project: Path) -> Path:
    """Return where the copy of `url` belongs: in a folder of its own below `imports/`, under its own name."""
    parts = urlsplit(url)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc
    name = re.sub(r"[^\w.+-]+", "-", name).lstrip(".-") or "data"
    return project / "imports" / hashlib.sha256(url.encode()).hexdigest()[:8] / name


def write_planned(state: Path, versions: dict[str, dict[str, Any]]) -> None:
    """Note the version of each URL that planning saw."""
    if not (state / NOTES).is_file() or read_json(state / NOTES) != versions:
        write_json(state / NOTES, versions)


def planned_version(state: Path, url: str) -> dict[str, Any]:
    """Return the version of `url` that planning saw.

    Raises:
        DataError: If it has not looked.
    """
    versions = read_json(state / NOTES) if (state / NOTES).is_file() else {}
    if url not in versions:
        raise DataError(f"nobody has looked at {url} yet; `regraft plan` does, and so does `regraft run`.")
    return dict(versions[url])


def record_of(copy: Path) -> Path:
    """Return DVC's record of the import that made `copy`."""
    return copy.with_name(f"{copy.name}.dvc")


def imported_version(copy: Path) -> dict[str, Any] | None:
    """Return the version of which `copy` is a copy, from DVC's record; None if there is none, or it is incomplete."""
    try:
        record = YAML(typ="safe", pure=True).load(record_of(copy).read_text("utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, YAMLError):
        return None
    meta = record.get("meta") if isinstance(record, dict) else None
    version = meta.get("version") if isinstance(meta, dict) else None
    return dict(version) if isinstance(version, dict) else None


def require_copy(url: str, project: Path, state: Path) -> Path:
    """Return the copy of the version of `url` that was planned with.

    Raises:
        DataError: If there is none, or it is of another version.
    """
    copy = copy_of(url, project)
    if not copy.exists() or imported_version(copy) != planned_version(state, url):
        raise DataError(f"{copy} is not the planned version of {url}; `regraft run` imports that first.")
    return copy
