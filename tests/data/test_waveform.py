"""WAV files become samples, windows and other rates inside a graph."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.data.waveform import Sound, cut_windows, decode_wav, resample
from tests.sounds import recorded, tone

RAMP = np.linspace(-0.9, 0.9, 101)


def chunk(name: bytes, content: bytes, *, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return name + size.to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def wav(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def fmt(*, encoding=1, channels=1, rate=8000, bits=16) -> bytes:
    fields = ((encoding, 2), (channels, 2), (rate, 4), (rate * channels * bits // 8, 4), (channels * bits // 8, 2))
    return chunk(b"fmt ", b"".join(value.to_bytes(size, "little") for value, size in (*fields, (bits, 2))))


DATA = chunk(b"data", np.array([16384, -8192, 0, 32767], "<i2").tobytes())


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])  # as in an exported graph
def in_a_graph(content):
    sound = decode_wav(content)
    return sound.samples, sound.rate_hz


def decode(content: bytes) -> tuple[np.ndarray, int]:
    samples, rate = in_a_graph(tf.constant(content))
    return samples.numpy(), int(rate)


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-23),
        ("FLOAT", 2**-23),
        ("DOUBLE", 2**-23),
    ],
)
def test_every_encoding_gives_back_the_samples_that_were_written(form, subtype, step):
    samples, rate = decode(recorded(RAMP, 11025, form=form, subtype=subtype))
    assert rate == 11025
    assert samples.shape == (101,)
    assert np.abs(samples - RAMP).max() <= step


def test_channels_are_averaged_sample_by_sample():
    samples, _ = decode(recorded(np.stack([RAMP, -RAMP, 0.3 + 0 * RAMP], axis=1), 8000, subtype="PCM_24"))
    assert np.abs(samples - 0.1).max() < 1e-6


def test_values_are_those_of_the_bytes():
    assert decode(wav(fmt(), DATA))[0].tolist() == [0.5, -0.25, 0.0, 32767 / 32768]


def test_other_chunks_even_of_odd_size_may_stand_before_and_after():
    content = wav(chunk(b"LIST", b"odd"), fmt(), chunk(b"fact", b"1234"), DATA, chunk(b"LIST", b"x"))
    assert decode(content)[0].tolist() == [0.5, -0.25, 0.0, 32767 / 32768]


def test_a_length_that_was_not_known_when_it_was_written_means_until_the_end():
    samples, _ = decode(wav(fmt(), DATA.replace(b"data\x08\0\0\0", b"data\xff\xff\xff\xff")))
    assert len(samples) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a WAV file"),
        (b"fLaC" + bytes(60), "not a WAV file"),
        (wav(fmt())[:30], "cut off"),
        (wav(fmt(), chunk(b"LIST", bytes(20))), "no `data` chunk"),
        (wav(DATA, fmt()), "no whole `fmt ` chunk"),
        (wav(fmt(), DATA)[:-3], "cut off"),
        (wav(fmt(), chunk(b"data", b"")) + b"\0" * 8, "0 samples"),
        (wav(fmt(encoding=7, bits=8), DATA), "has an encoding other than"),
        (wav(fmt(bits=12), DATA), "has an encoding other than"),
        (wav(fmt(channels=0), DATA), "no channel"),
        (wav(fmt(rate=0), DATA), "sampling rate"),
        (wav(fmt(encoding=3, bits=32), chunk(b"data", np.array([0, np.nan], "<f4").tobytes())), "not numbers"),
    ],
)
def test_what_is_no_whole_wav_file_is_refused_with_the_reason(content, says):
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        decode_wav(tf.constant(content))


def test_damaged_files_are_refused_or_read_and_never_end_in_anything_else():
    random = np.random.default_rng(0)
    whole = recorded(RAMP, 8000, subtype="PCM_24")
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(len(whole) + 1)] if random.random() < 0.3 else whole)
        for place in random.integers(0, 60, 4):
            if place < len(damaged):
                damaged[place] = random.integers(256)
        try:
            assert np.isfinite(decode_wav(tf.constant(bytes(damaged))).samples).all()
        except tf.errors.InvalidArgumentError:
            refused += 1
    assert 50 < refused < 150


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 44056])
def test_a_tone_keeps_its_frequency_and_loudness_at_another_rate(rate):
    samples = tone(440.0, rate_hz=rate)
    changed = resample(tf.constant(samples[None], tf.float32), tf.constant(rate), 16000).numpy()
    assert changed.shape == (1, 8000)
    middle = slice(800, -800)  # where a tone sets in, every frequency sounds
    assert np.abs(changed[0] - tone(440.0, rate_hz=16000))[middle].max() < 1e-3


def test_what_is_too_high_for_the_new_rate_is_gone_and_does_not_come_back_as_a_lower_tone():
    samples = tone(6000.0, rate_hz=16000) + tone(1000.0, rate_hz=16000)
    changed = resample(tf.constant(samples[None], tf.float32), tf.constant(16000), 8000).numpy()
    assert np.abs(changed[0] - tone(1000.0, rate_hz=8000))[400:-400].max() < 0.01


def test_a_short_recording_stands_in_the_middle_of_silence():
    sound = Sound(tf.constant([1.0, 2.0]), tf.constant(1000))
    assert cut_windows(sound, seconds=0.006, windows=1).numpy().tolist() == [[0, 0, 1, 2, 0, 0]]


def test_of_a_long_recording_one_window_shows_the_middle_and_several_reach_from_end_to_end():
    sound = Sound(tf.range(10.0), tf.constant(1000))
    assert cut_windows(sound, seconds=0.004, windows=1).numpy().tolist() == [[3, 4, 5, 6]]
    assert cut_windows(sound, seconds=0.004, windows=3).numpy()[:, 0].tolist() == [0, 3, 6]
    assert cut_windows(sound, seconds=0.006, windows=2).numpy().tolist() == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]]
