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
SATURATION = 0.25
# Of pictures of sound. Wider masks hide a short word altogether.
SOUND_SHIFT = 0.10  # of the time a picture shows, either way
MASKS = 2  # of each direction
WIDEST_MASK = 0.15  # of the side


Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def augmentation(*, flip: bool) -> Augment:
    """Return the function that varies images, see `augment_images`."""
    return lambda images, seeds: augment_images(images, seeds, flip=flip)


def augment_images(images: tf.Tensor, seeds: tf.Tensor, *, flip: bool) -> tf.Tensor:
    """Return `images` slightly turned, scaled, shifted, in other light and colour; if `flip`, half of them mirrored.

    Geometry is one resampling, bilinear; what comes in from outside repeats the edge mirrored. Colours become stronger
    or weaker but keep their hue, which may be what tells classes apart.

    Args:
        images: float32, shape (B, height, width, 3), values in [0, 255].
        seeds: Integers, shape (B, 2); equal ones vary an image alike, but for rounding, whatever stands beside it.
        flip: Whether a mirror image keeps its label. Not so for digits and letters: see `mirrors.flip_is_safe`.
    """
    draws = 2.0 * _draws(seeds, 9) - 1.0
    turn, grow, stretch, right, down, brighter, contrast, mirror, colour = tf.unstack(draws, axis=1)
    side = tf.where(mirror < 0.0, -1.0, 1.0) if flip else 1.0
    moved = _affine(
        images,
        angle=turn * ROTATION,
        scale_x=side * tf.exp(grow * ZOOM + stretch * STRETCH),
        scale_y=tf.exp(grow * ZOOM - stretch * STRETCH),
        shift_x=right * SHIFT,
        shift_y=down * SHIFT,
    )

    def of_each(values: tf.Tensor) -> tf.Tensor:
        return values[:, None, None, None]

    grey = tf.reduce_mean(moved, axis=3, keepdims=True)
    mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    coloured = grey + (moved - grey) * of_each(1.0 + colour * SATURATION)
    lit = (coloured - mean) * of_each(1.0 + contrast * CONTRAST) + mean + of_each(brighter * BRIGHTNESS * 255.0)
    return tf.clip_by_value(lit, 0.0, 255.0)


def augment_spectrograms(pictures: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Return `pictures` a little earlier or later, with bands of time and of pitch hidden; never mirrored or turned.

    What comes in from outside and what is hidden is black, which stands for silence.

    Args:
        pictures: float32, shape (B, pitch, time, 3), or (B, windows, pitch, time, 3), whose windows share the change;
            values in [0, 255].
        seeds: Integers, shape (B, 2); as for `augment_images`.

    Source: masks from Park et al., SpecAugment, 2019 (arXiv:1904.08779).
    """
    draws = _draws(seeds, 1 + 4 * MASKS)
    windows = (1,) * (len(pictures.shape) - 4)
    pitches, times = tf.shape(pictures)[-3], tf.shape(pictures)[-2]

    def of_each(values: tf.Tensor, *, by_time: bool) -> tf.Tensor:
        return tf.reshape(values, (-1, *windows, *((1, times) if by_time else (pitches, 1)), 1))

    shift = tf.cast(tf.round((2.0 * draws[:, :1] - 1.0) * SOUND_SHIFT * tf.cast(times, tf.float32)), tf.int32)
    comes_from = tf.range(times) - shift  # (B, times)
    inside = (comes_from >= 0) & (comes_from < times)
    first_axis = len(pictures.shape) - 2
    aligned = tf.reshape(tf.clip_by_value(comes_from, 0, times - 1), (-1, *windows, 1, times))
    aligned = tf.broadcast_to(aligned, tf.shape(pictures)[:-1])
    moved = tf.gather(pictures, aligned, axis=first_axis, batch_dims=first_axis)
    moved = tf.where(of_each(inside, by_time=True), moved, 0.0)
    for number in range(MASKS):
        width_of_pitch, pitch, width_of_time, time = tf.unstack(draws[:, 1 + 4 * number : 5 + 4 * number], axis=1)
        hidden_pitch = of_each(_band(pitches, width_of_pitch, pitch), by_time=False)
        hidden_time = of_each(_band(times, width_of_time, time), by_time=True)
        moved = tf.where(hidden_pitch | hidden_time, 0.0, moved)
    return moved


def _draws(seeds: tf.Tensor, count: int) -> tf.Tensor:
    """Return `count` numbers from [0, 1) for each of `seeds` (B, 2), float32, shape (B, count)."""
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform((count,), seed),
        seeds,
        fn_output_signature=tf.TensorSpec((count,), tf.float32),
    )


def _band(size: tf.Tensor, width: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Return which of `size` positions lie in a band, bool (B, size); `width` and `place` are drawn from [0, 1)."""
    total = tf.cast(size, tf.float32)
    length = tf.round(width * WIDEST_MASK * total)[:, None]
    start = tf.round(place[:, None] * (total - length))
    positions = tf.range(total)
    return (positions >= start) & (positions < start + length)


def _affine(
    images: tf.Tensor,
    *,
    angle: tf.Tensor,
    scale_x: tf.Tensor,
    scale_y: tf.Tensor,
    shift_x: tf.Tensor,
    shift_y: tf.Tensor,
) -> tf.Tensor:
    """Turn by `angle` (radians), scale about the centre, then shift by fractions of the sides; each of shape (B,)."""
    height, width = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(images)[1:3]))
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    # The operation asks, for each pixel of the result, where it comes from: the inverse of what is done to the picture.
    a, b = tf.cos(angle) / scale_x, tf.sin(angle) / scale_x
    c, d = -tf.sin(angle) / scale_y, tf.cos(angle) / scale_y
    to_x, to_y = centre_x + shift_x * width, centre_y + shift_y * height
    none = tf.zeros_like(a)
    rows = [a, b, centre_x - a * to_x - b * to_y, c, d, centre_y - c * to_x - d * to_y, none, none]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
