"""Random changes of training images and sounds that keep their label: pure functions of picture and seed."""

import math
from collections.abc import Callable

import tensorflow as tf

# Each is drawn evenly from plus or minus this much.
ROTATION = math.radians(8.0)
ZOOM = 0.12  # natural logarithm of the scale, so that growing and shrinking are equally likely
STRETCH = 0.06  # of width against height, natural logarithm
SHIFT = 0.08  # of the side
BRIGHTNESS = 0.10  # of the range of values
CONTRAST = 0.20
# Of pictures of sound. Wider masks hide a short word altogether.
SOUND_SHIFT = 0.10  # of the time a picture shows, either way
MASKS = 2  # of each direction
WIDEST_MASK = 0.15  # of the side


def augmentation(*, flip: bool) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return the function that varies one image, see `augment_image`."""
    return lambda image, seed: augment_image(image, seed, flip=flip)


def augment_image(image: tf.Tensor, seed: tf.Tensor, *, flip: bool) -> tf.Tensor:
    """Return `image` slightly turned, scaled, shifted, brightened, and (if `flip`) mirrored half of the time.

    Geometry is one resampling, bilinear; what comes in from outside repeats the edge mirrored.

    Args:
        image: float32, shape (height, width, 3), values in [0, 255].
        seed: Integers, shape (2,); equal seeds give equal images.
        flip: Whether a mirror image keeps its label. Not so for digits and letters: see `strategies.flip_is_safe`.
    """
    draws = tf.random.stateless_uniform((8,), seed, -1.0, 1.0)
    turn, grow, stretch, right, down, brighter, contrast, mirror = tf.unstack(draws)
    side = tf.where(mirror < 0.0, -1.0, 1.0) if flip else 1.0
    moved = _affine(
        image,
        angle=turn * ROTATION,
        scale_x=side * tf.exp(grow * ZOOM + stretch * STRETCH),
        scale_y=tf.exp(grow * ZOOM - stretch * STRETCH),
        shift_x=right * SHIFT,
        shift_y=down * SHIFT,
    )
    mean = tf.reduce_mean(moved)
    lit = (moved - mean) * (1.0 + contrast * CONTRAST) + mean + brighter * BRIGHTNESS * 255.0
    return tf.clip_by_value(lit, 0.0, 255.0)


def augment_spectrogram(picture: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Return `picture` a little earlier or later, with bands of time and of pitch hidden; never mirrored or turned.

    What comes in from outside and what is hidden is black, which stands for silence.

    Args:
        picture: float32, shape (..., pitch, time, 3), values in [0, 255]; leading axes share the change.
        seed: Integers, shape (2,); equal seeds give equal pictures.

    Source: masks from Park et al., SpecAugment, 2019 (arXiv:1904.08779).
    """
    draws = tf.random.stateless_uniform((1 + 4 * MASKS,), seed)
    pitches, times = tf.shape(picture)[-3], tf.shape(picture)[-2]
    shift = tf.cast(tf.round((2.0 * draws[0] - 1.0) * SOUND_SHIFT * tf.cast(times, tf.float32)), tf.int32)
    place = tf.range(times)
    comes_from_inside = (place >= shift) & (place < times + shift)
    moved = tf.where(comes_from_inside[:, None], tf.roll(picture, shift, axis=-2), 0.0)
    for number in range(MASKS):
        first = 1 + 4 * number
        hidden_pitch = _band(pitches, draws[first], draws[first + 1])[:, None, None]
        hidden_time = _band(times, draws[first + 2], draws[first + 3])[:, None]
        moved = tf.where(hidden_pitch | hidden_time, 0.0, moved)
    return moved


def _band(size: tf.Tensor, width: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Return which of `size` positions lie in a band, bool; `width` and `place` are drawn from [0, 1)."""
    total = tf.cast(size, tf.float32)
    length = tf.round(width * WIDEST_MASK * total)
    start = tf.round(place * (total - length))
    positions = tf.range(total)
    return (positions >= start) & (positions < start + length)


def _affine(
    image: tf.Tensor,
    *,
    angle: tf.Tensor,
    scale_x: tf.Tensor,
    scale_y: tf.Tensor,
    shift_x: tf.Tensor,
    shift_y: tf.Tensor,
) -> tf.Tensor:
    """Turn by `angle` (radians) and scale about the centre, then shift by fractions of the sides."""
    height, width = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(image)[:2]))
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    # The operation asks, for each pixel of the result, where it comes from: the inverse of what is done to the picture.
    a, b = tf.cos(angle) / scale_x, tf.sin(angle) / scale_x
    c, d = -tf.sin(angle) / scale_y, tf.cos(angle) / scale_y
    to_x, to_y = centre_x + shift_x * width, centre_y + shift_y * height
    transform = tf.stack([a, b, centre_x - a * to_x - b * to_y, c, d, centre_y - c * to_x - d * to_y, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]
