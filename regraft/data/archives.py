"""Archives: what is in one, told without unpacking it, and its files unpacked where nothing in it can do harm.

An archive comes from elsewhere, so nothing it says is believed: every name is checked before a file is opened, only
regular files are written (links and devices are left out and listed; owners and modes do not count), sizes are counted
as they come, and the whole archive is looked through before the first file is written. `tarfile.extractall` and
`zipfile.extractall` are not used at all; they repair names (an absolute one becomes relative) where this refuses them.
"""

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from regraft.errors import DISK_ERRORS, DataError
from regraft.files import require_room

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_MEMBERS = 1_000_000
# More than so many bytes for each byte of the archive is a bomb, unless it is little in all.
MAX_RATIO = 1000
SMALL_BYTES = 1_000_000_000
_MAX_NAME_BYTES = 255  # of a file or folder on the usual file systems
_MAX_PATH_BYTES = 2000
_MAX_HEADER_BYTES = 16_000_000
_CHUNK_BYTES = 1 << 20
_LITTER = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"))
# What zipfile, tarfile and zlib raise on damaged input, or on compression that Python does not know.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, ValueError, IndexError,
    OverflowError, RuntimeError,
)  # fmt: skip


class UnsafeName(ValueError):
    """The name in an archive leads out of it or cannot be a file's; the message says why, to fit after the name."""


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    Attributes:
        files: Size in bytes of each file, by its name (with `/`) without a folder that holds everything, sorted.
        skipped: Why an entry is not in `files` (a link, a device), by its name in the archive.
    """

    files: dict[str, int]
    skipped: dict[str, str]


@dataclass(frozen=True)
class _Member:
    """An entry of an archive: its checked `name`, declared size, and what keeps it out (`fault`), if anything does."""

    name: str
    size_bytes: int
    fault: str
    open: Callable[[], Any]


def is_archive_name(name: str) -> bool:
    """Return whether `name` ends as archives do that can be unpacked here."""
    return name.lower().endswith(SUFFIXES)


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or something operating systems leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def contents(path: Path) -> Contents:
    """Return what the archive at `path` holds, from its directory or headers.

    Raises:
        DataError: If it is damaged, encrypted, a bomb, or has names that lead out of it or collide.
    """
    with _open(path) as members:
        return _contents(path, members)


def unpack(path: Path, directory: Path, wanted: Callable[[str], bool] = lambda _: True) -> Contents:
    """Write the files of the archive at `path` whose names are `wanted` into the empty folder `directory`.

    Raises:
        DataError: As for `contents`, or if a file's content is damaged.
        ResourceError: If the disk has no room for them.
    """
    with _open(path) as members:
        found = _contents(path, members)
        files = {name: size for name, size in found.files.items() if wanted(name)}
        require_room(directory, sum(files.values()), f"what is in {path.name}")
        strip = _top_folder(members)
        for member in members:
            name = member.name.removeprefix(strip)
            if not member.fault and name in files:
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(path, member, target)
    return Contents(files, found.skipped)


def safe_name(name: str) -> str:
    """Return `name` relative, with single `/` between its parts and no `.` among them; empty for the top itself.

    Raises:
        UnsafeName: If it is absolute, has a part `..`, or could not be a file's name here.
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name):
        raise UnsafeName("is absolute")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafeName("leads out of the archive (`..`)")
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        raise UnsafeName("is not UTF-8") from None
    if "\0" in name:
        raise UnsafeName("has a null character in it")
    if any(len(part) > _MAX_NAME_BYTES for part in encoded) or len(name.encode()) > _MAX_PATH_BYTES:
        raise UnsafeName("is too long for a file's name")
    return "/".join(parts)


def _contents(path: Path, members: list[_Member]) -> Contents:
    """Check `members` against each other and return them by their names without a common top folder."""
    strip = _top_folder(members)
    files: dict[str, int] = {}
    for member in members:
        name = member.name.removeprefix(strip)
        if member.fault:
            continue
        if name in files:
            raise DataError(f"{path.name} holds {member.name!r} twice; pack it again.")
        files[name] = member.size_bytes
    for name in files:
        folders = name.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if (above := "/".join(folders[:depth])) in files:
                raise DataError(f"{path.name} holds {above!r} both as a file and as a folder; pack it again.")
    return Contents(dict(sorted(files.items())), {member.name: member.fault for member in members if member.fault})


def _top_folder(members: list[_Member]) -> str:
    """Return the folder that holds every file, as `folder/`; nothing if there is none."""
    tops = {member.name.partition("/")[::2] for member in members if not member.fault}
    names = {top for top, _ in tops}
    return f"{names.pop()}/" if len(names) == 1 and all(below for _, below in tops) else ""


@contextmanager
def _open(path: Path) -> Iterator[list[_Member]]:
    """Yield the members of the archive at `path` (not folders, not litter), open for reading."""
    with ExitStack() as stack:
        with _explaining(path):
            file = stack.enter_context(path.open("rb"))
            members = (_zip_members if path.name.lower().endswith(".zip") else _tar_members)(path, file, stack)
        yield [member for member in members if not any(map(is_litter, member.name.split("/")))]


def _zip_members(path: Path, file: IO[bytes], stack: ExitStack) -> list[_Member]:
    archive = stack.enter_context(zipfile.ZipFile(file))
    budget, members = _Budget(path), []
    for info in archive.infolist():
        budget.add(info.file_size)
        # Some Windows programs separate folders by backslashes, against the standard.
        name = _zip_name(info).replace("\\", "/")
        checked = _checked(path, name)
        if not checked or name.endswith("/"):
            continue
        if info.flag_bits & 0x1:
            raise DataError(
                f"{path.name} is encrypted ({name!r} needs a password). Unpack it yourself and let the source point to "
                "the folder."
            )
        fault = _fault(stat.S_IFMT(info.external_attr >> 16))
        members.append(_Member(checked, info.file_size, fault, partial(archive.open, info)))
    return members


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member, read as UTF-8 if it can be: macOS writes that without the flag that says so."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _tar_members(path: Path, file: IO[bytes], stack: ExitStack) -> list[_Member]:
    is_compressed = path.name.lower().endswith("gz")
    content = stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")) if is_compressed else file
    stream = _Bounded(path, content, is_compressed=is_compressed)
    archive = stack.enter_context(tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:"))  # noqa: SIM115 (on the stack)
    budget, members = _Budget(path), []
    for info in archive:
        budget.add(info.size)
        name = _checked(path, info.name)
        if not name or info.isdir():
            continue
        kind = stat.S_IFREG if info.isreg() else stat.S_IFLNK if info.issym() or info.islnk() else stat.S_IFCHR
        members.append(_Member(name, info.size, _fault(kind), partial(archive.extractfile, info)))
    # tarfile takes a header it cannot read for the end; a true end is a block of zeros.
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it breaks off, or a header in it is damaged")
    return members


def _checked(path: Path, name: str) -> str:
    try:
        return safe_name(name)
    except UnsafeName as error:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise DataError(
            f"{path.name} is refused: the name {shown[:200]!r} in it {error}. If you trust it, unpack it yourself and "
            "let the source point to the folder."
        ) from None


def _fault(kind: int) -> str:
    """Return why an entry of this kind (as in `stat.S_IFMT`; 0 is unknown, hence a file) is left out, if it is."""
    if kind == stat.S_IFLNK:
        return "is a link; links in archives are not followed"
    return "" if kind in (0, stat.S_IFREG) else "is neither a file nor a folder"


def _write(path: Path, member: _Member, target: Path) -> None:
    """Write one member's content to the new file `target`."""
    written = 0
    with target.open("xb") as file:
        for chunk in _chunks(path, member):
            written += len(chunk)
            file.write(chunk)
    if written != member.size_bytes:
        raise _damaged(path, f"{member.name!r} has {written} bytes and should have {member.size_bytes}")


def _chunks(path: Path, member: _Member) -> Iterator[bytes]:
    """Yield the content of `member`; neither zipfile nor tarfile hands out more than its declared size."""
    with _explaining(path, member.name):
        content = member.open()
    with content:
        while True:
            with _explaining(path, member.name):
                chunk = content.read(_CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


@contextmanager
def _explaining(path: Path, name: str = "") -> Iterator[None]:
    """Turn what damaged archives make Python raise into one clear error; a failing disk stays what it is."""
    try:
        yield
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        what = f"{str(error) or type(error).__name__}"
        raise _damaged(path, f"{name!r}: {what}" if name else what) from None


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path.name} cannot be unpacked ({what}): it is damaged, incomplete or not what its name says. Download or "
        "pack it again."
    )


class _Budget:
    """Counts members and their declared sizes, and refuses an archive as soon as they are too many or too much."""

    def __init__(self, path: Path) -> None:
        self._path, self._packed_bytes = path, path.stat().st_size
        self._members = self._bytes = 0

    def add(self, size_bytes: int) -> None:
        if size_bytes < 0:  # tarfile of Python 3.11.7 would read such a member for ever
            raise tarfile.ReadError("a member has a negative size")
        self._members += 1
        self._bytes += size_bytes
        if self._members > MAX_MEMBERS:
            raise DataError(f"{self._path.name} is refused: it holds more than {MAX_MEMBERS:,} entries.")
        self.check(self._bytes)

    def check(self, unpacked_bytes: int) -> None:
        if unpacked_bytes > SMALL_BYTES and unpacked_bytes > MAX_RATIO * self._packed_bytes:
            raise DataError(
                f"{self._path.name} is refused: {self._packed_bytes:,} bytes would become more than "
                f"{unpacked_bytes / 1e9:.1f} GB, as in a decompression bomb. If you trust it, unpack it yourself and "
                "let the source point to the folder."
            )


class _Bounded(io.RawIOBase):
    """A stream that refuses to decompress a bomb, or to hand out a header that would fill the memory."""

    def __init__(self, path: Path, stream: Any, *, is_compressed: bool) -> None:
        self._path, self._stream, self._is_compressed, self._budget = path, stream, is_compressed, _Budget(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DataError(f"{self._path.name} is refused: a header in it claims {size:,} bytes.")
        content: bytes = self._stream.read(size)
        self._budget.check(self._stream.tell())
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # In steps, because to seek ahead in a compressed stream is to decompress what lies between.
        while self._is_compressed and whence == io.SEEK_SET and offset - self._stream.tell() > _MAX_HEADER_BYTES:
            if not self.read(_MAX_HEADER_BYTES):
                break
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())
