"""Copies of sounds: the same samples, and the same recording made louder, resampled, trimmed or noisier.

A sound is kept as a fingerprint: a hash of its samples and, at 4 kHz, two seconds around its loudest moment, scaled to
8 bits. The share of each band in its loudness, and its loudness over time, make a point; a k-d tree finds the few
points nearest to each. Only such pairs are slid along each other: the waves of copies coincide at one shift, those of
two utterances of one word by one speaker at none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import resample_poly, stft
from scipy.spatial import cKDTree

RATE_HZ = 4000
_MOST_SAMPLES = 8192  # kept of a sound
_WINDOW = 128  # samples of a spectrum
_BANDS = 12
_NEIGHBOURS = 12
_ENOUGH = 0.95  # correlation of waves that coincide; calibrated on spoken digits (benchmarks/audit.py)
_FINER = 4  # shifts within a sample
_LENGTHS = 0.8  # least ratio of the lengths of copies
_HEARD_SHARE = 0.8  # of the shorter sound, which must lie within the longer one

Wave = NDArray[np.int8]


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a sound: `digest` of its samples, and a `wave` at RATE_HZ of at most two seconds, full scale 127.

    A silent sound has an empty wave.
    """

    digest: bytes
    wave: Wave


def fingerprint(waveform: NDArray[np.floating], rate_hz: int) -> Fingerprint:
    """Return the fingerprint of a sound.

    Args:
        waveform: Samples in [-1, 1], shape (N,); of several channels, their mean.
        rate_hz: Samples a second.

    Raises:
        ValueError: If `waveform` is not one-dimensional, a sample is not finite, or the rate is not positive.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"waveform must be finite numbers of shape (N,), got shape {waveform.shape}")
    if rate_hz <= 0:
        raise ValueError(f"rate_hz must be positive, got {rate_hz}")
    samples = np.ascontiguousarray(waveform, np.float32)
    digest = hashlib.sha256(f"{rate_hz}".encode())
    digest.update(samples.tobytes())
    common = gcd(RATE_HZ, rate_hz)
    wave = samples.astype(np.float64)
    if len(wave) and rate_hz != RATE_HZ:
        wave = resample_poly(wave, RATE_HZ // common, rate_hz // common)
    wave = wave - (wave.mean() if len(wave) else 0.0)
    if len(wave) > _MOST_SAMPLES:
        loudness = np.convolve(wave**2, np.ones(RATE_HZ // 4), mode="same")
        start = int(np.clip(loudness.argmax() - _MOST_SAMPLES // 2, 0, len(wave) - _MOST_SAMPLES))
        wave = wave[start : start + _MOST_SAMPLES]
    peak = np.abs(wave).max(initial=0.0)
    kept = np.round(wave * (127.0 / peak)) if peak > 1e-4 else np.empty(0)
    return Fingerprint(digest.digest()[:16], kept.astype(np.int8))


def near_copies(waves: Sequence[Wave]) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of sounds that are near copies, in order; silence is no copy of anything.

    A sound is compared with its `_NEIGHBOURS` nearest only, so of many copies of one sound not every pair need be
    there, but enough to link them. Time grows as n log n.

    Args:
        waves: Of the fingerprints of different sounds.
    """
    heard = [place for place, wave in enumerate(waves) if len(wave) >= _WINDOW]
    if len(heard) < 2:
        return []
    points = np.stack([_point(waves[place]) for place in heard])
    _, places = cKDTree(points).query(points, k=min(_NEIGHBOURS + 1, len(heard)), workers=-1)
    pairs = sorted(
        {
            (min(one, other), max(one, other))
            for one, nearest in enumerate(places.tolist())
            for other in nearest
            if one != other
        }
    )
    found: list[tuple[int, int]] = []
    for one, other in pairs:
        first, second = heard[one], heard[other]
        short, long = sorted((waves[first], waves[second]), key=len)
        if len(short) >= _LENGTHS * len(long) and _correlation(short, long) >= _ENOUGH:
            found.append((first, second))
    return found


def _point(wave: Wave) -> NDArray[np.float64]:
    """Return what a copy keeps: how loud each band is against the others, in nepers, in the loudest half of the time.

    Neither gain nor a trim of quiet ends counts, and noise far below the sound little.
    """
    _, _, spectrum = stft(wave.astype(np.float64), nperseg=_WINDOW, noverlap=_WINDOW // 2, padded=True)
    power = np.abs(spectrum[2 : 2 + 4 * _BANDS]) ** 2
    bands = power.reshape(_BANDS, 4, -1).sum(1)
    loudness = bands.sum(0)
    bands = bands[:, loudness >= np.median(loudness)].mean(1)
    levels = 0.5 * np.log(bands + 1e-3 * bands.max() + 1e-12)
    return np.asarray(levels - levels.mean())


def _correlation(short_wave: Wave, long_wave: Wave) -> float:
    """Return the largest correlation of two waves over the shifts that leave `_HEARD_SHARE` of the shorter in both.

    Sounds trimmed before they were resampled are apart by a fraction of a sample, so shifts go in quarters of one.
    """
    short, long = short_wave.astype(np.float64), long_wave.astype(np.float64)
    size = next_fast_len(len(short) + len(long), real=True)
    spectrum = rfft(long, size) * np.conj(rfft(short, size))
    fine = irfft(spectrum, _FINER * size) * _FINER
    # The best of the shifts around each whole one; energies change little within a sample.
    products = np.max([np.roll(fine, -part)[::_FINER] for part in range(-_FINER // 2, _FINER // 2 + 1)], axis=0)
    slack = int((1.0 - _HEARD_SHARE) * len(short))
    shifts = np.arange(-slack, len(long) - len(short) + slack + 1)
    energies = [np.r_[0.0, np.cumsum(wave**2)] for wave in (short, long)]
    starts, ends = np.maximum(shifts, 0), np.minimum(shifts + len(short), len(long))
    overlap_long = energies[1][ends] - energies[1][starts]
    overlap_short = energies[0][ends - shifts] - energies[0][starts - shifts]
    scale = np.sqrt(np.maximum(overlap_long * overlap_short, 1e-9))
    # Half the energy at least must lie in the overlap, or two quiet ends would do.
    enough = (overlap_short >= 0.5 * energies[0][-1]) & (overlap_long >= 0.5 * energies[1][-1])
    return float(np.where(enough, products[shifts] / scale, 0.0).max(initial=0.0))
