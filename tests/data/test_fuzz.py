"""Damaged files of every kind, made from small whole ones: read or refused, nothing else, and in bounded memory."""

import io
import resource
import struct
import tarfile
import tempfile
import zipfile
import zlib
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft.data import audio
from regraft.data.archives import contents, unpack
from regraft.data.audit import find_copies
from regraft.data.examples import tensorflow_reads
from regraft.data.images import UnreadableImage, glance, inspect, to_png
from regraft.data.labels import read_labels
from regraft.data.tables import parse_csv, parse_jsonl, parse_parquet
from regraft.errors import DataError, ResourceError
from tests.sounds import recorded

# Of Pillow, about damaged notes; `regraft.data.images` silences them, and pytest turns them on again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
NOISE = np.random.default_rng(0).normal(0, 0.1, 400)
# Sizes and counts that programs have stumbled over.
CLAIMS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def damaged(draw, wholes):
    """Return one of `wholes` after a few changes: bytes, claims, cuts, repeats, and pieces of others."""
    whole = draw(st.sampled_from(wholes))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Headers are where the claims are, so half of the changes fall there.
        place = draw(st.integers(0, max(1, min(len(content), draw(st.sampled_from((64, len(whole))))))))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("bit", "claim", "cut", "drop", "repeat", "splice", "noise"))):
            case "bit" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "claim":
                form = draw(st.sampled_from(("<I", ">I", "<H", ">H", "<Q", ">Q")))
                claim = draw(st.sampled_from(CLAIMS)) % (1 << 8 * struct.calcsize(form))
                content[place : place + struct.calcsize(form)] = struct.pack(form, claim)
            case "cut":
                del content[place:]
            case "drop":
                del content[place : place + length]
            case "repeat":
                content[place:place] = content[place : place + length]
            case "splice":
                other = draw(st.sampled_from(wholes))
                start = draw(st.integers(0, len(other)))
                content[place:place] = other[start : start + length]
            case _:
                content[place : place + length] = draw(st.binary(max_size=length))
    return bytes(content)


def fuzz(strategy, examples):
    """Run a test on so many damaged files by default, always the same ones, and on many more in the slow run."""
    settled = settings(
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=20),  # a hang, not a busy machine
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

    def decorate(test):
        def run(content):
            test(content)

        run.__name__ = test.__name__
        default = settings(settled, max_examples=examples)(given(strategy)(run))
        thorough = settings(settled, max_examples=30 * examples)(given(strategy)(run))

        @pytest.mark.parametrize("check", [default, pytest.param(thorough, marks=pytest.mark.slow)], ids=["", "long"])
        def both(check):
            check()

        return both

    return decorate


def picture(form, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form, **options)
    return file.getvalue()


def animated(form):
    frames = [Image.fromarray(np.roll(PIXELS, shift, axis=0)) for shift in range(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES = [
    *(picture(form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000")),
    picture("JPEG", "CMYK"), picture("JPEG", progressive=True), picture("PNG", "P"), picture("PNG", "RGBA"),
    picture("BMP", "P"), picture("TIFF", compression="tiff_lzw"), picture("TIFF", "CMYK"), picture("PNG", "I;16"),
    *(animated(form) for form in ("GIF", "WEBP", "PNG", "TIFF", "MPO")),
]  # fmt: skip


@fuzz(damaged(PICTURES), 400)
def test_a_damaged_picture_is_read_or_refused(content):
    try:
        seen = glance(content)
        # What `collect_images` relies on: for these it leaves the second decoder out.
        is_proven = seen.is_jpeg and tensorflow_reads(content)
    except UnreadableImage:
        is_proven = False
    try:
        inspection = inspect(content)
    except UnreadableImage as error:
        assert not is_proven
        assert str(error).startswith(("is ", "has "))  # noqa: PT017
        return
    assert inspection.width_px * inspection.height_px > 0
    try:
        png = to_png(content)
    except UnreadableImage:
        return
    again = inspect(png)
    assert (again.width_px, again.height_px) == (inspection.width_px, inspection.height_px)
    tensorflow_reads(content)
    assert find_copies("image", [content, png]).contents == [0, 0]


SOUNDS = [
    *(recorded(NOISE, 8000, form=form) for form in ("WAV", "FLAC", "OGG", "AIFF", "MP3")),
    recorded(np.stack([NOISE, NOISE], 1), 44_100), recorded(NOISE, 16_000, subtype="FLOAT"),
    recorded(NOISE, 16_000, subtype="ULAW"), recorded(NOISE, 16_000, form="FLAC", subtype="PCM_24"),
]  # fmt: skip


@fuzz(damaged(SOUNDS), 500)
def test_a_damaged_recording_is_read_or_refused(content):
    try:
        recording = audio.decode(content)
    except audio.UnreadableAudio as error:
        assert str(error).startswith(("is ", "has ", "holds "))  # noqa: PT017
        return
    assert np.isfinite(recording.samples).all()
    kept = audio.decode(recording.to_wav())
    assert (len(kept.samples), kept.rate_hz, kept.is_plain) == (len(recording.samples), recording.rate_hz, True)


@cache
def parquet_files():
    columns = {"text": [f"text {number}" for number in range(50)], "label": [number % 3 for number in range(50)]}
    files = []
    for compression in ("NONE", "SNAPPY", "ZSTD", "GZIP"):
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, compression=compression)
        files.append(file.getvalue())
    return files


@fuzz(damaged(parquet_files()), 300)
def test_a_damaged_parquet_file_is_read_or_refused(content):
    check_table(parse_parquet, "x.parquet", content)


TABLES = [
    b'text,label\n"one, two",a\n"say ""hi""",b\n',
    "\ufefftext;label\r\nä;b\r\n".encode(),
    b"text\tlabel\none\ta\n",
    "text,label\ncafé,a\n".encode("latin-1"),
    "text,label\none,a\n".encode("utf-16"),
    b'{"text": "one, two", "label": 1}\n{"text": "b", "c": null, "d": NaN, "e": 1e400}\n',
    b'{"text": "\\ud83d\\ude00", "label": [1]}\n' + b"[" * 40 + b"\n",
]


@fuzz(damaged(TABLES) | st.binary(max_size=60), 400)
def test_a_damaged_table_is_read_or_refused(content):
    check_table(parse_csv, "x.csv", content)
    check_table(parse_jsonl, "x.jsonl", content)


def check_table(parse, name, content):
    try:
        header, rows = parse(name, content)
    except DataError as error:
        assert str(error).startswith(name)  # noqa: PT017
        return
    "".join([*header, *(cell for _, cells in rows for cell in cells)]).encode()


LABELS = [
    b"file,label\na.png,x\nb/c.png,y\n",
    b"image,split,label\na,train,x\nc,test,y\na,test,x\n",
    b"path,label\n../a.png,x\n/etc/passwd,y\n./b\\c.png,z\n",
]


@fuzz(damaged(LABELS), 200)
def test_a_damaged_table_of_labels_names_files_that_are_there_or_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "labels.csv").write_bytes(content)
        try:
            labels = read_labels(Path(folder), ["labels.csv", "a.png", "b/c.png"], None)
        except DataError as error:
            assert "labels.csv" in str(error)  # noqa: PT017
            return
    if labels is not None:
        assert {file.name for file in labels.files} <= {"a.png", "b/c.png"}
        assert {file.split for file in labels.files} <= {"train", "validation", "test"}


@cache
def archives_of(suffix):
    files = {"a/1.txt": b"one" * 30, "a/b/2.txt": bytes(range(256)), "a/../3.txt": b"out", "/4.txt": b"absolute"}
    made = []
    for names in (["a/1.txt", "a/b/2.txt"], list(files)):
        file = io.BytesIO()
        if suffix == ".zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.writestr(name, files[name])
        else:
            with tarfile.open(fileobj=file, mode="w:gz" if suffix == ".tar.gz" else "w") as archive:
                for name in names:
                    info = tarfile.TarInfo(name)
                    info.size = len(files[name])
                    archive.addfile(info, io.BytesIO(files[name]))
        made.append(file.getvalue())
    return made


def check_archive(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"a{suffix}"), Path(folder, "in", "out")
        path.write_bytes(content)
        out.mkdir(parents=True)
        try:
            listed = contents(path).files
            assert unpack(path, out).files == listed
        except (DataError, ResourceError) as error:  # a damaged size may well be more than the disk has
            assert path.name in str(error)  # noqa: PT017
        else:
            found = {file.relative_to(out).as_posix(): file.stat().st_size for file in out.rglob("*") if file.is_file()}
            assert found == listed
        assert [entry.name for entry in out.parent.iterdir()] == ["out"]
        assert {entry.name for entry in Path(folder).iterdir()} == {path.name, "in"}


@fuzz(damaged(archives_of(".zip")), 250)
def test_a_damaged_zip_is_unpacked_in_its_place_or_refused(content):
    check_archive(".zip", content)


@fuzz(damaged(archives_of(".tar")), 250)
def test_a_damaged_tar_is_unpacked_in_its_place_or_refused(content):
    check_archive(".tar", content)


@fuzz(damaged(archives_of(".tar.gz")), 150)
def test_a_damaged_compressed_tar_is_unpacked_in_its_place_or_refused(content):
    check_archive(".tar.gz", content)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def png_of(width, height, content=b""):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def patched(content, place, form, value):
    changed = bytearray(content)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


@pytest.mark.parametrize(
    "content",
    [
        png_of(60_000, 60_000),
        png_of(0x7FFFFFFF, 0x7FFFFFFF),
        png_of(20_000, 20_000, bytes(1000)),
        patched(picture("GIF"), 6, "<I", 0xFFFFFFFF),
        patched(picture("BMP"), 18, "<i", 60_000),
        patched(patched(picture("BMP"), 18, "<i", 60_000), 22, "<i", 60_000),
        b"P6 60000 60000 255\n" + bytes(100),
    ],
)
def test_a_picture_that_claims_to_be_huge_is_refused_without_making_room_for_it(content):
    before = peak_mb()
    with pytest.raises(UnreadableImage):
        inspect(content)
    assert peak_mb() - before < 400


def streamed_flac(samples=0, channels=1, rate_hz=8000):
    """A FLAC file of noise whose head claims so many samples; 0 is what a program writes that does not know yet."""
    whole = bytearray(recorded(np.stack([NOISE] * channels, 1), rate_hz, form="FLAC"))
    whole[21] = whole[21] & 0xF0 | samples >> 32
    whole[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        patched(recorded(NOISE, 8000), 40, "<I", 0xFFFFFFF0),
        streamed_flac((1 << 36) - 1),
        streamed_flac(500_000),
    ],
    ids=["WAV", "FLAC", "FLAC a little"],
)
def test_a_recording_that_claims_to_be_long_is_refused_without_making_room_for_it(content):
    before = peak_mb()
    with pytest.raises(audio.UnreadableAudio, match=r"cut off|too long|broken"):
        audio.decode(content)
    assert peak_mb() - before < 300


def test_a_flac_file_written_by_a_program_that_did_not_know_its_length_is_read():
    assert len(audio.decode(streamed_flac()).samples) == len(NOISE)


def test_hours_of_silence_in_a_small_file_are_refused_in_bounded_memory():
    silence = recorded(np.zeros((2_000_000, 8), np.int16), 192_000, form="FLAC")
    assert len(silence) < 400_000
    before = peak_mb()
    assert len(audio.decode(silence).samples) == 2_000_000
    assert peak_mb() - before < 200
