"""The leakage audit: how many planted copies it finds, how often it cries wolf, and how its cost grows.

python -m benchmarks.audit planted FOLDER_OR_CSV...        recall by kind of change, and false alarms
python -m benchmarks.audit words FOLDER_OR_CSV             a word changed: both by length of text, and by threshold
python -m benchmarks.audit growth PLOT.png [--texts-only]  time and peak memory on generated data, with both curves
"""

import argparse
import csv
import io
import multiprocessing
import random
import re
import resource
import string
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from scipy.signal import resample_poly

from regraft.data import audio_copies, text_copies
from regraft.data.audit import find_copies
from regraft.data.sources import is_image_name
from regraft.data.text_copies import FEWEST_WORDS, fold

PLANTED = 200
PICTURES = (10_000, 30_000, 100_000)
TEXTS = (30_000, 100_000, 300_000, 1_000_000)
Pairs = set[tuple[int, int]]


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("planted").add_argument("paths", nargs="+", type=Path)
    commands.add_parser("words").add_argument("path", type=Path)
    growth_parser = commands.add_parser("growth")
    growth_parser.add_argument("plot", type=Path)
    growth_parser.add_argument("--texts-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "planted":
        for path in arguments.paths:
            planted(path)
    elif arguments.command == "words":
        words(arguments.path)
    else:
        growth(arguments.plot, texts_only=arguments.texts_only)


def planted(path: Path) -> None:
    """Print a row for each kind of change planted in the data at `path`, one kind at a time."""
    items, find, changes = _read(path)
    natural = find(items)
    touched = {place for pair in natural for place in pair}
    print(
        f"{path.name}: {len(items)} different examples; without planting {len(natural)} near pairs "
        f"({100 * len(natural) / len(items):.2f}%), which {len(touched)} ({100 * len(touched) / len(items):.2f}%) "
        "examples are part of"
    )
    chosen = random.Random(0).sample(range(len(items)), min(PLANTED, len(items)))
    for name, change in changes.items():
        copies = {place: copy for place in chosen if (copy := change(items[place])) is not None}
        found = find([*items, *copies.values()])
        wanted = {(place, len(items) + number) for number, place in enumerate(copies)}
        # A copy may be linked to its original through another copy of it.
        hits = sum(pair in found or _linked(found, *pair) for pair in wanted)
        others = len(found - wanted - natural)
        print(
            f"  {name:<28} recall {hits / max(1, len(wanted)):.3f} of {len(wanted)}, other new pairs {others}",
            flush=True,
        )


def _linked(pairs: Pairs, one: int, other: int) -> bool:
    beside = {a if b == one else b for a, b in pairs if one in (a, b)}
    return any(other in pair and beside & set(pair) for pair in pairs)


def _read(path: Path) -> tuple[list[Any], Callable[[Sequence[Any]], Pairs], dict[str, Callable[[Any], Any]]]:
    """Return the different examples at `path`, the search for near copies, and the changes to plant."""
    if path.suffix == ".csv" or (any(path.glob("*.csv")) and not any(path.rglob("*.wav"))):
        tables = [path] if path.suffix == ".csv" else sorted(path.glob("*.csv"))
        texts = [row["text"] for table in tables for row in csv.DictReader(table.open(encoding="utf-8", newline=""))]
        texts = list(dict.fromkeys(texts))
        return texts, _near("text"), _text_changes(texts)
    sounds = sorted(path.rglob("*.wav"))
    if sounds:
        return [_read_wav(file) for file in sounds], _near_sounds, _sound_changes()
    files = sorted(file for file in path.rglob("*") if is_image_name(file.name))
    return list({file.read_bytes(): None for file in files}), _near("image"), _picture_changes()


def _near(kind: str) -> Callable[[Sequence[Any]], Pairs]:
    def find(items: Sequence[Any]) -> Pairs:
        copies = find_copies(kind, items)
        first: dict[int, int] = {}
        for place, content in enumerate(copies.contents):
            first.setdefault(content, place)
        return {(first[one], first[other]) for one, other in copies.near}

    return find


def _near_sounds(items: Sequence[Any]) -> Pairs:
    return set(audio_copies.near_copies([audio_copies.fingerprint(*sound).wave for sound in items]))


def _picture_changes() -> dict[str, Callable[[bytes], bytes | None]]:
    def changed(change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[bytes], bytes]:
        def plant(content: bytes) -> bytes:
            image = change(Image.open(io.BytesIO(content)).convert("RGB"))
            file = io.BytesIO()
            image.save(file, options.get("format", "PNG"), **{k: v for k, v in options.items() if k != "format"})
            return file.getvalue()

        return plant

    def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
        width, height = image.size
        return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))

    return {
        "JPEG at quality 50": changed(lambda image: image, format="JPEG", quality=50),
        "half the size": changed(lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2)))),
        "brightness x 1.1": changed(lambda image: ImageEnhance.Brightness(image).enhance(1.1)),
        "brightness x 0.9": changed(lambda image: ImageEnhance.Brightness(image).enhance(0.9)),
        "5% cut from each side": changed(lambda image: cut(image, 0.05, 0.05, 0.95, 0.95)),
        "5% cut in all, from the middle": changed(lambda image: cut(image, 0.025, 0.025, 0.975, 0.975)),
        "5% cut from the left": changed(lambda image: cut(image, 0.05, 0.0, 1.0, 1.0)),
        "5% cut at a corner, enlarged": changed(lambda image: cut(image, 0.0, 0.05, 0.95, 1.0).resize(image.size)),
    }


def _text_changes(texts: Sequence[str]) -> dict[str, Callable[[str], str | None]]:
    source, known = random.Random(1), set(texts)
    tokens = [word for text in texts for word in fold(text).split()]
    vocabulary = sorted(set(tokens))

    def plant(change: Callable[[str], str]) -> Callable[[str], str | None]:
        def planted_copy(text: str) -> str | None:
            copy = change(text)
            return None if copy in known else copy

        return planted_copy

    def word(draw: Callable[[], str]) -> Callable[[str], str | None]:
        def replace(text: str) -> str | None:
            words = text.split()
            if len(fold(text).split()) < FEWEST_WORDS or not words:
                return None
            words[source.randrange(len(words))] = draw()
            return None if " ".join(words) in known else " ".join(words)

        return replace

    def put_in(text: str) -> str | None:
        words = text.split()
        words.insert(source.randrange(len(words) + 1), source.choice(tokens))
        return " ".join(words) if len(words) > FEWEST_WORDS else None

    def leave_out(text: str) -> str | None:
        words = text.split()
        if len(fold(text).split()) <= FEWEST_WORDS or len(words) < 2:
            return None
        del words[source.randrange(len(words))]
        return None if " ".join(words) in known else " ".join(words)

    return {
        "upper case": plant(str.upper),
        "lower case": plant(str.lower),
        "other punctuation": plant(lambda text: text.rstrip(".?! ") + " !"),
        "no punctuation": plant(lambda text: re.sub(r"[^\w\s]", "", text)),
        "a word made up": word(lambda: "".join(source.choices(string.ascii_lowercase, k=7))),
        "a word of the vocabulary": word(lambda: source.choice(vocabulary)),
        "a word as frequent as any": word(lambda: source.choice(tokens)),
        "a word put in": put_in,
        "a word left out": leave_out,
    }


LENGTHS = ((5, 5), (6, 6), (7, 7), (8, 8), (9, 10), (11, 14), (15, 19), (20, 999))
SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of the threshold, in nats


def words(path: Path) -> None:
    """Print how many texts with a word changed are found, and how many that nobody planted, by length and threshold.

    Texts equal but for case and punctuation are left out at first: that they are copies is beyond doubt. Of the rest
    not all are alarms either: people do put one question in almost the same words twice.
    """
    items, find, changes = _read(path)
    first: dict[str, str] = {}
    for text in items:
        first.setdefault("".join(fold(text).split()) or text, text)
    texts = list(first.values())
    counts = [len(fold(text).split()) for text in texts]
    chosen = random.Random(0).sample(range(len(texts)), min(5 * PLANTED, len(texts)))
    copies = {place: copy for place in chosen if (copy := changes["a word as frequent as any"](texts[place]))}
    wanted = {(place, len(texts) + number) for number, place in enumerate(copies)}
    natural, found = find(texts), find([*texts, *copies.values()])
    print(f"{path.name}: {len(texts)} texts that differ in more than case and punctuation")
    for low, high in LENGTHS:
        fit = {pair for pair in wanted if low <= counts[pair[0]] <= high}
        alarms = sum(low <= counts[one] <= high for one, _ in natural)
        of = sum(low <= count <= high for count in counts)
        print(
            f"  {f'{low} words' if low == high else f'{low} to {high}':<12} recall "
            f"{len(found & fit) / max(1, len(fit)):.3f} of {len(fit):>3}; not planted {alarms:>3} pairs, "
            f"{100 * alarms / max(1, of):.2f}% of {of} texts"
        )
    for shift in SHIFTS:
        with _shifted(shift):
            natural, found = find(texts), find([*texts, *copies.values()])
        print(
            f"  threshold {shift:+.0f}: recall {len(found & wanted) / len(wanted):.3f}; not planted {len(natural)} "
            f"pairs, {100 * len(natural) / len(texts):.2f}% of the texts"
        )


@contextmanager
def _shifted(shift: float) -> Iterator[None]:
    names = ("_REPLACED", "_PUT_IN")
    before = {name: getattr(text_copies, name) for name in names}
    for name, value in before.items():
        setattr(text_copies, name, value + shift)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(text_copies, name, value)


Sound = tuple[np.ndarray, int]


def _sound_changes() -> dict[str, Callable[[Sound], Sound]]:
    noise = np.random.default_rng(0)

    def noisy(sound: Sound) -> Sound:
        samples, rate_hz = sound
        return samples + noise.normal(0.0, np.sqrt((samples**2).mean() / 1000), len(samples)), rate_hz

    return {
        "gain x 0.5": lambda sound: (0.5 * sound[0], sound[1]),
        "gain x 2, clipped": lambda sound: (np.clip(2.0 * sound[0], -1.0, 1.0), sound[1]),
        "twice the rate": lambda sound: (resample_poly(sound[0], 2, 1), 2 * sound[1]),
        "half the rate": lambda sound: (resample_poly(sound[0], 1, 2), sound[1] // 2),
        "noise at 30 dB": noisy,
        "5% cut from the start": lambda sound: (sound[0][int(0.05 * len(sound[0])) :], sound[1]),
        "5% cut from the end": lambda sound: (sound[0][: int(0.95 * len(sound[0]))], sound[1]),
    }


def _read_wav(path: Path) -> Sound:
    with wave.open(str(path)) as file:
        assert file.getsampwidth() == 2, path
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).mean(1)
        return samples.astype(np.float32) / 32768, file.getframerate()


def growth(plot: Path, *, texts_only: bool) -> None:
    """Time the audit on generated data of several sizes, each in a process of its own, and draw both curves."""
    rows: dict[str, list[tuple[int, float, float]]] = {}
    # Growth is judged by processor time, which other work on the machine disturbs least.
    for kind, sizes in (("text", TEXTS), *(() if texts_only else (("image", PICTURES),))):
        for size in sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                wall_s, seconds, peak_mb, found = pool.apply(_measure, (kind, size))
            rows.setdefault(kind, []).append((size, seconds, peak_mb))
            print(
                f"{kind} {size:>9,}: {seconds:8.1f} s of processors, {wall_s:8.1f} s in all, "
                f"peak {peak_mb:7.0f} MB, {found} near pairs",
                flush=True,
            )
        counts, times = (np.log([row[place] for row in rows[kind]]) for place in (0, 1))
        print(f"{kind}: time grows as n^{np.polyfit(counts, times, 1)[0]:.2f}")
        print(f"{kind}: n log n would be n^{np.polyfit(counts, counts + np.log(counts), 1)[0]:.2f} over these sizes")
    _draw(rows, plot)


def _measure(kind: str, size: int) -> tuple[float, float, float, int]:
    contents: Iterable[Any] = _texts(size) if kind == "text" else _pictures(size)
    wall, used = time.monotonic(), time.process_time()
    copies = find_copies(kind, contents)
    wall, used = time.monotonic() - wall, time.process_time() - used
    return wall, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(copies.near)


def _texts(size: int) -> Iterator[str]:
    """Yield texts of 4 to 14 words, as unevenly frequent as words are, and after every hundred a copy with a change."""
    source = np.random.default_rng(0)
    vocabulary = np.array(["".join(row) for row in source.choice(list(string.ascii_lowercase), (20_000, 6))])
    last = ""
    for number in range(size):
        if number % 100 == 99:
            yield last.upper() + "!"
            continue
        ranks = np.minimum(source.zipf(1.3, source.integers(4, 15)) - 1, len(vocabulary) - 1)
        last = " ".join(vocabulary[ranks])
        yield last


def _pictures(size: int) -> Iterator[bytes]:
    """Yield 48-pixel JPEGs of smooth random colours with discs, and after every hundred a copy at another quality."""
    source = np.random.default_rng(0)
    down, across = np.mgrid[:48, :48]
    pixels = np.zeros((48, 48, 3), np.uint8)
    for number in range(size):
        if number % 100 != 99:
            coarse = Image.fromarray(source.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            pixels = np.array(coarse.resize((48, 48), Image.Resampling.BICUBIC))
            for y, x, radius in zip(*source.integers(4, 44, (2, 3)), source.integers(3, 12, 3), strict=True):
                pixels[(down - y) ** 2 + (across - x) ** 2 < radius**2] = source.integers(0, 256, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=60 if number % 100 == 99 else 90)
        yield file.getvalue()


def _draw(rows: dict[str, list[tuple[int, float, float]]], plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for kind, measured in rows.items():
        sizes = np.array([row[0] for row in measured])
        seconds.loglog(sizes, [row[1] for row in measured], "o-", label=f"{kind}s")
        expected = sizes * np.log(sizes)
        seconds.loglog(sizes, measured[0][1] * expected / expected[0], ":", color="grey", label="n log n")
        memory.loglog(sizes, [row[2] for row in measured], "o-", label=f"{kind}s")
    memory.axhline(2048, color="grey", linestyle=":", label="2 GB")
    for axes, name in ((seconds, "processor time, s"), (memory, "peak memory, MB")):
        axes.set_xlabel("examples")
        axes.set_ylabel(name)
        axes.legend()
    figure.savefig(plot, dpi=120)


if __name__ == "__main__":
    main()
