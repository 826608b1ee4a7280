"""What glibc's allocator costs a training step, left to itself and as stages set it (`flows.pipeline.ALLOCATOR`).

python -m benchmarks.page_faults
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.pipeline import ALLOCATOR

STEPS = 50
BATCH_SIZE, SIDE_PX, CLASSES = 32, 64, 10


def main() -> None:
    """Print processor time and page faults of the same steps in two processes, and their ratio."""
    plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    seconds = [_measure(what, env) for what, env in (("as it is", plain), ("as stages set it", plain | ALLOCATOR))]
    print(f"processor time: {seconds[1] / seconds[0]:.2f} of what it was")


def _measure(what: str, env: dict[str, str]) -> float:
    command = [sys.executable, "-c", "from benchmarks.page_faults import train; train()"]
    done = subprocess.run(
        command, env=env | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stdout=subprocess.PIPE, text=True, check=True
    )
    user, system, faults = done.stdout.split()[-3:]
    print(f"{what}: {float(user):.1f} s in the program, {float(system):.1f} s in the kernel, {faults} page faults")
    return float(user) + float(system)


@dataclass(frozen=True)
class RandomImages:
    """Encoded images and their classes, as `Batches` wants them."""

    labels: Any
    images: list[bytes]
    kind: str = "image"

    def inputs(self, indices: Sequence[int]) -> list[bytes]:
        """Return the images at `indices`."""
        return [self.images[index] for index in indices]


def train() -> None:
    """Train EfficientNet-Lite0 on random images and print user seconds, kernel seconds and faults of the steps."""
    import numpy as np
    import tensorflow as tf

    from regraft.backbones.extractor import build_extractor
    from regraft.backbones.fetch import fetch
    from regraft.determinism import set_up
    from regraft.tuning.augment import augmentation
    from regraft.tuning.batches import Batches
    from regraft.tuning.classifier import graft
    from regraft.tuning.loop import Trainer

    set_up(7)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        fetch("efficientnet_lite0_imagenet", Path(folder) / "backbones", root=Path(folder))
        extractor = build_extractor(Path(folder) / "backbones", image_size_px=SIDE_PX)
    model = extractor.model
    size = model.output_shape[-1]
    trainer = Trainer(graft(model, np.zeros((size, CLASSES), "float32"), np.zeros(CLASSES, "float32")))
    random = np.random.default_rng(7)
    images = [
        tf.io.encode_png(random.integers(0, 256, (28, 28, 1), np.uint8)).numpy() for _ in range(STEPS * BATCH_SIZE)
    ]
    source = RandomImages(np.arange(len(images)) % CLASSES, images)
    rows = np.arange(len(images))
    batches = Batches(source, rows, extractor.prepare, BATCH_SIZE, seed=7, augment=augmentation(flip=False))
    before = resource.getrusage(resource.RUSAGE_SELF)
    for inputs, labels in batches.training(1):
        trainer.step(inputs, labels, 1e-4)
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(user, system, after.ru_minflt - before.ru_minflt)


if __name__ == "__main__":
    main()
