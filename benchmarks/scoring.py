"""Batch scoring of many images beside the embedding stage on the same ones: images a second, and memory.

python -m benchmarks.scoring PROJECT [--images 10000] [--rounds 3]

PROJECT is one of images that has run, say the embedded digits. N JPEG files are made from its examples, each other than
the rest; `regraft score` answers them by its champion and the embedding stage embeds them anew, in turns, each in a
process of its own. A rate is what came between the first and the last file of results, so that starting up counts for
neither; processor seconds and memory are of whole processes.
"""

import argparse
import hashlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flows.pipeline import ALLOCATOR
from regraft.backbones.features import ROWS_PER_SHARD
from regraft.data.records import Example, open_split, read_info, write_prepared
from regraft.paths import Paths
from regraft.registry.scoring import PART_ROWS
from regraft.settings import load_settings

_EMBED = """
import sys
from pathlib import Path
from regraft.paths import Paths
from regraft.settings import load_settings
from tasks.embed import run
run(load_settings(Path(sys.argv[1])).embed, Paths(Path(sys.argv[2])))
"""


@dataclass(frozen=True)
class Cost:
    """What a process took: examples a second in its steady part, processor seconds, and most memory in bytes."""

    rate: float
    processor_s: float
    peak_bytes: int


def main() -> None:
    """Print each round, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    paths = Paths(options.project.resolve())
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        images = Path(folder) / "images"
        _make_images(paths, images, options.images)
        twin = _twin(paths, images, Path(folder) / "project")
        scored, embedded = [], []
        for number in range(1, options.rounds + 1):
            scored.append(_score(paths, images, Path(folder) / f"answers-{number}"))
            embedded.append(_embed(paths, twin))
            print(f"round {number}: scoring {_told(scored[-1])}; embedding {_told(embedded[-1])}", flush=True)
    ratio = statistics.median(one.rate / other.rate for one, other in zip(scored, embedded, strict=True))
    work = statistics.median(one.processor_s / other.processor_s for one, other in zip(scored, embedded, strict=True))
    print(
        f"scoring {options.images} images: {ratio:.2f} of the embedding stage's rate, {work:.2f} of its processor time"
    )
    print(f"peak memory of scoring: {max(one.peak_bytes for one in scored) / 1e9:.2f} GB")


def _told(cost: Cost) -> str:
    return f"{cost.rate:.0f} images/s ({cost.processor_s:.0f} processor s, {cost.peak_bytes / 1e9:.2f} GB)"


def _make_images(paths: Paths, folder: Path, count: int) -> None:
    """Write `count` JPEG files: the project's examples over and over, each time moved by a pixel more."""
    import numpy as np
    from PIL import Image

    splits = [open_split(paths.prepared, name) for name in read_info(paths.prepared).counts]
    contents = [(split, row) for split in splits for row in range(len(split))]
    folder.mkdir()
    for number in range(count):
        split, row = contents[number % len(contents)]
        with Image.open(io.BytesIO(split.inputs([row])[0])) as image:
            moved = np.roll(np.asarray(image.convert("RGB")), number // len(contents), axis=1)
        Image.fromarray(moved).save(folder / f"{number:06d}.jpg", quality=90)


def _twin(paths: Paths, images: Path, root: Path) -> Paths:
    """Return a project whose prepared examples are `images`, with the backbone of `paths`."""
    twin = Paths(root)
    examples = [
        Example(hashlib.sha256(file.read_bytes()).hexdigest(), file.name, "any", file)
        for file in sorted(images.iterdir())
    ]
    third = len(examples) // 3
    splits = {"train": examples[: -2 * third], "validation": examples[-2 * third : -third], "test": examples[-third:]}
    write_prepared(twin.prepared, "image", ["any"], splits)
    shutil.copytree(paths.backbones, twin.backbones)
    twin.reports.mkdir()
    for report in (paths.reports / "data.json", paths.choice):
        shutil.copy(report, twin.reports)
    return twin


def _score(paths: Paths, images: Path, out: Path) -> Cost:
    name = load_settings(paths.params).name
    command = ["-m", "regraft.cli", "score", name, str(images), str(out), "--root", str(paths.root)]
    processor_s, peak_bytes = _run(command, os.environ.copy())
    return Cost(_rate(out, "part-*.parquet", PART_ROWS), processor_s, peak_bytes)


def _embed(paths: Paths, twin: Paths) -> Cost:
    shutil.rmtree(twin.feature_cache, ignore_errors=True)
    command = ["-c", _EMBED, str(paths.params), str(twin.root)]
    processor_s, peak_bytes = _run(command, os.environ | ALLOCATOR)
    return Cost(_rate(twin.feature_cache, "*/*.npz", ROWS_PER_SHARD), processor_s, peak_bytes)


def _run(arguments: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run a process of Python; return the processor seconds and the memory it took at most, in bytes."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments[:3])} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _rate(folder: Path, pattern: str, rows: int) -> float:
    """Return examples a second between the first and the last whole file of results, of `rows` each."""
    times = sorted(file.stat().st_mtime for file in folder.glob(pattern))[:-1]  # the last file may hold fewer
    if len(times) < 2:
        sys.exit(f"{folder} holds too few results to tell a rate; name more --images (at least {4 * rows})")
    return rows * (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    main()
