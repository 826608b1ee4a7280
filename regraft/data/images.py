"""Images as Pillow sees them: is this one whole, how large is it, and would TensorFlow see the same pixels?

Pixels are taken as stored: an EXIF orientation is not applied, here as in `tf.io.decode_image`, so that training and
the exported model see the same picture.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
_TENSORFLOW_FORMATS = frozenset(("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP"))
# Of all that Pillow opens only what bears a suffix of images here: to open EPS, say, it starts Ghostscript. MPO is JPEG
# to it; TGA, which has no mark to know it by, comes last; AVIF need not be built in.
Image.init()
_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "DIB", "JPEG2000", "PPM", "TIFF", "AVIF", "TGA")
    if name in Image.OPEN
)
_EXIF_ORIENTATION = 0x0112
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombWarning,
)  # fmt: skip

# Images above the limit are refused below, with a reason; Pillow would print a warning besides. Set once for the
# process, because `warnings.catch_warnings` is not safe in the threads that decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor does it matter what else Pillow minds: damaged notes beside the pixels, as a rule.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(Exception):
    """The bytes are no image that can be used; the message says why, in words that fit after a file's name."""


@dataclass(frozen=True)
class Inspection:
    """What Pillow says of an image.

    Attributes:
        width_px: Columns.
        height_px: Rows.
        suits_tensorflow: Whether `tf.io.decode_image` reads the format and gives these very pixels.
        is_jpeg: Whether it is a JPEG. Of those Pillow decodes whatever TensorFlow decodes, also if it is damaged: both
            rely on libjpeg-turbo, and thousands of damaged files made no difference. So one of them is enough.
        is_rotated: Whether an EXIF tag asks for another orientation than the stored one.
    """

    width_px: int
    height_px: int
    suits_tensorflow: bool
    is_jpeg: bool
    is_rotated: bool


def glance(content: bytes) -> Inspection:
    """Describe an image file by its head alone.

    Raises:
        UnreadableImage: If it is empty, no image or too large; whether it is whole is not known yet.
    """
    with _explaining(content):
        return _describe(_open(content))


def inspect(content: bytes) -> Inspection:
    """Decode an image file wholly and describe it.

    Raises:
        UnreadableImage: If it is empty, no image, broken, truncated or too large.
    """
    return _describe(_decode(content))


def _describe(image: Image.Image) -> Inspection:
    # TensorFlow takes the palette indices of a BMP for grey values, without a word.
    is_palette_bmp = image.format == "BMP" and image.mode not in ("RGB", "L")
    return Inspection(
        width_px=image.width,
        height_px=image.height,
        suits_tensorflow=image.format in _TENSORFLOW_FORMATS and not is_palette_bmp,
        is_jpeg=image.format == "JPEG",
        is_rotated=_is_rotated(image),
    )


def to_png(content: bytes) -> bytes:
    """Return an image file of any format that Pillow reads as an RGB PNG of the same pixels (first frame, no alpha).

    16-bit channels keep their upper 8 bits, as TensorFlow does with 16-bit PNG.

    Raises:
        UnreadableImage: If it cannot be read, or its pixels have no known range (32-bit and floating-point images).
    """
    buffer = io.BytesIO()
    to_rgb(content).save(buffer, "PNG")
    return buffer.getvalue()


def to_rgb(content: bytes) -> Image.Image:
    """Return the pixels that `to_png` would store.

    Raises:
        UnreadableImage: As `to_png` does.
    """
    image = _decode(content)
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"has 32-bit pixels ({image.format}), whose range is not known; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _decode(content: bytes) -> Image.Image:
    with _explaining(content):
        image = _open(content)
        image.load()
    return image


def _open(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(
            f"is too large ({image.width} x {image.height} pixels, at most {MAX_PIXELS:,} in all); scale it down"
        )
    return image


@contextmanager
def _explaining(content: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into the reason why `content` is no image that can be used."""
    if not content:
        raise UnreadableImage("is empty (0 bytes)")
    try:
        yield
    except UnidentifiedImageError:
        raise UnreadableImage(_not_an_image(content)) from None
    except Image.DecompressionBombError:  # Pillow does not even open what is twice as large
        raise UnreadableImage(
            f"is too large (more than {2 * MAX_PIXELS:,} pixels, at most {MAX_PIXELS:,}); scale it down"
        ) from None
    except _BROKEN as error:
        # Pillow may name its buffer by address, which differs from run to run.
        raise UnreadableImage(f"is broken: {re.sub(r'<[^>]*>', 'the file', str(error))}") from None


def _is_rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except _BROKEN:
        return False  # damaged notes about a picture do not make the picture unreadable


def _not_an_image(content: bytes) -> str:
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace")
        return (
            f"is of a kind that cannot be read here ({brand}, as in HEIC photos and videos); convert it to JPEG or PNG"
        )
    try:
        content[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(content), 512) - 4:
            return "is not an image, or of a kind that cannot be read here"
    return "is not an image but text"
