"""Training a head from cached features beside training it through the frozen backbone: time, and whether they agree.

python -m benchmarks.cached_head [FOLDER_OF_CLASS_FOLDERS] [--epochs 20] [--image-size-px 64] [--examples 640]

Both take the same AdamW steps from the same head on the same batches in the same order, with EfficientNet-Lite0 and no
augmentation. The time of the first includes the one pass that makes the features; the second gets its images decoded
once and kept, as our batches do it. Without a folder the images are the embedded digits. The last line is the probe,
which is what `regraft run` does with cached features: its search for a penalty instead of any epochs.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.projects import prepared_images, timed
from regraft.backbones.extractor import build_extractor
from regraft.backbones.fetch import fetch
from regraft.determinism import set_up
from regraft.tuning.batches import Batches, epoch_order
from regraft.tuning.classifier import get_head, graft, set_head
from regraft.tuning.probe import fit_probe
from regraft.tuning.solvers import Features

BATCH_SIZE, RATE, SEED = 32, 1e-3, 7


def main() -> None:
    """Print both times, their ratio, the largest difference of predictions, and the time of the probe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size-px", type=int, default=64)
    parser.add_argument("--examples", type=int, default=640)
    arguments = parser.parse_args()
    set_up(SEED)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    """Make the data and the backbone in `scratch`, train both ways and print what came of it."""
    train, validation = prepared_images(arguments.folder, scratch)
    fetch("efficientnet_lite0_imagenet", scratch / "backbones", root=scratch)
    extractor = build_extractor(scratch / "backbones", image_size_px=arguments.image_size_px)
    backbone = extractor.model
    backbone.trainable = False
    rows = np.random.default_rng(SEED).permutation(len(train))[: arguments.examples]
    batches = Batches(train, rows, extractor.prepare, BATCH_SIZE, SEED)
    classes, size = len(train.class_names), backbone.output_shape[-1]
    forward = tf.function(lambda images: backbone(images, training=False), reduce_retracing=True)
    forward(tf.zeros((BATCH_SIZE, *backbone.input_shape[1:])))  # traced outside of the clock

    def extract(wanted: Batches) -> Features:
        return np.concatenate([forward(images).numpy() for images, _ in wanted.in_order()])

    kernel = np.random.default_rng(SEED).normal(0.0, 0.01, (size, classes)).astype("float32")
    inputs = keras.Input((size,))
    on_features = _compiled(
        graft(keras.Model(inputs, keras.layers.Identity()(inputs)), kernel, np.zeros_like(kernel[0]))
    )
    through_backbone = _compiled(graft(backbone, kernel, np.zeros_like(kernel[0])))

    def from_cache() -> Features:
        features = extract(batches)
        place = {row: position for position, row in enumerate(rows.tolist())}
        for epoch in range(1, arguments.epochs + 1):
            order = epoch_order(rows, BATCH_SIZE, seed=SEED, epoch=epoch)
            for start in range(0, len(order), BATCH_SIZE):
                batch = order[start : start + BATCH_SIZE]
                on_features.train_on_batch(features[[place[row] for row in batch.tolist()]], train.labels[batch])
        return features

    def from_images() -> None:
        for epoch in range(1, arguments.epochs + 1):
            for images, labels in batches.training(epoch):
                through_backbone.train_on_batch(images, labels)

    features, cached_s = timed(from_cache)
    _, through_s = timed(from_images)
    held_out = extract(Batches(validation, np.arange(len(validation)), extractor.prepare, BATCH_SIZE, SEED))
    one, two = (
        keras.ops.softmax(held_out @ head[0] + head[1]).numpy()
        for head in (get_head(on_features), get_head(through_backbone))
    )
    right = validation.labels.astype(np.int64)
    probe, probe_s = timed(
        lambda: fit_probe(features, train.labels[rows].astype(np.int64), held_out, right, classes=classes)
    )
    print(f"{len(rows)} images of {arguments.image_size_px} px, {arguments.epochs} epochs of batches of {BATCH_SIZE}")
    print(f"from cached features, made once: {cached_s:.2f} s")
    print(f"through the frozen backbone:     {through_s:.2f} s, {through_s / cached_s:.1f} times as long")
    print(f"largest difference of predicted probabilities of {len(right)} other images: {np.abs(one - two).max():.1e}")
    print(f"accuracy on them: {(one.argmax(1) == right).mean():.4f} and {(two.argmax(1) == right).mean():.4f}")
    print(f"the probe on the same features:  {probe_s:.2f} s, accuracy {probe.validation.accuracy:.4f}")


def _compiled(model: keras.Model) -> keras.Model:
    """Return `model` with its optimizer, and its step traced by a batch that leaves no trace in either."""
    model.compile(
        keras.optimizers.AdamW(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    head = get_head(model)
    model.train_on_batch(np.zeros((BATCH_SIZE, *model.input_shape[1:]), "float32"), np.zeros(BATCH_SIZE, "int64"))
    set_head(model, *head)
    for variable in model.optimizer.variables:
        if variable is not model.optimizer.learning_rate:
            variable.assign(tf.zeros_like(variable.value))
    return model


if __name__ == "__main__":
    main()
