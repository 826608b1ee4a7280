"""Trains small networks on one and on two logical CPU devices and prints as JSON how far apart they end.

python on_two_devices.py few|many

A process of its own: a CPU can only be divided before TensorFlow's first operation.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from regraft.tuning.devices import ONE_DEVICE, Devices
from regraft.tuning.loop import Checkpoint, Plan, Trainer, train
from regraft.tuning.objective import CLASSES, LIKENESS, OBJECTIVES
from regraft.tuning.scores import score

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(0.0, 3.0, (64, 8, 8, 3)).astype("float32")
LABELS = {
    "classification": np.arange(64) % 2,
    "likeness": np.arange(64) % 2,
    "multilabel": (RANDOM.random((64, 2)) > 0.5).astype("float32"),
    "regression": RANDOM.normal(0.0, 5.0, (64, 2)).astype("float32"),
}


def network(devices, *, dropout=0.0):
    """A head of two outputs on a model that stands for a backbone."""
    keras.utils.set_random_seed(4)
    with devices.scope():
        inside = keras.Input((8, 8, 3))
        hidden = layers.BatchNormalization()(layers.Conv2D(4, 3)(inside))
        backbone = keras.Model(inside, layers.Dropout(dropout)(layers.ReLU()(hidden)))
        images = keras.Input((8, 8, 3))
        features = layers.GlobalAveragePooling2D()(backbone(images))
        return keras.Model(images, layers.Dense(2, name="head", dtype="float32")(features))


def outcome(devices, name="classification", *, batch_size=9, **options):
    """Return losses of five steps, weights and their averages after them, and logits, as one array."""
    objective = LIKENESS if name == "likeness" else OBJECTIVES[name]
    trainer = Trainer(network(devices), objective, devices=devices, **options)
    trainer.start()
    rows = [slice(start * batch_size, (start + 1) * batch_size) for start in range(5)]
    losses = [trainer.step(IMAGES[part], LABELS[name][part], 0.01) for part in rows]
    logits = trainer.logits([(IMAGES[:5], None), (IMAGES[5:6], None)])
    parts = [losses, *trainer.model.get_weights(), *trainer.averages(), logits]
    return np.concatenate([np.ravel(part) for part in parts])


def continued_to_the_same_bytes(devices):
    """Return whether a run killed after its fifth step ends as one that was not."""

    def run(file, killed_after=None):
        trainer = Trainer(network(devices, dropout=0.4), CLASSES, devices=devices)
        taken: list[float] = []

        def kill(examples, loss):
            if len(taken) == killed_after:
                raise KeyboardInterrupt
            taken.append(loss)

        def batches(epoch, taken=0):
            order = np.random.default_rng(epoch).permutation(64)[16 * taken :]
            return tf.data.Dataset.from_tensor_slices((IMAGES[order], LABELS["classification"][order])).batch(16)

        train(
            trainer,
            Plan(epochs=2, steps_per_epoch=4, peak_rate=0.01, warmup_steps=2, patience_epochs=9),
            batches,
            lambda: score(trainer.logits([(IMAGES, None)]), LABELS["classification"]),
            checkpoint=Checkpoint(file, "a run", interval_s=0.0),
            on_batch=kill,
        )
        return b"".join(array.tobytes() for array in trainer.model.get_weights())

    with tempfile.TemporaryDirectory() as folder:
        whole = run(Path(folder, "whole.npz"))
        try:
            run(Path(folder, "half.npz"), killed_after=5)
        except KeyboardInterrupt:
            return run(Path(folder, "half.npz")) == whole
    return False


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two = Devices(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    rates = np.array([0.3, 0.3, 0.6, 1.0], np.float32)
    few: dict[str, Any] = {
        "classes, rates by layer, slices, clipped": {"multipliers": rates, "accumulate": 2, "clip_norm": 0.1},
        "likeness": {"name": "likeness"},
    }
    many: dict[str, Any] = {
        "classes": {},
        "multilabel": {"name": "multilabel"},
        "regression": {"name": "regression"},
        "one row": {"batch_size": 1},
        "float16": {},
    }
    compared = few if sys.argv[1] == "few" else many
    pair = dict.fromkeys(compared, (ONE_DEVICE, two))
    pair["float16"] = (Devices(None, "float16"), Devices(two.strategy, "float16"))
    alone = {name: outcome(pair[name][0], **{**options, "accumulate": 1}) for name, options in compared.items()}
    apart = {
        name: float(np.abs(outcome(pair[name][1], **options) - alone[name]).max()) for name, options in compared.items()
    }
    continued = continued_to_the_same_bytes(two) if compared is few else None
    json.dump({"apart": apart, "continued": continued, "replicas": two.replicas}, sys.stdout)


if __name__ == "__main__":
    main()
