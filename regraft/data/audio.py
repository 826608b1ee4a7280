"""Recordings as libsndfile sees them: is this one whole, how long is it, and would TensorFlow hear the same samples?"""

import io
import wave
from dataclasses import dataclass

import numpy as np
import soundfile

from regraft.data.waveform import HIGHEST_RATE_HZ, LOWEST_RATE_HZ

LONGEST_S = 600.0
MOST_SAMPLES = 60_000_000  # of a channel: silence packs so well that a small file could fill the memory
_AT_ONCE = 1 << 20  # samples of all channels together
_MOST_CHUNKS = 1000  # of a WAV file, before its sound
_STREAMED = 0xFFFFFFFF  # the size a program writes when it does not know yet how much will follow
_UNKNOWN = 2**63 - 1  # the number of samples that libsndfile gives for a FLAC file written by such a program
_FULL_SCALE = 2**15


class UnreadableAudio(Exception):
    """The bytes are no recording that can be used; the message says why, in words that fit after a file's name."""


@dataclass(frozen=True)
class Recording:
    """A decoded recording.

    Attributes:
        samples: float32, shape (N,), N >= 1; the mean of the channels, full scale at 1.
        rate_hz: Samples a second.
        is_plain: Whether the file is a WAV file of one channel in 16-bit PCM already.
    """

    samples: np.ndarray
    rate_hz: int
    is_plain: bool

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate_hz

    def to_wav(self) -> bytes:
        """Return it as a WAV file of one channel in 16-bit PCM; what is louder than full scale is scaled down to it."""
        scaled = self.samples / max(1.0, float(np.abs(self.samples).max()))
        pcm = np.clip(np.round(scaled * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate_hz)
            file.writeframes(pcm.tobytes())
        return buffer.getvalue()


def decode(content: bytes) -> Recording:
    """Decode a recording wholly: WAV, FLAC, OGG, MP3, AIFF and whatever else libsndfile reads.

    A WAV or FLAC file that was cut off is noticed; of OGG and MP3, which have no length in their head, it is not.

    Raises:
        UnreadableAudio: If it is empty, no recording, broken, cut off, without a sample, or too long.
    """
    if not content:
        raise UnreadableAudio("is empty (0 bytes)")
    if content[:4] == b"RIFF":
        _require_whole_wav(content)
    try:
        with _Sound(_Bytes(content)) as file:
            rate_hz, claimed = file.samplerate, file.frames
            if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
                raise UnreadableAudio(
                    f"has a sampling rate of {rate_hz} Hz; {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} can be used"
                )
            is_plain = (file.format, file.subtype, file.channels) == ("WAV", "PCM_16", 1)
            if claimed != _UNKNOWN:
                _refuse_long(claimed, rate_hz)
            samples = _mean_of_channels(file)
    except soundfile.LibsndfileError as error:
        raise UnreadableAudio(_not_audio(content, error.error_string)) from None
    if not len(samples):
        raise UnreadableAudio("holds no sound (0 samples)")
    if len(samples) < claimed != _UNKNOWN:
        raise UnreadableAudio(f"is cut off: {len(samples)} of its {claimed} samples are there")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("has samples that are infinite or not numbers")
    return Recording(samples, rate_hz, is_plain)


class _Bytes(io.BytesIO):
    """Bytes in which a damaged file may point before the beginning: soundfile would print a traceback of that."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(max(0, start + offset))


class _Sound(soundfile.SoundFile):
    """A file that is read from front to back: soundfile seeks after each read, which some FLAC files do not bear."""

    def seekable(self) -> bool:
        return False


def _mean_of_channels(file: soundfile.SoundFile) -> np.ndarray:
    """Read all of `file`, a little at a time: of the channels only their mean is kept, float32, shape (samples,)."""
    parts = [np.empty(0, np.float32)]
    length = 0
    while len(block := file.read(max(1, _AT_ONCE // file.channels), dtype="float32", always_2d=True)):
        length += len(block)
        _refuse_long(length, file.samplerate)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite samples: the caller refuses them
            parts.append(block.mean(axis=1, dtype=np.float32))
    return np.concatenate(parts)


def _refuse_long(samples: int, rate_hz: int) -> None:
    if samples > LONGEST_S * rate_hz:
        raise UnreadableAudio(f"is too long ({samples / rate_hz:.0f} s, at most {LONGEST_S:.0f}); cut it into pieces")
    if samples > MOST_SAMPLES:
        raise UnreadableAudio(f"is too long ({samples:,} samples, at most {MOST_SAMPLES:,}); cut it into pieces")


def _require_whole_wav(content: bytes) -> None:
    """Raise if the sound of a WAV file is shorter than its header says; libsndfile reads what is left, silently."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(content):
            break
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            left = len(content) - at - 8
            if size > left and size != _STREAMED:
                raise UnreadableAudio(f"is cut off: {left} of its {size} bytes of sound are there")
            return
        at += 8 + size + size % 2
    raise UnreadableAudio("is broken: it is a WAV file without a `data` chunk")


def _not_audio(content: bytes, reason: str) -> str:
    if content[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3\x03", b"ID3\x04"):
        return f"is broken: {reason.rstrip('.')}"
    if content[4:8] == b"ftyp":
        return "is of a kind that cannot be read here (MP4 or M4A); convert it to WAV or FLAC"
    return "is not a recording, or of a kind that cannot be read here; WAV and FLAC can"
