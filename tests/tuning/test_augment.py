"""Random changes of training images and sounds."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.tuning import augment
from regraft.tuning.augment import augment_images, augment_spectrograms


def augment_image(image, seed, *, flip):
    return augment_images(image[None], seed[None], flip=flip)[0]


def augment_spectrogram(picture, seed):
    return augment_spectrograms(picture[None], seed[None])[0]


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
    for name in ("ROTATION", "ZOOM", "STRETCH", "SHIFT", "BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(augment, name, 0.0)
    np.testing.assert_allclose(augment_image(picture(), tf.constant([1, 2]), flip=False), picture(), atol=1e-3)


def test_colours_become_stronger_or_weaker_and_keep_their_hue(monkeypatch):
    for name in ("ROTATION", "ZOOM", "STRETCH", "SHIFT", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    green = tf.constant([60.0, 140.0, 70.0]) * tf.ones((4, 4, 1))
    spreads = []
    for number in range(40):
        red, most, blue = augment_image(green, tf.constant([5, number]), flip=False).numpy()[1, 1]
        assert (red + most + blue) / 3.0 == pytest.approx(90.0, abs=1e-3)
        assert (most - blue) / (blue - red) == pytest.approx(7.0, rel=1e-3)
        spreads.append((most - red) / 80.0)
    assert 0.75 <= min(spreads) < 0.85
    assert 1.15 < max(spreads) <= 1.25


def test_an_image_is_varied_alike_whatever_stands_beside_it():
    seeds = tf.constant([[5, number] for number in range(3)])
    images = tf.stack([picture(), picture() / 2.0, picture()])
    together = augment_images(images, seeds, flip=True)
    np.testing.assert_allclose(together[2], augment_image(images[2], seeds[2], flip=True), atol=1e-2)
    sounds = augment_spectrograms(images, seeds)
    np.testing.assert_allclose(sounds[1], augment_spectrogram(images[1], seeds[1]), atol=1e-2)


def sound(side=32):
    """A bright sweep from the lower left to the upper right corner, on grey."""
    pixels = np.full((side, side, 3), 90.0, np.float32)
    for column in range(side):
        pixels[side - 1 - column, column] = 240.0
    return tf.constant(pixels)


def varied_sounds(count):
    return [augment_spectrogram(sound(), tf.constant([5, number])).numpy() for number in range(count)]


def test_sounds_are_masked_and_shifted_and_never_mirrored_or_moved_in_pitch():
    seen_shifts = set()
    for picture in varied_sounds(40):
        assert picture.shape == (32, 32, 3)
        assert (picture[..., 0] == picture[..., 2]).all()
        rows, columns = np.nonzero(picture[..., 0] == 240.0)
        assert len(rows) > 8  # masks of 15% leave most of it
        (shift,) = set(columns - (31 - rows))  # all of it moved in time by the same amount
        assert abs(shift) <= round(0.10 * 32)
        seen_shifts.add(shift)
    assert len(seen_shifts) > 3


def test_what_comes_in_from_outside_is_silence_and_masks_hide_whole_bands(monkeypatch):
    monkeypatch.setattr(augment, "MASKS", 0)
    edges = [picture[:, [0, -1], 0].min(axis=0) for picture in varied_sounds(20)]
    assert {tuple(edge) for edge in edges} == {(0.0, 90.0), (90.0, 0.0), (90.0, 90.0)}
    monkeypatch.undo()
    monkeypatch.setattr(augment, "SOUND_SHIFT", 0.0)
    hidden = [(picture != sound().numpy())[..., 0] for picture in varied_sounds(20)]
    assert any(mask.all(axis=0).any() for mask in hidden)
    assert any(mask.all(axis=1).any() for mask in hidden)


def test_equal_seeds_give_equal_sounds_and_windows_share_the_change():
    first, second = (augment_spectrogram(sound(), tf.constant([1, 2])).numpy() for _ in range(2))
    assert (first == second).all()
    both = augment_spectrogram(tf.stack([sound(), sound()]), tf.constant([1, 2])).numpy()
    np.testing.assert_allclose(both[0], first, atol=1e-4)
    np.testing.assert_allclose(both[1], first, atol=1e-4)
