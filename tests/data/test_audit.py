"""Copies planted among drawn pictures, texts and tones: found, and nothing else."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from regraft.data import audio_copies, image_copies, text_copies
from regraft.data.audio import decode
from regraft.data.audit import Copies, Member, audit, find_copies
from regraft.data.overlaps import known_overlap
from tests.sounds import recorded


def picture(seed, size=(96, 80)):
    """A smooth random background with twenty random shapes on it."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(40, 200, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(20):
        x, y, width, height = (int(random.integers(0, side)) for side in (*size, size[0] // 3, size[1] // 3))
        draw.ellipse((x, y, x + width, y + height), fill=tuple(int(part) for part in random.integers(20, 220, 3)))
    return image


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURES = [encoded(picture(seed)) for seed in range(24)]


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


CHANGES: dict[str, Any] = {
    "JPEG at quality 50": lambda image: encoded(image, "JPEG", quality=50),
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "a tenth brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
    "a tenth darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.9)),
    "5% cut from every side": lambda image: encoded(crop(image, 0.05, 0.05, 0.95, 0.95)),
    "5% cut from the left": lambda image: encoded(crop(image, 0.05, 0.0, 1.0, 1.0)),
    "5% cut and blown up again": lambda image: encoded(crop(image, 0.0, 0.05, 0.95, 1.0).resize(image.size)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_a_near_copy_of_its_original_and_of_nothing_else(change):
    planted = [CHANGES[change](picture(seed)) for seed in range(6)]
    copies = find_copies("image", [*PICTURES, *planted])
    assert copies.contents == list(range(30))
    assert copies.near == [(seed, 24 + seed) for seed in range(6)]


def test_the_same_pixels_in_another_file_are_an_exact_copy():
    again = encoded(picture(3), "BMP")
    assert again != PICTURES[3]
    copies = find_copies("image", [*PICTURES, again])
    assert copies.contents == [*range(24), 3]
    assert copies.near == []


def test_the_same_samples_in_another_file_are_an_exact_copy_and_louder_ones_a_near_copy(tmp_path):
    sounds = [np.random.default_rng(seed).normal(0, 0.05, 8000) for seed in range(8)]
    files = [recorded(sound, 16000) for sound in sounds]
    again = tmp_path / "again.flac"
    samples = np.round(32768 * decode(files[3]).samples).astype(np.int16)
    again.write_bytes(recorded(samples, 16000, form="FLAC"))
    copies = find_copies("audio", [*files, again, recorded(2.0 * sounds[5], 16000), recorded(sounds[6], 8000)])
    assert copies.contents == [*range(8), 3, 8, 9]
    assert copies.near == [(5, 8)]
    assert find_copies("audio", [*files, again], near=False) == Copies([*range(8), 3], [], [])


def test_pictures_of_one_colour_are_near_copies_of_nothing():
    flat = [encoded(Image.new("RGB", (20, 20), (grey, grey, grey))) for grey in range(0, 250, 5)]
    assert find_copies("image", flat).near == []


def test_a_hundred_copies_of_one_picture_are_linked_without_listing_every_pair():
    random = np.random.default_rng(0)
    pixels = np.asarray(picture(1)).astype(int)
    noisy = [(pixels + random.integers(-2, 3, pixels.shape)).clip(0, 255).astype(np.uint8) for _ in range(100)]
    near = find_copies("image", [encoded(Image.fromarray(each)) for each in noisy]).near
    assert {place for pair in near for place in pair} == set(range(100))
    assert len(near) < 100 * 60


WORDS = [f"{first}{second}" for first in ("river", "stone", "copper", "violin") for second in ("bed", "man", "ing")]


def sentences(count, words=9):
    random = np.random.default_rng(7)
    return [" ".join(random.choice(WORDS, words)) + f" number{number}" for number in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.title,
        lambda text: f"  {text.replace(' ', '   ')} ",
        lambda text: text.replace(" ", ", ") + "?!",
        lambda text: text.replace("o", "ο").replace("ο", "o").replace("n", "ｎ"),  # full width
        lambda text: " ".join([*text.split()[:4], f"zebra{text[-1]}", *text.split()[5:]]),
    ],
    ids=["capitals", "title", "spaces", "punctuation", "full width", "a word"],
)
def test_a_changed_text_is_a_near_copy_of_its_original_and_of_nothing_else(change):
    texts = sentences(60)
    near = text_copies.near_copies([*texts, *map(change, texts[:6])]).pairs
    assert near == [(place, 60 + place) for place in range(6)]


def test_punctuation_that_parted_words_may_vanish_with_its_space():
    assert text_copies.near_copies(["Well,I can't say: go/stop!", "well i cant say go stop"]).pairs == [(0, 1)]


@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_word_may_be_put_in_or_left_out(place):
    random = np.random.default_rng(2)
    texts = [" ".join(random.choice([f"word{n}" for n in range(200)], 10)) for _ in range(60)]
    words = texts[7].split()
    longer, shorter = [*words[:place], "zebra", *words[place:]], [*words[:place], *words[place + 1 :]]
    for changed in (longer, shorter):
        assert text_copies.near_copies([*texts, " ".join(changed)]).pairs == [(7, 60)]


def test_questions_from_one_mould_are_not_copies_of_each_other():
    asked = [f"how do i {verb} my {thing}" for verb in ("order", "lose", "find", "stop") for thing in WORDS]
    assert text_copies.near_copies(asked).pairs == []


def test_a_long_text_with_a_few_changed_words_is_a_near_copy():
    random = np.random.default_rng(1)
    vocabulary = [f"word{number}" for number in range(3000)]
    texts = [list(random.choice(vocabulary, 80)) for _ in range(30)]
    changed = [word if place not in (5, 40, 70) else "other" for place, word in enumerate(texts[2])]
    assert text_copies.near_copies([" ".join(words) for words in [*texts, changed]]).pairs == [(2, 30)]


def test_more_texts_part_none_that_must_share_a_split():
    random = np.random.default_rng(4)
    texts = [random.choice(WORDS, words) for words in random.integers(5, 17, 300)]
    changed = [np.where(np.arange(len(words)) == 3, "zebra", words) for words in texts[:150]]
    more = [np.where(np.arange(len(words)) == 4, f"new{n % 9}", words) for n, words in enumerate(texts * 4)]
    joined = list(dict.fromkeys(" ".join(words) for words in [*texts, *changed, *more]))
    few, many = (text_copies.near_copies(joined[:count]) for count in (400, len(joined)))
    assert set(few.bonds) <= set(many.bonds)
    assert not set(few.pairs) <= set(many.pairs)  # what is evidence depends on all texts
    assert few.bonds
    assert min(len(joined[place].split()) for pair in many.bonds for place in pair) >= text_copies.WORDS_ENOUGH


def test_texts_without_a_word_are_compared_as_they_are():
    assert text_copies.near_copies(["!!!", "???", ":-)", " !!! ", ""]).pairs == [(0, 3)]


def test_few_texts_or_none_have_no_copies():
    assert text_copies.near_copies([]).pairs == []
    assert text_copies.near_copies(["only this one text"]).pairs == []
    assert find_copies("image", []) == Copies([], [], [])


def voice(seed, rate_hz=8000, length_s=0.6):
    """A second of chirps with harmonics under a swelling envelope, another one for each seed."""
    random = np.random.default_rng(seed)
    time = np.arange(int(length_s * rate_hz)) / rate_hz
    pitch = random.uniform(90, 250) * (1 + random.uniform(-0.3, 0.3) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    tones = sum(random.uniform(0.1, 1) * np.sin(number * phase + random.uniform(0, 6)) for number in range(1, 8))
    swell = np.sin(np.pi * time / length_s) ** random.uniform(0.5, 2)
    return (0.1 * tones * swell).astype(np.float32)


SOUND_CHANGES: dict[str, Any] = {
    "gain": lambda wave: (0.4 * wave, 8000),
    "other rate": lambda wave: (np.interp(np.arange(0, len(wave) - 1, 0.5), np.arange(len(wave)), wave), 16000),
    "noise at 30 dB": lambda wave: (
        wave + np.random.default_rng(0).normal(0, np.sqrt((wave**2).mean() / 1000), len(wave)),
        8000,
    ),
    "5% cut from the start": lambda wave: (wave[int(0.05 * len(wave)) + 1 :], 8000),
    "5% cut from the end": lambda wave: (wave[: int(0.95 * len(wave))], 8000),
}


@pytest.mark.parametrize("change", SOUND_CHANGES)
def test_a_changed_sound_is_a_near_copy_of_its_original_and_of_nothing_else(change):
    sounds = [audio_copies.fingerprint(voice(seed), 8000).wave for seed in range(20)]
    planted = [audio_copies.fingerprint(*SOUND_CHANGES[change](voice(seed))).wave for seed in range(5)]
    assert audio_copies.near_copies([*sounds, *planted]) == [(seed, 20 + seed) for seed in range(5)]


def test_silence_and_sounds_too_short_to_tell_are_copies_of_nothing():
    silent = audio_copies.fingerprint(np.zeros(8000, np.float32), 8000)
    click = audio_copies.fingerprint(np.ones(3, np.float32), 8000)
    empty = audio_copies.fingerprint(np.empty(0, np.float32), 8000)
    assert audio_copies.near_copies([silent.wave, silent.wave, click.wave, click.wave, empty.wave]) == []
    with pytest.raises(ValueError, match="finite"):
        audio_copies.fingerprint(np.array([0.1, np.nan], np.float32), 8000)


def test_a_sound_of_a_minute_keeps_two_seconds_and_is_found_by_them():
    random = np.random.default_rng(3)
    sounds = [
        np.concatenate([voice(10 * seed + part) * random.uniform(0.2, 1) for part in range(50)]) for seed in (1, 2)
    ]
    cut = sounds[0][int(0.05 * len(sounds[0])) :]
    waves = [audio_copies.fingerprint(sound, 8000).wave for sound in (*sounds, cut)]
    assert max(map(len, waves)) == 8192
    assert audio_copies.near_copies(waves) == [(0, 2)]


def member(name, split, label, content):
    return Member(name, split, label, content)


def test_pairs_conflicts_and_crossings_are_counted_as_worked_out_by_hand():
    members = [
        member("c", "train", "x", 0), member("a", "test", "y", 0), member("b", "train", "y", 0),
        member("d", "train", "x", 1), member("e", "validation", "x", 2), member("f", "train", "z", 3),
    ]  # fmt: skip
    found = audit(members, [(1, 2), (1, 3), (1, 9)])
    assert found.as_json() == {
        "exact": [["a", "b"], ["a", "c"]],
        "near": [["d", "e"], ["d", "f"]],
        "conflicts": [["a", "c"]],
        "across_splits": 3,
    }
    assert [(one.name, other.name) for one, other in found.near_conflicts] == [("d", "f")]
    assert found.across_by_splits() == {"train and test": 2, "train and validation": 1}
    assert {each.name for each in found.to_drop} == {"b", "c", "d"}


def test_no_copy_stands_in_two_splits_once_those_to_drop_are_gone():
    random = np.random.default_rng(0)
    for _ in range(200):
        contents = int(random.integers(2, 12))
        splits = random.choice(["train", "validation", "test"], size=20)
        members = [member(f"{n}", split, "x", int(random.integers(contents))) for n, split in enumerate(splits)]
        near = [(int(one), int(other)) for one, other in random.integers(0, contents, (8, 2)) if one < other]
        found = audit(members, near)
        left = [one for one in members if one not in found.to_drop]
        assert not audit(left, near).across


def test_lists_in_the_report_are_cut_and_counts_are_not():
    members = [member(f"{number:03d}", "train", "x", 0) for number in range(30)]
    report = audit(members, []).report("report", [], limit=10)
    assert (report["exact"]["pairs"], len(report["exact"]["listed"])) == (29, 10)
    assert report["across_splits"] == 0


@pytest.mark.parametrize(
    ("source", "trained_on", "expected"),
    [
        ("tfds:stanford_dogs", "ImageNet-1k", True),
        ("tfds:imagenette/320px:1.0.0", "ImageNet-1k", True),
        ("folder:/data/tiny-imagenet-200", "ImageNet-1k", True),
        ("folder:/data/grocery", "ImageNet-1k", False),
        ("tfds:stanford_dogs", "MNIST", False),
        ("folder:/data/cub_200_2011/images", "ImageNet-1k", True),
        ("tfds:imagenet_v2", "ImageNet-21k, then ImageNet-1k", True),
        ("tfds:wiki40b/en", "English Wikipedia and BookCorpus", True),
        ("csv:/data/squad/train.csv", "English Wikipedia and BookCorpus", True),
        ("tfds:openwebtext/plain_text", "WebText", True),
        ("tfds:openwebtext/plain_text", "English Wikipedia and BookCorpus", False),
        ("tfds:glue/mnli", "1.17 billion sentence pairs (sentence-transformers), after Wikipedia", True),
        ("tfds:glue/sst2", "1.17 billion sentence pairs (sentence-transformers), after Wikipedia", False),
    ],
)
def test_targets_known_to_overlap_with_what_a_backbone_was_trained_on(source, trained_on, expected):
    warning = known_overlap(source, trained_on)
    assert (warning is not None) == expected
    assert warning is None or trained_on in warning


def test_sketches_do_not_depend_on_how_a_picture_is_stored(tmp_path):
    (tmp_path / "one.png").write_bytes(PICTURES[0])
    assert image_copies.sketch(tmp_path / "one.png").digest == image_copies.sketch(encoded(picture(0), "TIFF")).digest
