"""Archives, harmless and otherwise."""

import io
import random
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path, PurePosixPath

import pytest

import tasks.download
from regraft.data import archives
from regraft.data.archives import UnsafeName, contents, safe_name, unpack
from regraft.data.sources import guess_kind, parse
from regraft.errors import DataError, ResourceError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings

KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.TGZ")
PICTURES = {"cat/1 one.png": b"meow", "cat/\N{CAT FACE}.PNG": b"purr" * 5000, "dog/2.png": b"woof"}


def tar_mode(path):
    return "w:gz" if path.name.lower().endswith("gz") else "w"


def pack(path, files):
    """Make an archive of `files`, of the kind that `path` ends in."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, tar_mode(path)) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def pack_entries(path, *entries):
    """Make a tar of a good file and of entries without content."""
    with tarfile.open(path, tar_mode(path)) as archive:
        good = tarfile.TarInfo("cat/1.png")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"meow"))
        for name, kind, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(path, tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    unpack(path, directory)
    return tree(directory)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("top", ["", "photos/", "./photos/", "./"])
def test_files_come_out_as_they_went_in_without_the_folder_around_them(tmp_path, name, top):
    path = pack(tmp_path / name, {top + inside: content for inside, content in PICTURES.items()})
    assert contents(path).files == {inside: len(content) for inside, content in sorted(PICTURES.items())}
    assert unpacked(path, tmp_path) == PICTURES


def test_folders_of_an_archive_and_litter_do_not_count(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("photos/", "photos/cat/", "photos/cat/1.png", "__MACOSX/photos/._1.png", "photos/.DS_Store"):
            archive.writestr(name, "")
    assert list(contents(tmp_path / "a.zip").files) == ["cat/1.png"]


def test_only_one_folder_is_taken_off(tmp_path):
    assert list(contents(pack(tmp_path / "a.zip", {"a/b/1.png": b"", "a/b/2.png": b""})).files) == [
        "b/1.png",
        "b/2.png",
    ]
    assert list(contents(pack(tmp_path / "b.zip", {"a/1.png": b"", "2.png": b""})).files) == ["2.png", "a/1.png"]


def test_utf8_names_without_the_flag_that_says_so_are_read(tmp_path):
    path = pack(tmp_path / "a.zip", {"h\N{LATIN SMALL LETTER E WITH ACUTE}n/1.png": b"meow", "x.png": b""})
    raw = bytearray(path.read_bytes())
    raw[7] &= ~0x08  # the flag in the file's header,
    raw[raw.index(b"PK\x01\x02") + 9] &= ~0x08  # and in the directory
    path.write_bytes(raw)
    assert list(contents(path).files) == ["h\N{LATIN SMALL LETTER E WITH ACUTE}n/1.png", "x.png"]


def test_backslashes_in_a_zip_separate_folders(tmp_path):
    path = pack(tmp_path / "a.zip", {"photos\\": b"", "photos\\cat\\1.png": b"meow", "photos\\dog\\2.png": b"woof"})
    assert unpacked(path, tmp_path) == {"cat/1.png": b"meow", "dog/2.png": b"woof"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("inside", ["../evil.png", "cat/../../evil.png", "/tmp/evil.png", "C:\\evil.png"])  # noqa: S108
def test_a_name_that_leads_out_is_refused_and_nothing_is_written(tmp_path, name, inside):
    path = pack(tmp_path / name, {"cat/1.png": b"meow", inside: b"evil"})
    with pytest.raises(DataError, match=r"is refused: the name .*evil.* (leads out of the archive|is absolute)"):
        unpacked(path, tmp_path)
    assert tree(tmp_path / "out") == {}
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_links_and_devices_in_a_tar_are_left_out_and_listed(tmp_path, name):
    path = pack_entries(
        tmp_path / name,
        ("cat/passwords", tarfile.SYMTYPE, "/etc/passwd"),
        ("cat/out", tarfile.SYMTYPE, "../.."),
        ("cat/hard", tarfile.LNKTYPE, "cat/1.png"),
        ("cat/pipe", tarfile.FIFOTYPE, ""),
        ("cat/device", tarfile.CHRTYPE, ""),
    )
    found = contents(path)
    assert unpacked(path, tmp_path) == {"1.png": b"meow"}
    assert {name: reason.split(";")[0] for name, reason in found.skipped.items()} == {
        "cat/passwords": "is a link", "cat/out": "is a link", "cat/hard": "is a link",
        "cat/pipe": "is neither a file nor a folder", "cat/device": "is neither a file nor a folder",
    }  # fmt: skip


def test_nothing_is_written_through_a_link_that_came_before(tmp_path):
    (tmp_path / "outside").mkdir()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("cat")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        archive.addfile(link)
        for name in ("cat/evil.png", "dog/1.png"):
            archive.addfile(tarfile.TarInfo(name))
    assert set(unpacked(path, tmp_path)) == {"cat/evil.png", "dog/1.png"}
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_in_a_zip_is_left_out_and_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("cat/1.png", "meow")
    assert list(contents(tmp_path / "a.zip").skipped) == ["cat/link.png"]
    assert unpacked(tmp_path / "a.zip", tmp_path) == {"1.png": b"meow"}


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "SMALL_BYTES", 1_000_000)
    path = pack(tmp_path / name, {f"{number}.png": bytes(20_000_000) for number in range(2)})
    monkeypatch.setattr(archives, "MAX_RATIO", 900)
    with pytest.raises(DataError, match="as in a decompression bomb"):
        unpacked(path, tmp_path)
    assert tree(tmp_path / "out") == {}


def test_a_zip_that_claims_less_than_comes_out_stops_there(tmp_path):
    path = pack(tmp_path / "a.zip", {"cat/1.png": bytes(5_000_000), "dog/2.png": b"woof"})
    size, claimed = (5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    raw = path.read_bytes()
    assert raw.count(size) == 2
    path.write_bytes(raw.replace(size, claimed))
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked \('cat/1\.png'"):
        unpacked(path, tmp_path)
    assert sum(map(len, tree(tmp_path / "out").values())) <= 1000


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 * 10**9
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(DataError, match="a header in it claims"):
        contents(tmp_path / "a.tar")


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path = pack(tmp_path / "a.zip", {f"cat/{number}.png": b"" for number in range(4)})
    with pytest.raises(DataError, match="more than 3 entries"):
        contents(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = pack(tmp_path / "a.zip", {"cat/1.png": b"meow"})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # the flag in the file's header,
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(raw)
    with pytest.raises(DataError, match="is encrypted"):
        contents(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.97])
def test_a_truncated_archive_is_refused(tmp_path, name, kept):
    noise = random.Random(0)  # noqa: S311
    path = pack(tmp_path / name, {f"{label}/{n}.png": noise.randbytes(9000) for label in "ab" for n in range(3)})
    whole = path.read_bytes()
    # A tar ends in many zeros, of which two blocks matter.
    end = int(kept * (len(whole) if path.suffix != ".tar" else 6 * (512 + 9216)))
    path.write_bytes(whole[:end])
    with pytest.raises(DataError, match=f"{name} cannot be unpacked"):
        unpacked(path, tmp_path)


def test_a_tar_cut_between_two_files_is_refused(tmp_path):
    path = pack(tmp_path / "a.tar", {"a/1.png": bytes(512), "a/2.png": bytes(512)})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="breaks off"):
        contents(path)


@pytest.mark.parametrize(
    "files", [[("a", b"1"), ("a", b"2")], [("a", b"1"), ("./a", b"2")], [("a", b""), ("a/b", b"")]]
)
def test_names_that_collide_are_refused(tmp_path, files):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (*files, ("z/1.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"twice|both as a file and as a folder"):
        contents(tmp_path / "a.tar")


def test_an_archive_larger_than_the_disk_is_found_before_unpacking(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ResourceError, match="Free some space"):
        unpacked(pack(tmp_path / "a.zip", PICTURES), tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_damaged_archive_is_unpacked_inside_its_folder_or_refused(tmp_path, suffix):
    noise = random.Random(1)  # noqa: S311
    whole = pack(tmp_path / f"whole{suffix}", {f"a/{n}.png": noise.randbytes(50) for n in range(4)}).read_bytes()
    used = len(whole) if suffix != ".tar" else 4 * 1024
    path, place = tmp_path / f"a{suffix}", tmp_path / "place"
    for seed in range(400):
        chance = random.Random(seed)  # noqa: S311
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(used)] = chance.choice((0, 255, 46, 47, chance.randrange(256)))
        path.write_bytes(content)
        directory = place / str(seed) / "out"
        directory.mkdir(parents=True)
        try:
            unpack(path, directory)
        except (DataError, ResourceError) as error:  # a damaged size may well be more than the disk has
            assert path.name in str(error)  # noqa: PT017
        assert [entry.name for entry in directory.parent.iterdir()] == ["out"], seed
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "place", f"whole{suffix}"])


def test_whatever_a_name_says_it_stays_inside_or_is_refused():
    pieces = [
        "..",
        ".",
        "/",
        "//",
        "\\",
        "a",
        "b.png",
        " ",
        "\0",
        "\n",
        "C:",
        "\udcff",
        "~",
        "\N{CAT FACE}",
        "x" * 300,
        "-",
    ]
    kept = 0
    for seed in range(5000):
        chance = random.Random(seed)  # noqa: S311
        name = "".join(chance.choices(pieces, k=chance.randint(0, 8)))
        try:
            safe = safe_name(name)
        except UnsafeName:
            continue
        kept += 1
        assert not PurePosixPath(safe).is_absolute(), seed
        assert ".." not in PurePosixPath(safe).parts, seed
        assert Path("/top", safe).resolve().is_relative_to("/top"), seed
        assert safe.encode().decode() == safe == safe_name(safe), seed
    assert kept > 500


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "project").mkdir()
    return Paths(tmp_path / "project")


def download(paths, source):
    tasks.download.run(DownloadSettings(source=source), paths)
    return read_json(paths.reports / "download.json")


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_a_source_like_the_folder_in_it(paths, tmp_path, name):
    path = pack(tmp_path / name, {"photos/LICENSE": b"CC0", **{f"photos/{name}": c for name, c in PICTURES.items()}})
    source = parse(f"folder:{path}", paths.root)
    assert guess_kind(source) == "image"
    report = download(paths, f"folder:{path}")
    assert tree(paths.raw) == {"LICENSE": b"CC0", **PICTURES}
    assert report["licence_files"] == ["LICENSE"]
    assert report["unpacked"] == {"files": 4, "bytes": 20_011}
    fingerprint = source.fingerprint(tmp_path / "index.json")
    assert fingerprint.items() <= report.items()
    assert (fingerprint["files"], fingerprint["bytes"]) == (1, path.stat().st_size)


def test_planning_does_not_look_into_an_archive(paths, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"not a zip at all")
    assert parse(f"folder:{tmp_path}/a.zip", paths.root).fingerprint(tmp_path / "index.json")["files"] == 1


@pytest.mark.parametrize("scheme", ["csv", "table"])
def test_tables_come_out_of_an_archive_alone(paths, tmp_path, scheme):
    path = pack(tmp_path / "a.zip", {"d/train.csv": b"text,label\nx,a\n", "d/test.jsonl": b"{}", "d/README.md": b"hi"})
    assert guess_kind(parse(f"{scheme}:{path}", paths.root)) == "text"
    download(paths, f"{scheme}:{path}")
    assert set(tree(paths.raw)) == {"train.csv", "test.jsonl"}


def test_a_single_table_in_an_archive_may_have_any_name(paths, tmp_path):
    download(paths, f"csv:{pack(tmp_path / 'a.tgz', {'reviews.csv': b'text', 'README': b'hi'})}")
    assert set(tree(paths.raw)) == {"reviews.csv"}


@pytest.mark.parametrize(
    ("scheme", "files", "message"),
    [
        ("folder", {"a.txt": b"x"}, r"holds no images and no recordings: found 1 \.txt"),
        ("folder", {"words.csv": b"x"}, r"use `csv:.*a\.zip`"),
        ("folder", {}, "holds no images and no recordings: found no file at all"),
        ("csv", {"a.txt": b"x"}, r"it holds 1 \.txt"),
        ("csv", {"one.csv": b"x", "two.csv": b"x"}, r"neither a single table nor a train\.csv; it holds one\.csv"),
        ("csv", {"train.csv": b"x", "train.tsv": b"x"}, "for the train split"),
    ],
)
def test_an_archive_without_what_is_needed_is_refused(paths, tmp_path, scheme, files, message):
    path = pack(tmp_path / "a.zip", files)
    with pytest.raises(DataError, match=message):
        download(paths, f"{scheme}:{path}")
    assert not paths.raw.exists()


def test_damaged_content_leaves_the_data_of_before(paths, tmp_path):
    path = pack(tmp_path / "a.zip", PICTURES)
    download(paths, f"folder:{path}")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"1 one.png") + 10] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged, incomplete"):
        download(paths, f"folder:{path}")
    assert tree(paths.raw) == PICTURES
    assert [entry.name for entry in paths.raw.parent.iterdir()] == ["raw"]
