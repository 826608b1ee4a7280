"""Sounds as pictures: raw WAV bytes to log-mel spectrograms, by TensorFlow operations alone, for image backbones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from regraft.data.waveform import cut_windows, decode_wav, resample

BEST_RATE_HZ = 16_000
LONGEST_WINDOW_S = 10.0
SHORTEST_WINDOW_S = 0.2
MOST_WINDOWS = 4
MEL_BANDS = 64
FRAME_S = 0.025
HOP_S = 0.005
LOWEST_HZ = 20.0
# What is quieter than the loudest band by more is black. Chosen with the hop by cross-validating a linear head on the
# frozen EfficientNet-Lite0 at 128 px (2,700 training recordings of spoken digits; accuracy and log loss): 35 dB 0.899
# and 0.389, 45 dB 0.893 and 0.395, which this lies between; 60 dB 0.887 and 0.428, with a hop of 10 ms 0.882 and 0.469.
RANGE_DB = 40.0
SHORT_WINDOW_S = 2.0


@dataclass(frozen=True)
class View:
    """What part of a recording the backbone sees, and how finely.

    Attributes:
        seconds: Length of a window.
        windows: How many; their features are averaged.
        rate_hz: Everything is resampled to this; the picture reaches up to half of it.
    """

    seconds: float
    windows: int
    rate_hz: int


def choose_view(setting: Literal["auto"] | float, seconds: Mapping[str, float], rates_hz: Mapping[str, int]) -> View:
    """Return how recordings are looked at.

    An automatic window holds 95 of 100 training recordings whole, if that takes at most 10 s. Where it does not, or a
    shorter window is set, up to 4 windows cover a recording. The rate is 16 kHz, or lower if most recordings are: the
    upper part of the picture would be black in training, and something never seen at any later 16 kHz recording.

    Args:
        setting: "auto", or the seconds of a window.
        seconds: Of training recordings: their length at "p95", the 95th percentile.
        rates_hz: Number of training recordings by sampling rate (in Hz, as a string: it was in JSON).
    """
    longest = seconds["p95"]
    if setting == "auto":
        window = min(max(math.ceil(10 * longest) / 10, SHORTEST_WINDOW_S), LONGEST_WINDOW_S)
    else:
        window = float(setting)
    windows = min(max(math.ceil(longest / window - 1e-6), 1), MOST_WINDOWS)
    ordered = sorted(int(rate) for rate, count in rates_hz.items() for _ in range(count))
    return View(window, windows, min(ordered[len(ordered) // 2], BEST_RATE_HZ))


def choose_sound_size(setting: Literal["auto"] | int, view: View) -> int:
    """Return the side of the pictures in pixels; "auto" is 128 for windows of up to 2 s and 224 for longer ones."""
    if setting != "auto":
        return setting
    return 128 if view.seconds <= SHORT_WINDOW_S else 224


def sound_preparation(view: View, side: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function from one WAV file (a string scalar) to its picture, float32 in [0, 255].

    Its shape is (side, side, 3), or (windows, side, side, 3) if there are several. Time runs to the right and pitch
    upwards, in mel bands; brightness, the sum of the channels, is the square of loudness in decibels above `RANGE_DB`
    below the loudest moment of the recording, so that how loud it was recorded does not matter. Silence is black. Low
    bands are red, middle ones green, high ones blue: the features of a picture are averaged over its positions, and
    without colours a tone would look much like the same tone an octave higher.
    """
    frame, hop = round(FRAME_S * view.rate_hz), round(HOP_S * view.rate_hz)
    fft_length = 2 ** math.ceil(math.log2(2 * frame))  # finer than the frame needs, so that no low mel band is empty
    samples = math.ceil(view.seconds * view.rate_hz)
    height = np.linspace(-1.0, 1.0, MEL_BANDS)
    colours = np.stack([np.maximum(-height, 0), 1 - np.abs(height), np.maximum(height, 0)], axis=1).astype(np.float32)

    def prepare(encoded: tf.Tensor) -> tf.Tensor:
        sound = decode_wav(encoded)
        windows = cut_windows(sound, seconds=view.seconds, windows=view.windows)
        at_rate = resample(windows, sound.rate_hz, view.rate_hz)[:, :samples]
        at_rate = tf.pad(at_rate, [[0, 0], [0, samples - tf.shape(at_rate)[1]]])
        at_rate = tf.ensure_shape(at_rate, (view.windows, samples))
        loudest = tf.reduce_max(tf.abs(at_rate))
        spectrum = tf.signal.stft(
            tf.math.divide_no_nan(at_rate, loudest), frame, hop, fft_length, pad_end=True
        )  # (windows, frames, frequencies)
        to_mel = tf.signal.linear_to_mel_weight_matrix(
            MEL_BANDS, fft_length // 2 + 1, view.rate_hz, LOWEST_HZ, view.rate_hz / 2
        )
        power = tf.matmul(tf.square(tf.abs(spectrum)), to_mel)
        decibels = 10.0 / math.log(10.0) * tf.math.log(tf.maximum(power, 1e-12))
        below = tf.where(loudest > 0.0, decibels - tf.reduce_max(decibels), -RANGE_DB)
        brightness = 255.0 * tf.square(tf.clip_by_value(1.0 + below / RANGE_DB, 0.0, 1.0))
        coloured = tf.transpose(brightness, (0, 2, 1))[..., None] * colours[:, None]  # (windows, bands, frames, 3)
        upwards = tf.reverse(coloured, [1])
        resized = tf.image.resize(upwards, (side, side), method="bilinear", antialias=True)
        picture = tf.ensure_shape(tf.clip_by_value(resized, 0.0, 255.0), (view.windows, side, side, 3))
        return picture[0] if view.windows == 1 else picture

    return prepare


def as_view(stored: Mapping[str, Any] | None) -> View | None:
    """Return the view that was stored as JSON (see `dataclasses.asdict`); None for none."""
    return None if stored is None else View(**stored)
