"""Random changes of training images."""

import numpy as np
import tensorflow as tf

from regraft.tuning import augment
from regraft.tuning.augment import augment_image


def picture(side=32):
    """Grey, with a bright disc left of the middle."""
    down, right = np.mgrid[:side, :side]
    pixels = np.full((side, side, 3), 90.0, np.float32)
    pixels[(down - side / 2) ** 2 + (right - side / 4) ** 2 < (side / 8) ** 2] = 220.0
    return tf.constant(pixels)


def centre(image):
    """Mean position (down, right) of the bright pixels, as fractions of the side."""
    grey = image.numpy().mean(axis=2)
    bright = grey > (grey.min() + grey.max()) / 2
    return np.argwhere(bright).mean(axis=0) / grey.shape[0]


def varied(count, *, flip):
    return [augment_image(picture(), tf.constant([5, number]), flip=flip) for number in range(count)]


def test_equal_seeds_give_equal_images_and_others_differ():
    first, second = (augment_image(picture(), tf.constant([1, 2]), flip=True).numpy() for _ in range(2))
    assert (first == second).all()
    assert (first != augment_image(picture(), tf.constant([1, 3]), flip=True).numpy()).any()


def test_values_stay_in_range_and_the_shape_stays():
    for image in varied(20, flip=True):
        assert image.shape == (32, 32, 3)
        assert image.dtype == tf.float32
        assert 0.0 <= image.numpy().min() <= image.numpy().max() <= 255.0


def test_without_flip_what_is_on_the_left_stays_on_the_left():
    assert max(centre(image)[1] for image in varied(40, flip=False)) < 0.5


def test_with_flip_about_half_of_the_images_are_mirrored():
    mirrored = sum(centre(image)[1] > 0.5 for image in varied(40, flip=True))
    assert 10 <= mirrored <= 30


def test_nothing_moves_further_than_the_limits_allow():
    # The disc is a quarter of the side from the middle: zoom and stretch move it by 5%, turning by 4%, shifting by 8%.
    for image in varied(40, flip=False):
        down, right = centre(image)
        assert abs(down - 0.5) < 0.15
        assert abs(right - 0.25) < 0.17


def test_with_all_limits_at_zero_the_image_is_left_alone(monkeypatch):
    for name in ("ROTATION", "ZOOM", "STRETCH", "SHIFT", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    np.testing.assert_allclose(augment_image(picture(), tf.constant([1, 2]), flip=False), picture(), atol=1e-3)
