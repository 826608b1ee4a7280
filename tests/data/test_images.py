"""Class folders of images, good and bad."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from regraft.data import examples
from regraft.data.examples import collect_images
from regraft.data.images import UnreadableImage, inspect, to_png
from regraft.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image_format, mode="RGB", pixels=PIXELS, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def sixteen_bits(image_format):
    buffer = io.BytesIO()
    Image.fromarray((np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)).save(buffer, image_format)
    return buffer.getvalue()


def put(raw, name, content):
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def collect(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return collect_images(tmp_path / "raw", scratch)


def decode(example):
    return tf.io.decode_image(example.content.read_bytes(), channels=3, expand_animations=False).numpy()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_formats_that_tensorflow_reads_stay_as_they_came(tmp_path, image_format):
    content = encode(image_format)
    put(tmp_path / "raw", f"cat/1.{image_format.lower()}", content)
    collection = collect(tmp_path)
    (example,) = collection.splits["train"]
    assert example.content.read_bytes() == content
    assert example.id == hashlib.sha256(content).hexdigest()
    assert (example.label, collection.short_sides_px, collection.reencoded) == ("cat", {example.id: 20}, 0)


@pytest.mark.parametrize("suffix", ["tiff", "ppm"])
def test_formats_that_only_pillow_reads_become_png_of_the_same_pixels(tmp_path, suffix):
    put(tmp_path / "raw", f"cat/1.{suffix}", encode(suffix.upper()))
    collection = collect(tmp_path)
    assert collection.reencoded == 1
    np.testing.assert_array_equal(decode(collection.splits["train"][0]), PIXELS)


def test_a_bmp_with_a_palette_is_not_left_to_tensorflow_which_misreads_it(tmp_path):
    content = encode("BMP", mode="P")
    put(tmp_path / "raw", "cat/1.bmp", content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    misread = tf.io.decode_image(content, channels=3).numpy().astype(int)
    assert np.abs(misread - expected).mean() > 10  # if this fails, the rule may no longer be needed
    np.testing.assert_array_equal(decode(collect(tmp_path).splits["train"][0]), expected)


def test_sixteen_bit_tiff_and_png_come_to_the_same_pixels(tmp_path):
    put(tmp_path / "raw", "cat/1.png", sixteen_bits("PNG"))
    put(tmp_path / "raw", "dog/2.tif", sixteen_bits("TIFF"))
    png, tiff = collect(tmp_path).splits["train"]
    assert decode(png).max() == 599 * 109 // 256
    np.testing.assert_array_equal(decode(png), decode(tiff))


def test_cmyk_and_transparent_images_are_read(tmp_path):
    put(tmp_path / "raw", "cat/1.jpg", encode("JPEG", mode="CMYK"))
    put(tmp_path / "raw", "cat/2.png", encode("PNG", mode="RGBA"))
    collection = collect(tmp_path)
    assert not collection.rejects
    assert all(decode(example).shape == (20, 30, 3) for example in collection.splits["train"])


def test_exif_orientation_is_counted_and_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "raw", "cat/1.jpg", encode("JPEG", exif=exif))
    collection = collect(tmp_path)
    assert collection.rotated == 1
    assert decode(collection.splits["train"][0]).shape == (20, 30, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.jpg", encode("JPEG")[:-200], "truncated"),
        ("cut.png", encode("PNG")[:-200], "truncated"),
        ("text.png", b"this is a note, not a picture", "is not an image but text"),
        ("noise.png", bytes(range(256)), "is not an image"),
        ("empty.jpg", b"", "is empty"),
        ("phone.heic", b"\0\0\0\x18ftypheic" + bytes(100), "convert it to JPEG or PNG"),
        ("huge.png", encode("PNG", mode="1", pixels=np.zeros((9500, 9500), np.uint8)), "too large"),
        ("float.tif", encode("TIFF", mode="F"), "32-bit pixels"),
    ],
)
def test_an_unusable_image_is_set_aside_with_the_reason(tmp_path, name, content, reason):
    put(tmp_path / "raw", f"cat/{name}", content)
    put(tmp_path / "raw", "cat/good.png", encode("PNG"))
    collection = collect(tmp_path)
    (reject,) = collection.rejects
    assert reject.name == f"cat/{name}"
    assert reason in reject.reason
    assert "0x" not in reject.reason
    assert reject.label == "cat"
    assert len(collection.splits["train"]) == 1


def test_an_image_in_no_class_folder_is_set_aside(tmp_path):
    put(tmp_path / "raw", "loose.png", encode("PNG"))
    put(tmp_path / "raw", "cat/1.png", encode("PNG"))
    assert [reject.name for reject in collect(tmp_path).rejects] == ["loose.png"]


def test_nested_folders_belong_to_their_class_and_other_files_are_counted(tmp_path):
    put(tmp_path / "raw", "cat/2024/may/1.png", encode("PNG"))
    put(tmp_path / "raw", "cat/notes.txt", b"x")
    put(tmp_path / "raw", "README", b"x")
    collection = collect(tmp_path)
    assert [(example.name, example.label) for example in collection.splits["train"]] == [("cat/2024/may/1.png", "cat")]
    assert collection.ignored_files == 2


def test_an_accent_spelled_in_two_ways_is_one_class(tmp_path):
    put(tmp_path / "raw", "train/caf\u00e9/1.png", encode("PNG"))
    put(tmp_path / "raw", "test/cafe\u0301/1.png", encode("PNG"))
    splits = collect(tmp_path).splits
    assert splits["train"][0].label == splits["test"][0].label == "caf\u00e9"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/a/1", "val/a/2", "test/a/3"], {"train": "a", "validation": "a", "test": "a"}),
        (["Training/a/1", "dev/a/2"], {"train": "a", "validation": "a"}),
        (["train/a/1"], {"train": "a"}),
        (["train/a/1", "test/a/2", "extra/9"], {"train": "a", "test": "a"}),
        (["train/1", "bus/2"], {"train": "train"}),
        (["train/steam/1", "bus/city/2"], {"train": "train"}),
    ],
)
def test_split_folders_are_told_from_class_folders(tmp_path, names, expected):
    for number, name in enumerate(names):
        put(tmp_path / "raw", f"{name}.png", encode("PNG", pixels=PIXELS + np.uint8(number)))
    splits = collect(tmp_path).splits
    assert {split: max(example.label for example in examples) for split, examples in splits.items()} == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/a/1", "test/a/2"], "no folder `train`"),
        (["train/a/1", "val/a/2", "valid/a/3"], "both stand for the validation split"),
    ],
)
def test_ambiguous_split_folders_are_refused(tmp_path, names, message):
    for name in names:
        put(tmp_path / "raw", f"{name}.png", encode("PNG"))
    with pytest.raises(DataError, match=message):
        collect(tmp_path)


def test_inspecting_and_converting_agree_on_what_is_broken():
    for function in (inspect, to_png):
        with pytest.raises(UnreadableImage, match="truncated"):
            function(encode("JPEG")[:-200])


def test_an_image_too_large_even_for_pillow_to_open_is_told_its_size_and_not_called_an_attack():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    with pytest.raises(UnreadableImage, match=r"is too large \(more than 178,956,970 pixels, at most 89,478,485\)"):
        inspect(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""))


def test_a_document_that_would_start_a_program_is_no_image_whatever_its_name():
    with pytest.raises(UnreadableImage, match="is not an image"):
        inspect(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(("setting", "column"), [("target_column", "breed"), ("text_column", "caption")])
def test_a_column_named_for_class_folders_is_refused_rather_than_overlooked(tmp_path, setting, column):
    put(tmp_path / "raw", "cats/1.png", encode("PNG"))
    with pytest.raises(DataError, match=f"preprocess.{setting} is '{column}', and the source"):
        examples.collect("image", tmp_path / "raw", tmp_path, **{setting: column})


def test_a_table_of_another_name_beside_the_images_is_named(tmp_path, caplog):
    put(tmp_path / "raw", "train/1.png", encode("PNG"))
    put(tmp_path / "raw", "train/metadata.csv", b"file_name,label\n1.png,cat\n")
    collect(tmp_path)
    assert "'train/metadata.csv' is not read: labels beside files stand in a table called labels.csv" in caplog.text
