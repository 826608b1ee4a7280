"""WAV bytes to samples, windows and other sampling rates, by TensorFlow operations alone: all of it can be exported."""

from dataclasses import dataclass

import tensorflow as tf

LOWEST_RATE_HZ = 1_000
HIGHEST_RATE_HZ = 768_000
ENCODINGS = "PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64"
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_STREAMED = 0xFFFFFFFF  # the size a program writes when it does not know yet how much will follow


@dataclass(frozen=True)
class Sound:
    """A decoded recording.

    Attributes:
        samples: float32, shape (N,), N >= 1; the mean of the channels. PCM lies in [-1, 1), floating point is as it is.
        rate_hz: int32 scalar, samples a second.
    """

    samples: tf.Tensor
    rate_hz: tf.Tensor


def decode_wav(encoded: tf.Tensor) -> Sound:
    """Decode one WAV file of any number of channels, chunks in any order, encoded as one of `ENCODINGS`.

    `tf.audio.decode_wav` would do for 16-bit PCM only. A `data` chunk that is longer than the file is an error (it was
    cut off), but for the length that stands for "until the end".

    Args:
        encoded: The file, a string scalar.

    Raises:
        tf.errors.InvalidArgumentError: If it is no such file; `tf` raises it when the operations run.
    """
    size = tf.cast(tf.strings.length(encoded), tf.int64)
    is_wav = tf.equal(tf.strings.substr(encoded, 0, 4), b"RIFF")
    encoded = _require(is_wav, "is not a WAV file: it does not begin with RIFF", encoded)
    encoded = _require(size >= 44, "is cut off: shorter than the header of a WAV file", encoded)
    format_at, data_at, data_bytes = _find_chunks(encoded, size)
    format_at = _require((format_at > 0) & (format_at + 16 <= size), "has no whole `fmt ` chunk", format_at)
    data_at = _require(data_at > 0, "has no `data` chunk", data_at)

    encoding = _unsigned(encoded, format_at, 2)
    channels = _unsigned(encoded, format_at + 2, 2)
    rate_hz = _unsigned(encoded, format_at + 4, 4)
    bits = _unsigned(encoded, format_at + 14, 2)
    # The real encoding of an extensible format is the first part of an identifier further on.
    encoding = tf.cond(
        tf.equal(encoding, _EXTENSIBLE) & (format_at + 26 <= size),
        lambda: _unsigned(encoded, format_at + 24, 2),
        lambda: encoding,
    )
    channels = _require(channels > 0, "has no channel", channels)
    rate_hz = _require(
        (rate_hz >= LOWEST_RATE_HZ) & (rate_hz <= HIGHEST_RATE_HZ),
        f"has a sampling rate outside {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz", rate_hz,
    )  # fmt: skip
    left = size - data_at
    data_bytes = tf.where(tf.equal(data_bytes, _STREAMED), left, data_bytes)
    data_bytes = _require(data_bytes <= left, "is cut off: it holds less sound than its header says", data_bytes)

    known = tf.constant([[_PCM, 8], [_PCM, 16], [_PCM, 24], [_PCM, 32], [_FLOAT, 32], [_FLOAT, 64]], tf.int64)
    matches = tf.reduce_all(tf.equal(known, tf.stack([encoding, bits])), axis=1)
    matches = _require(tf.reduce_any(matches), f"has an encoding other than {ENCODINGS}", matches)
    frame_bytes = channels * (bits // 8)
    frames = data_bytes // frame_bytes
    frames = _require(frames > 0, "holds no sound (0 samples)", frames)
    raw = tf.strings.substr(encoded, data_at, frames * frame_bytes)
    values = tf.switch_case(
        tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32),
        [
            lambda: (tf.cast(tf.io.decode_raw(raw, tf.uint8), tf.float32) - 128.0) / 128.0,
            lambda: tf.cast(tf.io.decode_raw(raw, tf.int16), tf.float32) / 2.0**15,
            lambda: _decode_24_bits(raw),
            lambda: tf.cast(tf.io.decode_raw(raw, tf.int32), tf.float32) / 2.0**31,
            lambda: tf.io.decode_raw(raw, tf.float32),
            lambda: tf.cast(tf.io.decode_raw(raw, tf.float64), tf.float32),
        ],
    )
    samples = tf.reduce_mean(tf.reshape(values, tf.stack([frames, channels])), axis=1)
    is_finite = tf.reduce_all(tf.math.is_finite(samples))
    samples = _require(is_finite, "has samples that are infinite or not numbers", samples)
    return Sound(samples, tf.cast(rate_hz, tf.int32))


def cut_windows(sound: Sound, *, seconds: float, windows: int) -> tf.Tensor:
    """Return `windows` stretches of a recording, float32, shape (windows, samples of `seconds` at its own rate).

    One window lies in the middle; several are evenly spaced from the beginning to the end and overlap where they must.
    A recording that is shorter than a window stands in the middle of silence.
    """
    length = tf.cast(tf.math.ceil(seconds * tf.cast(sound.rate_hz, tf.float32)), tf.int32)
    lacking = tf.maximum(length - tf.size(sound.samples), 0)
    padded = tf.pad(sound.samples, [[lacking // 2, lacking - lacking // 2]])
    spare = tf.cast(tf.size(padded) - length, tf.float32)
    shares = [0.5] if windows == 1 else [number / (windows - 1) for number in range(windows)]
    starts = [tf.cast(tf.floor(share * spare), tf.int32) for share in shares]
    return tf.stack([padded[start : start + length] for start in starts])


def resample(samples: tf.Tensor, rate_hz: tf.Tensor, to_hz: int) -> tf.Tensor:
    """Return the sound at another rate, float32, shape (rows, ceil(N * to_hz / rate_hz)); nothing aliases.

    The spectrum is cut off, or filled up with zeros, at the lower of the two highest frequencies. Padding to whole
    seconds makes both lengths whole numbers whatever the rates.

    Args:
        samples: float32, shape (rows, N).
        rate_hz: int32 scalar.
        to_hz: The rate wanted.
    """
    length = tf.shape(samples)[1]
    seconds = length // rate_hz + 1  # at least one sample of silence
    given, wanted = seconds * rate_hz, seconds * to_hz

    def change() -> tf.Tensor:
        spectrum = tf.signal.rfft(samples, [given])[:, : tf.minimum(given, wanted) // 2]
        filled = tf.pad(spectrum, [[0, 0], [0, wanted // 2 + 1 - tf.shape(spectrum)[1]]])
        scale = tf.cast(to_hz, tf.float32) / tf.cast(rate_hz, tf.float32)
        exact = tf.cast(length, tf.float64) * to_hz / tf.cast(rate_hz, tf.float64)
        return tf.signal.irfft(filled, [wanted])[:, : tf.cast(tf.math.ceil(exact), tf.int32)] * scale

    return tf.cond(tf.equal(rate_hz, to_hz), lambda: samples, change)


def _find_chunks(encoded: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return where the contents of `fmt ` and `data` begin (-1 if they do not), and the size `data` claims."""
    none = tf.constant(-1, tf.int64)

    def go_on(at: tf.Tensor, _format_at: tf.Tensor, data_at: tf.Tensor, _bytes: tf.Tensor) -> tf.Tensor:
        return (at + 8 <= size) & (data_at < 0)

    def step(
        at: tf.Tensor, format_at: tf.Tensor, data_at: tf.Tensor, data_bytes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        name, length = tf.strings.substr(encoded, at, 4), _unsigned(encoded, at + 4, 4)
        is_data = tf.equal(name, b"data")
        return (
            at + 8 + length + length % 2,
            tf.where(tf.equal(name, b"fmt "), at + 8, format_at),
            tf.where(is_data, at + 8, data_at),
            tf.where(is_data, length, data_bytes),
        )

    _, format_at, data_at, data_bytes = tf.while_loop(go_on, step, (tf.constant(12, tf.int64), none, none, none))
    return format_at, data_at, data_bytes


def _unsigned(encoded: tf.Tensor, at: tf.Tensor, count: int) -> tf.Tensor:
    """Return the little-endian unsigned number in `count` bytes from `at` on, int64."""
    digits = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, at, count), tf.uint8), tf.int64)
    return tf.reduce_sum(digits * tf.constant([256**place for place in range(count)], tf.int64))


def _decode_24_bits(raw: tf.Tensor) -> tf.Tensor:
    """Return the signed 24-bit numbers in `raw` as float32 in [-1, 1)."""
    low, middle, high = tf.unstack(tf.cast(tf.reshape(tf.io.decode_raw(raw, tf.uint8), (-1, 3)), tf.int32), axis=1)
    value = low + 256 * middle + 65536 * high
    return tf.cast(tf.where(high >= 128, value - 2**24, value), tf.float32) / 2.0**23


def _require(condition: tf.Tensor, message: str, value: tf.Tensor) -> tf.Tensor:
    """Return `value` behind the check that `condition` holds."""
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(value)
