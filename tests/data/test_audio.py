"""Class folders of recordings, good and bad."""

import contextlib
import hashlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import tasks.download
import tasks.preprocess
from regraft.data import sources
from regraft.data.audio import UnreadableAudio, decode
from regraft.data.examples import collect_audio
from regraft.data.records import open_split, read_info
from regraft.data.waveform import decode_wav
from regraft.errors import DataError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.settings import DownloadSettings, PreprocessSettings
from tests.sounds import record_tones, recorded, tone

TONE = tone(440.0, rate_hz=16000)


def put(raw, name, content):
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def collect(tmp_path, **options):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return collect_audio(tmp_path / "raw", scratch, **options)


def stored(example):
    sound = decode_wav(tf.constant(example.content.read_bytes()))
    return sound.samples.numpy(), int(sound.rate_hz)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_plain_wav_file_stays_as_it_came(tmp_path, rate):
    content = recorded(tone(440.0, rate_hz=rate), rate)
    put(tmp_path / "raw", "a/1.WAV", content)
    collection = collect(tmp_path)
    (example,) = collection.splits["train"]
    assert example.content.read_bytes() == content
    assert example.id == hashlib.sha256(content).hexdigest()
    assert (example.label, collection.seconds, collection.rates_hz) == ("a", {example.id: 0.5}, {example.id: rate})


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-15),
        ("WAV", "PCM_U8", 2**-6),
        ("WAV", "PCM_24", 2**-15),
        ("WAV", "PCM_32", 2**-15),
        ("WAV", "FLOAT", 2**-15),
        ("WAV", "ULAW", 0.02),
        ("AIFF", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.1),
    ],
)
def test_other_formats_become_plain_wav_of_the_same_sound(tmp_path, form, subtype, tolerance):
    content = recorded(np.stack([TONE, TONE], axis=1), 16000, form=form, subtype=subtype)
    put(tmp_path / "raw", f"a/1.{form.lower()}", content)
    collection = collect(tmp_path)
    assert not collection.rejects
    (example,) = collection.splits["train"]
    assert example.id == hashlib.sha256(content).hexdigest()
    samples, rate = stored(example)
    assert rate == 16000
    assert decode(example.content.read_bytes()).is_plain
    assert np.abs(samples - TONE).max() <= tolerance


def test_what_is_louder_than_full_scale_is_scaled_and_not_clipped():
    loud = decode(recorded(4.0 * TONE, 16000, subtype="FLOAT"))
    quiet = decode(loud.to_wav())
    assert np.abs(loud.samples).max() == pytest.approx(2.0, abs=1e-3)
    assert np.abs(quiet.samples - loud.samples / np.abs(loud.samples).max()).max() < 1e-4


def test_silence_and_a_single_sample_are_recordings(tmp_path):
    put(tmp_path / "raw", "quiet/1.wav", recorded(np.zeros(800), 8000))
    put(tmp_path / "raw", "quiet/2.flac", recorded(np.array([0.5]), 8000, form="FLAC"))
    collection = collect(tmp_path)
    assert not collection.rejects
    assert sorted(collection.seconds.values()) == [1 / 8000, 0.1]


BROKEN = {
    "empty.wav": (b"", "is empty (0 bytes)"),
    "no samples.wav": (recorded(np.zeros(0), 8000), "holds no sound (0 samples)"),
    "cut.wav": (recorded(TONE, 16000)[:-100], "is cut off: 15900 of its 16000 bytes of sound are there"),
    "head.wav": (recorded(TONE, 16000)[:30], "is broken: it is a WAV file without a `data` chunk"),
    "cut.flac": (recorded(TONE, 16000, form="FLAC")[:-400], "is"),
    "flipped.flac": (recorded(TONE, 16000, form="FLAC")[:60] + bytes(3000), "is"),
    "text.wav": (b"this is not a recording at all, but a note about one", "is not a recording"),
    "picture.wav": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a recording"),
    "phone.wav": (bytes(4) + b"ftypM4A " + bytes(100), "is of a kind that cannot be read here (MP4 or M4A)"),
    "not numbers.wav": (recorded(np.array([0.0, np.nan]), 8000, subtype="FLOAT"), "has samples that are infinite or"),
    "slow.wav": (recorded(np.zeros(10), 100), "has a sampling rate of 100 Hz"),
    "long.wav": (recorded(np.zeros(601_000), 1000, subtype="PCM_U8"), "is too long (601 s, at most 600)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_whole_recording_are_set_aside_with_the_reason(tmp_path, name):
    content, reason = BROKEN[name]
    put(tmp_path / "raw", f"a/{name}", content)
    put(tmp_path / "raw", "a/good.wav", recorded(TONE, 16000))
    collection = collect(tmp_path)
    assert [example.name for example in collection.splits["train"]] == ["a/good.wav"]
    (reject,) = collection.rejects
    assert (reject.name, reject.label) == (f"a/{name}", "a")
    assert reject.reason.startswith(reason)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_damaged_files_are_refused_or_read_and_never_end_in_anything_else(form):
    random = np.random.default_rng(1)
    whole = recorded(TONE, 16000, form=form)
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(len(whole) + 1)] if random.random() < 0.5 else whole)
        for place in random.integers(0, len(whole), 6) // random.choice([1, 50]):
            if place < len(damaged):
                damaged[place] = random.integers(256)
        with contextlib.suppress(UnreadableAudio):
            assert np.isfinite(decode(bytes(damaged)).samples).all()


def test_folders_of_splits_and_files_of_other_kinds(tmp_path):
    for number, name in enumerate(("train/a/1.wav", "train/b/2.flac", "test/a/3.wav", "val/b/deep/4.wav")):
        put(tmp_path / "raw", name, recorded(TONE[number:], 16000, form=name[-4:].strip(".")))
    put(tmp_path / "raw", "README.txt", b"about")
    put(tmp_path / "raw", "train/5.wav", recorded(TONE, 16000))
    collection = collect(tmp_path)
    placed = {split: [(e.name, e.label) for e in examples] for split, examples in collection.splits.items()}
    assert placed == {
        "train": [("train/a/1.wav", "a"), ("train/b/2.flac", "b")],
        "test": [("test/a/3.wav", "a")],
        "validation": [("val/b/deep/4.wav", "b")],
    }
    assert collection.ignored_files == 1
    assert [reject.name for reject in collection.rejects] == ["train/5.wav"]


CLIPS = [f"clips/{number}.{'flac' if number % 2 else 'wav'}" for number in range(4)]


def labelled(tmp_path, *rows, **options):
    for number, name in enumerate(CLIPS):
        put(tmp_path / "raw", name, recorded(TONE[number:], 16000, form=name.rpartition(".")[2]))
    put(tmp_path / "raw", "labels.csv", "\n".join(rows).encode())
    return collect(tmp_path, **options)


def test_a_table_beside_recordings_gives_them_classes_and_splits(tmp_path):
    rows = (f"{CLIPS[0]},dog,train", f"{CLIPS[2]},cat,test", f"{CLIPS[3]},,train")
    collection = labelled(tmp_path, "audio,label,split", *rows)
    placed = {split: [(e.name, e.label, e.values) for e in held] for split, held in collection.splits.items()}
    assert placed == {"train": [("clips/0.wav", "dog", ())], "test": [("clips/2.wav", "cat", ())]}
    assert collection.columns == {"file": "audio", "target": "label", "split": "split"}
    (reject,) = collection.rejects
    assert reject.name == "clips/3.flac"
    assert reject.reason.endswith("in labels.csv:4")
    assert collection.ignored_files == 1  # clips/1.flac, which no row names


def test_recordings_may_have_real_values(tmp_path):
    rows = (f"{name},{place}.25" for place, name in enumerate(CLIPS))
    collection = labelled(tmp_path, "audio,age", *rows, task="regression")
    assert (collection.task, collection.target_names) == ("regression", ("age",))
    assert [example.values for example in collection.splits["train"]] == [(0.25,), (1.25,), (2.25,), (3.25,)]
    assert len(collection.seconds) == len(collection.rates_hz) == 4


def test_recordings_may_have_several_labels(tmp_path):
    rows = (f"{name},{tags}" for name, tags in zip(CLIPS, ("bird|rain", "bird", "rain", "rain"), strict=True))
    collection = labelled(tmp_path, "audio,tags", *rows, task="multilabel")
    assert (collection.task, collection.target_names) == ("multilabel", ("bird", "rain"))
    assert [example.values for example in collection.splits["train"]] == [(1, 1), (1, 0), (0, 1), (0, 1)]


def test_an_archive_of_recordings_is_of_that_kind_and_is_unpacked(tmp_path):
    record_tones(tmp_path / "tones", per_class=12)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for file in (tmp_path / "tones").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    source = f"folder:{tmp_path / 'clips.zip'}"
    assert sources.guess_kind(sources.parse(source, tmp_path)) == "audio"
    paths = Paths(tmp_path / "project")
    paths.root.mkdir()
    tasks.download.run(DownloadSettings(source=source), paths)
    tasks.preprocess.run(PreprocessSettings(), paths)
    assert (read_info(paths.prepared).kind, read_info(paths.prepared).labels) == ("audio", ("high", "low", "middle"))


def test_the_kind_is_that_of_most_files(tmp_path):
    put(tmp_path, "raw/a/1.wav", b"x")
    put(tmp_path, "raw/a/2.flac", b"x")
    put(tmp_path, "raw/cover.jpg", b"x")
    assert sources.guess_kind(sources.parse("folder:raw", tmp_path)) == "audio"
    assert sources.kind_of_files(["a.png", "b.jpg", "c.mp3"]) == "image"
    assert sources.kind_of_files(["a.txt"]) is None


def test_a_folder_of_recordings_becomes_prepared_data_and_a_report(tmp_path):
    record_tones(tmp_path / "tones", per_class=20)
    paths = Paths(tmp_path / "project")
    paths.root.mkdir()
    tasks.download.run(DownloadSettings(source=f"folder:{tmp_path / 'tones'}"), paths)
    tasks.preprocess.run(PreprocessSettings(), paths)
    info, report = read_info(paths.prepared), read_json(paths.reports / "data.json")
    assert (info.kind, info.labels) == ("audio", ("high", "low", "middle"))
    assert sum(info.counts.values()) == 60
    seconds = report["audio_seconds"]
    assert 0.3 <= seconds["p50"] <= seconds["p90"] <= seconds["p95"] <= seconds["max"] <= 0.6
    assert set(report["audio_rates_hz"]) == {"8000", "16000", "22050"}
    assert sum(report["audio_rates_hz"].values()) == info.counts["train"]
    train = open_split(paths.prepared, "train")
    assert all(decode(content).is_plain for content in train.inputs(range(len(train))))


def test_a_setting_of_another_kind_is_refused(tmp_path):
    record_tones(tmp_path / "tones", per_class=3)
    paths = Paths(tmp_path / "project")
    paths.root.mkdir()
    tasks.download.run(DownloadSettings(source=f"folder:{tmp_path / 'tones'}"), paths)
    with pytest.raises(DataError, match="the source holds audio data"):
        tasks.preprocess.run(PreprocessSettings(kind="image"), paths)
