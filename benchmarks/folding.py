"""What folding still normalisation into convolutions saves in a step of fine-tuning and in a forward pass.

python -m benchmarks.folding [BACKBONE] [--image-size-px 224] [--rounds 10]

Two trainers of the same network take turns on the same batch of random pictures, in a process with the allocator as
stages set it: one as it is, one that does not fold.
"""

import argparse
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

from benchmarks.projects import run_as_a_stage, timed
from regraft.backbones.extractor import build_extractor
from regraft.backbones.fetch import fetch
from regraft.tuning import loop

BATCH_SIZE, CLASSES, RATE = 32, 10, 1e-4


def main() -> None:
    """Print the median times of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="efficientnet_lite0_imagenet")
    parser.add_argument("--image-size-px", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    run_as_a_stage("benchmarks.folding")
    side = arguments.image_size_px
    pixels = tf.random.uniform((BATCH_SIZE, side, side, 3), maxval=255.0)
    labels = tf.random.uniform((BATCH_SIZE,), maxval=CLASSES, dtype=tf.int64)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        fetch(arguments.backbone, Path(folder), root=Path(folder))
        with patch.object(loop, "folded_normalization", lambda model: nullcontext()):
            plain = _trainer(Path(folder), side, pixels, labels)
        folded = _trainer(Path(folder), side, pixels, labels)
    works = {
        "step": lambda trainer: trainer.step(pixels, labels, RATE),
        "forward": lambda trainer: trainer.logits([(pixels, labels)]),
    }
    for name, work in works.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            for trainer, taken in zip((plain, folded), seconds, strict=True):
                taken.append(timed(partial(work, trainer))[1])
        before, after = (float(np.median(taken)) for taken in seconds)
        print(f"{name} of {BATCH_SIZE} at {side} px: {before:.3f} s, folded {after:.3f} s, {before / after:.2f} times")


def _trainer(backbones: Path, side: int, pixels: tf.Tensor, labels: tf.Tensor) -> loop.Trainer:
    """Return a trainer whose graphs have been traced."""
    extractor = build_extractor(backbones, image_size_px=side)
    trainer = loop.Trainer(keras.Model(extractor.model.input, keras.layers.Dense(CLASSES)(extractor.model.output)))
    trainer.step(pixels, labels, RATE)
    trainer.logits([(pixels, labels)])
    return trainer


if __name__ == "__main__":
    main()
