"""Fine-tuning as we do it beside a bare `model.fit` on images decoded before: throughput, and waiting for input.

python -m benchmarks.input_wait [FOLDER_OF_CLASS_FOLDERS] [--image-size-px 64] [--rounds 7] [--steps 40]

Both train the same EfficientNet-Lite0 with AdamW on as many batches of the same images, an epoch in turn, in one
process with the allocator set as stages set it. Ours reads the prepared split, decodes and varies every image, clips
gradients and keeps the average weights; `fit` gets float32 arrays, varies nothing, and does no more than a step must.
Building an epoch's pipeline and its first batch count as waiting. Without a folder the images are the embedded digits.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.projects import prepared_images, run_as_a_stage

BATCH_SIZE, RATE, SEED = 32, 1e-4, 7


def main() -> None:
    """Print each round, the median of its ratios with their spread, and the share of waiting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--image-size-px", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of an epoch, at most")
    arguments = parser.parse_args()
    run_as_a_stage("benchmarks.input_wait")
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        race = _Race(arguments.folder, Path(folder), arguments.image_size_px, arguments.steps)
        print(f"{race.steps} steps of {BATCH_SIZE} images of {arguments.image_size_px} px an epoch", flush=True)
        ratios, of_processor, shares = [], [], []
        for epoch in range(1, arguments.rounds + 2):
            plain, plain_processor = _timed(race.fit)
            before = race.waited_s
            ours, ours_processor = _timed(partial(race.ours, epoch))
            waited = race.waited_s - before
            if epoch > 1:  # the first round traces and warms up both
                ratios.append(plain / ours)
                of_processor.append(plain_processor / ours_processor)
                shares.append(waited / ours)
                print(f"round {epoch - 1}: fit {plain:.2f} s, ours {ours:.2f} s, waited {waited:.2f} s", flush=True)
    print(f"throughput: {statistics.median(ratios):.3f} of fit ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"the same by processor time: {statistics.median(of_processor):.3f} ", end="")
    print(f"({min(of_processor):.3f} to {max(of_processor):.3f})")
    print(f"waiting for input: {statistics.median(shares):.1%} of the time ({min(shares):.1%} to {max(shares):.1%})")


class _Race:
    """One model that both train."""

    def __init__(self, images: Path | None, scratch: Path, image_size_px: int, steps: int) -> None:
        import keras
        import numpy as np

        from regraft.backbones.extractor import build_extractor
        from regraft.backbones.fetch import fetch
        from regraft.determinism import set_up
        from regraft.tuning.augment import augmentation
        from regraft.tuning.batches import Batches
        from regraft.tuning.classifier import graft
        from regraft.tuning.loop import Trainer

        set_up(SEED)
        train, _ = prepared_images(images, scratch)
        fetch("efficientnet_lite0_imagenet", scratch / "backbones", root=scratch)
        extractor = build_extractor(scratch / "backbones", image_size_px=image_size_px)
        size, classes = extractor.model.output_shape[-1], len(train.class_names)
        self._model = graft(extractor.model, np.zeros((size, classes), "float32"), np.zeros(classes, "float32"))
        self._trainer = Trainer(self._model)
        self.steps = min(steps, len(train) // BATCH_SIZE)
        rows = np.random.default_rng(SEED).permutation(len(train))[: self.steps * BATCH_SIZE]
        self._batches = Batches(train, rows, extractor.prepare, BATCH_SIZE, SEED, augmentation(flip=False))
        self._decoded = np.stack([extractor.prepare(content).numpy() for content in train.inputs(rows.tolist())])
        self._labels = train.labels[rows]
        self.waited_s = 0.0
        self._model.compile(
            keras.optimizers.AdamW(RATE, weight_decay=0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,  # XLA is far slower for these convolutions on processors
        )

    def fit(self) -> None:
        """Train for an epoch as Keras does."""
        self._model.fit(self._decoded, self._labels, batch_size=BATCH_SIZE, epochs=1, verbose=0)

    def ours(self, epoch: int) -> None:
        """Train for an epoch as `loop.train` does, counting the time until each batch has come."""
        asked = time.perf_counter()
        for images, labels in self._batches.training(epoch):
            self.waited_s += time.perf_counter() - asked
            self._trainer.step(images, labels, RATE)
            asked = time.perf_counter()
        self.waited_s += time.perf_counter() - asked


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that `work` takes by the clock and in all threads of this process."""
    started, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - processor


if __name__ == "__main__":
    main()
