"""Small recordings: tones and noise as files of any format."""

import io
from pathlib import Path

import numpy as np
import soundfile


def tone(frequency_hz: float, *, rate_hz: int, seconds: float = 0.5, loudness: float = 0.5) -> np.ndarray:
    """Return a sine, float64, shape (samples,)."""
    return loudness * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def recorded(samples: np.ndarray, rate_hz: int, *, form: str = "WAV", subtype: str | None = None) -> bytes:
    """Return `samples`, shape (N,) or (N, channels), as an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=form, subtype=subtype)
    return buffer.getvalue()


def record_tones(folder: Path, *, per_class: int = 24) -> None:
    """Write noisy tones of three pitches into a class folder each: at several rates, some as FLAC, some in stereo."""
    random = np.random.default_rng(3)
    for label, frequency_hz in (("high", 1800.0), ("low", 300.0), ("middle", 800.0)):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            rate_hz = (8000, 16000, 22050)[number % 3]
            samples = tone(frequency_hz * random.uniform(0.95, 1.05), rate_hz=rate_hz, seconds=random.uniform(0.3, 0.6))
            samples += random.normal(0, 0.02, len(samples))
            form = "FLAC" if number % 4 == 0 else "WAV"
            channels = np.stack([samples, samples], axis=1) if number % 5 == 0 else samples
            (folder / label / f"{number:02d}.{form.lower()}").write_bytes(recorded(channels, rate_hz, form=form))
