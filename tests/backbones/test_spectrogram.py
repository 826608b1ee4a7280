"""Recordings become log-mel pictures for a backbone of images, in a graph that can be exported."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.backbones.extractor import build_extractor
from regraft.backbones.features import FeatureCache, describe, embed_splits
from regraft.backbones.fetch import fetch
from regraft.backbones.spectrogram import View, choose_view, sound_preparation
from regraft.registry.serving import export_saved_model, largest_difference, load_served
from regraft.tuning.classifier import Classifier, graft
from tests.backbones.tiny import IMAGE_FEATURES, make_image_preset
from tests.sounds import recorded, tone

SIDE = 64  # as many pixels as mel bands, so that a row is a band
HALF_SECOND = View(seconds=0.5, windows=1, rate_hz=16000)


def picture(content: bytes, view: View = HALF_SECOND, side: int = SIDE) -> np.ndarray:
    return sound_preparation(view, side)(tf.constant(content)).numpy()


def decibels(shown: np.ndarray) -> np.ndarray:
    """Loudness below the loudest moment, by (..., row, column), -40 where it is less."""
    return 40.0 * (np.sqrt(shown.sum(axis=-1) / 255.0) - 1.0)


def band_of(frequency_hz: float, *, top_hz: float) -> int:
    """The row, from the bottom, whose triangle of 64 between 20 Hz and `top_hz` peaks nearest to `frequency_hz`."""
    low, mel, high = (1127.0 * np.log1p(hertz / 700.0) for hertz in (20.0, frequency_hz, top_hz))
    return round((mel - low) / (high - low) * 65) - 1


def brightest_band(shown: np.ndarray) -> int:
    return SIDE - 1 - int(shown.sum(axis=(1, 2)).argmax())


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("frequency", [440.0, 2000.0])
def test_a_tone_is_bright_in_its_own_mel_band_whatever_the_sampling_rate(rate, frequency):
    shown = picture(recorded(tone(frequency, rate_hz=rate), rate))
    assert shown.shape == (SIDE, SIDE, 3)
    assert brightest_band(shown) == band_of(frequency, top_hz=8000.0)


@pytest.mark.parametrize(
    ("form", "subtype"), [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAVEX", "PCM_32"), ("WAV", "FLOAT")]
)
def test_a_tone_looks_the_same_whatever_the_encoding_and_the_number_of_channels(form, subtype):
    samples = tone(440.0, rate_hz=16000) + tone(3000.0, rate_hz=16000, loudness=0.2)
    plain = picture(recorded(samples, 16000))
    shown = picture(recorded(np.stack([samples, samples], axis=1), 16000, form=form, subtype=subtype))
    loud = decibels(plain) > -30  # further down, the noise of 8 bits is to be seen
    assert np.abs(decibels(shown) - decibels(plain))[loud].max() < 1.0


def test_how_loud_it_was_recorded_does_not_change_the_picture():
    samples = tone(440.0, rate_hz=16000) + np.random.default_rng(0).normal(0, 0.01, 8000)
    loud, quiet = (picture(recorded(gain * samples, 16000, subtype="FLOAT")) for gain in (1.0, 1e-3))
    assert np.abs(loud - quiet).max() < 0.1
    assert decibels(loud).max() == pytest.approx(0.0, abs=0.1)


def test_brightness_is_the_square_of_decibels():
    second = tone(440.0, rate_hz=16000)
    quieter = np.concatenate([second[:4000], 0.1 * second[4000:]])  # 20 dB down in its second half
    shown = picture(recorded(quieter, 16000, subtype="FLOAT"))[SIDE - 1 - band_of(440.0, top_hz=8000.0)]
    assert shown[10:25].sum(axis=-1).mean() == pytest.approx(255.0, abs=5.0)
    assert shown[40:55].sum(axis=-1).mean() == pytest.approx(255.0 * (20 / 40) ** 2, abs=5.0)


def test_low_is_red_and_high_is_blue():
    colours = [
        picture(recorded(tone(hertz, rate_hz=16000), 16000)).sum(axis=(0, 1)) for hertz in (60.0, 1700.0, 7500.0)
    ]
    assert [int(colour.argmax()) for colour in colours] == [0, 1, 2]


def test_time_runs_to_the_right():
    late = np.concatenate([np.zeros(6000), tone(440.0, rate_hz=16000, seconds=0.125)])
    columns = picture(recorded(late, 16000)).sum(axis=(0, 2))
    assert columns.argmax() > 0.7 * SIDE


@pytest.mark.parametrize("samples", [np.zeros(8000), np.zeros(1), np.full(1, 0.5), np.full(16000 * 30, 0.5)])
def test_silence_and_odd_lengths_give_a_picture_in_range(samples):
    shown = picture(recorded(samples, 16000))
    assert np.isfinite(shown).all()
    assert shown.min() >= 0.0
    assert shown.max() <= 255.0
    if not samples.any():
        assert not shown.any()


def test_several_windows_show_different_parts_of_a_long_recording_with_one_brightness():
    parts = [tone(hertz, rate_hz=16000, loudness=gain) for hertz, gain in ((440.0, 0.5), (1000.0, 0.05), (2000.0, 0.5))]
    shown = picture(recorded(np.concatenate(parts), 16000), View(seconds=0.5, windows=3, rate_hz=16000))
    assert shown.shape == (3, SIDE, SIDE, 3)
    assert [brightest_band(one) for one in shown] == [band_of(hertz, top_hz=8000) for hertz in (440.0, 1000.0, 2000.0)]
    loudness = decibels(shown).max(axis=(1, 2))
    assert loudness[0] - loudness[1] == pytest.approx(20.0, abs=2.0)


@pytest.mark.parametrize(
    ("setting", "p95", "rates", "expected"),
    [
        ("auto", 0.664, {"8000": 10}, View(0.7, 1, 8000)),
        ("auto", 0.01, {"44100": 10}, View(0.2, 1, 16000)),
        ("auto", 10.0, {"16000": 10}, View(10.0, 1, 16000)),
        ("auto", 30.0, {"8000": 4, "48000": 5}, View(10.0, 3, 16000)),
        ("auto", 600.0, {"8000": 6, "48000": 5}, View(10.0, 4, 8000)),
        (2.0, 5.0, {"22050": 1}, View(2.0, 3, 16000)),
        (2.0, 0.5, {"22050": 1}, View(2.0, 1, 16000)),
    ],
)
def test_the_window_follows_the_lengths_and_the_rate_follows_the_rates(setting, p95, rates, expected):
    assert choose_view(setting, {"p50": 0.1, "p95": p95, "max": 900.0}, rates) == expected


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    make_image_preset(root / "pictures")
    fetch("preset:pictures", root / "backbones", root=root)
    return root / "backbones"


LONG = recorded(np.concatenate([tone(440.0, rate_hz=22050), tone(3000.0, rate_hz=22050)]), 22050, subtype="PCM_24")
SHORT = recorded(tone(1000.0, rate_hz=8000, seconds=0.2), 8000)


@pytest.mark.parametrize("windows", [1, 3])
def test_the_exported_model_answers_wav_bytes_as_the_keras_model_does(backbones, windows, tmp_path):
    extractor = build_extractor(backbones, image_size_px=32, view=View(0.5, windows, 16000))
    assert extractor.kind == "audio"
    kernel = np.random.default_rng(0).normal(size=(IMAGE_FEATURES, 2)).astype("float32")
    bias = np.zeros(2, "float32")
    classifier = Classifier(extractor, graft(extractor.model, kernel, bias), ("a", "b"), kernel, bias, "probe")
    export_saved_model(classifier, tmp_path, example=SHORT)
    served = load_served(tmp_path)
    assert largest_difference(classifier, served, [SHORT, LONG, SHORT]) < 1e-5
    assert np.abs(np.diff(served.probabilities([SHORT, LONG]), axis=0)).max() > 1e-4
    with pytest.raises(Exception, match=r"Input 1 of 2 .* is not a WAV file"):
        served.probabilities([SHORT, SHORT[:-9]])


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_real_values_of_recordings_are_exported_too(backbones, task, tmp_path):
    extractor = build_extractor(backbones, image_size_px=32, view=View(0.5, 2, 16000))
    kernel = np.random.default_rng(0).normal(size=(IMAGE_FEATURES, 2)).astype("float32")
    bias = np.array([3.0, -3.0], "float32")
    classifier = Classifier(extractor, graft(extractor.model, kernel, bias), ("a", "b"), kernel, bias, "probe", task)
    export_saved_model(classifier, tmp_path, example=SHORT)
    served = load_served(tmp_path)
    assert largest_difference(classifier, served, [SHORT, LONG, SHORT]) < 1e-4
    pictures = np.stack([extractor.prepare(tf.constant(sound)).numpy() for sound in (SHORT, LONG)])
    outputs = extractor.model.predict(pictures, verbose=0) @ kernel + bias
    expected = outputs if task == "regression" else 1.0 / (1.0 + np.exp(-outputs))
    np.testing.assert_allclose(served.answers([SHORT, LONG]), expected, atol=1e-4)


def test_features_of_several_windows_are_the_mean_of_each_windows_own(backbones):
    several = build_extractor(backbones, image_size_px=32, view=View(0.5, 3, 16000))
    single = build_extractor(backbones, image_size_px=32, view=View(0.5, 1, 16000))
    pictures = several.prepare(tf.constant(LONG))
    apart = single.model.predict(pictures.numpy(), verbose=0)
    together = several.model.predict(pictures.numpy()[None], verbose=0)
    assert np.abs(together[0] - apart.mean(axis=0)).max() < 1e-5
    assert np.abs(apart[0] - apart[2]).max() > 1e-3


class Recordings:
    def __init__(self):
        self.ids = ["one", "two", "three"]

    def inputs(self, indices):
        return [(LONG, SHORT, LONG)[row] for row in indices]


@pytest.mark.parametrize("windows", [1, 2])
def test_features_are_computed_and_cached_by_what_is_seen(backbones, windows, tmp_path):
    extractor = build_extractor(backbones, image_size_px=32, view=View(0.5, windows, 16000))
    cache = FeatureCache(tmp_path, describe(extractor, 2))
    embedded = embed_splits({"train": Recordings()}, extractor, cache, batch_size=2, advance=lambda done, total: None)
    assert embedded.features["train"].shape == (3, IMAGE_FEATURES)
    assert (embedded.features["train"][0] == embedded.features["train"][2]).all()
    again = embed_splits({"train": Recordings()}, extractor, cache, batch_size=2, advance=lambda done, total: None)
    assert (again.forward_passes, again.from_cache) == (0, 3)
    other = build_extractor(backbones, image_size_px=32, view=View(0.6, windows, 16000))
    assert FeatureCache(tmp_path, describe(other, 2)).folder != cache.folder
