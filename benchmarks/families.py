"""Every family of the catalogue in its true shape, from a preset folder to an exported model: what works, and how long.

python -m benchmarks.families [NAME...]

Weights are random, but for those that are at hand, and statistics of BatchNorm those of a batch; tokenizers have a
vocabulary of the true size, most of it unused. Each network is saved as KerasHub saves it, added by the code behind
`regraft backbones add` (for a network of the hub under its own name, which checks class and parameters against the
catalogue), fetched, fine-tuned for three steps of eight examples, exported, and read back. `parameters` and `GFLOPs`
are counted, and must be those of the catalogue; `difference` is the largest between an output of the model before the
export and after, relative to the largest output. One process for each network, so that memory is given back. No network
connection is used.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.backbones import catalogue

CLASSES, STEPS, BATCH, SIDE_PX = 3, 3, 8, 64
TEXTS = (
    "my card is lost", "", "where is the money", "a great film", "awful food at a very good price", "win now",
    "how much is the call today", "please help, I am not at home",
)  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What a network came to.

    Attributes:
        parameters: Counted in the network that was loaded.
        flops: Counted, of one example.
        load_s: Seconds to add, fetch and load it.
        tune_s: Seconds for the steps of fine-tuning, with their compilation.
        export_s: Seconds to export it and to read the export.
        losses: Of the batch before the steps and after.
        difference: Largest between outputs before and after the export, relative to the largest of them.
    """

    parameters: int
    flops: int
    load_s: float
    tune_s: float
    export_s: float
    losses: tuple[float, float]
    difference: float


def main() -> None:
    """Print a line of a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    if len(names) == 1:
        print(row(names[0]), flush=True)
        return
    print("| backbone | parameters | GFLOPs | load, s | 3 steps, s | export, s | difference |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names or catalogue.entries():
        command = [sys.executable, "-m", "benchmarks.families", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.strip() or f"| {name} | {done.stderr.strip().splitlines()[-1]} |", flush=True)


def row(name: str) -> str:
    """Return the line of the table for the network called `name`."""
    import keras

    from regraft.backbones.architectures import architectures

    entry = catalogue.find(name)
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        folder = Path(temporary)
        if catalogue.how_at_hand(entry) is None:
            os.environ["REGRAFT_CACHE"] = str(folder / "cache")
            keras.utils.set_random_seed(0)
            write_preset(architectures()[name].make(called=name), folder / "preset", entry.kind)
            # Files whose sha256 is known cannot be random.
            proof = prove(f"random_{name}" if entry.files else name, folder / "preset", folder)
        else:
            proof = prove(name, None, folder)
    counted = "" if proof.parameters == entry.parameters else f" (catalogue: {entry.parameters:,})"
    flops = "" if proof.flops == entry.flops else f" (catalogue: {entry.flops / 1e9:.2f})"
    return (
        f"| {name} | {proof.parameters:,}{counted} | {proof.flops / 1e9:.2f}{flops} | {proof.load_s:.1f} | "
        f"{proof.tune_s:.1f} | {proof.export_s:.1f} | {proof.difference:.1e} |"
    )


def write_preset(backbone: Any, folder: Path, kind: str) -> None:
    """Write `backbone` as KerasHub does, for texts with a tokenizer that has as many tokens as its table has rows."""
    if kind == "image":
        _set_statistics(backbone)
    backbone.save_to_preset(str(folder))
    if kind == "text":
        tokenizer_for(backbone).save_to_preset(str(folder))


def _set_statistics(backbone: Any) -> None:
    """Give every BatchNormalization the statistics of a batch: with those of no data, signals die out or explode."""
    import keras

    side = backbone.input.shape[1] or SIDE_PX
    random = np.random.default_rng(1)
    pixels = np.stack([_pixels(random, side) for _ in range(BATCH)]).astype(np.float32) / 127.5 - 1
    layers = [layer for layer in backbone._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    backbone(pixels, training=True)
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum


def tokenizer_for(backbone: Any) -> Any:
    """Return a tokenizer for BERT's likes, GPT-2 or the recurrent network; unused tokens fill its vocabulary."""
    import keras_hub

    from regraft.backbones import small
    from regraft.pretraining.vocabulary import END_OF_TEXT, RESERVED

    if (own := small.tokenizer_of(backbone)) is not None:
        return own
    rows = backbone.vocabulary_size
    letters = "abcdefghijklmnopqrstuvwxyz"
    if isinstance(backbone, keras_hub.models.GPT2Backbone):
        merges = ["Ġ t", "h e", "Ġt he", "i s"]
        pieces = [END_OF_TEXT, *letters, "Ġ", "I", ",", *(merge.replace(" ", "") for merge in merges)]
        vocabulary = {piece: number for number, piece in enumerate(_filled(pieces, rows))}
        return keras_hub.tokenizers.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)
    kind = type(backbone).__name__.removesuffix("Backbone")
    pieces = [*RESERVED, ",", *letters, *(f"##{letter}" for letter in letters)]
    return getattr(keras_hub.tokenizers, f"{kind}Tokenizer")(vocabulary=_filled(pieces, rows), lowercase=True)


def _filled(pieces: list[str], rows: int) -> list[str]:
    return pieces + [f"[unused{number}]" for number in range(rows - len(pieces))]


def prove(
    name: str, preset: Path | None, folder: Path, *, side_px: int | None = None, rate: float = 1e-4, lora: bool = False
) -> Proof:
    """Take a backbone from a preset folder through fine-tuning to an export, with the code that runs use.

    Args:
        name: What it is added as, and fetched by.
        preset: The folder to add; None fetches what is at hand.
        folder: An empty folder for what is made on the way.
        side_px: Of pictures; None for what the network was trained at.
        rate: Of learning.
        lora: Fine-tune by LoRA, else all of it.
    """
    import keras
    import tensorflow as tf

    from regraft.backbones.add import add
    from regraft.backbones.arithmetic import operations
    from regraft.backbones.extractor import build_extractor
    from regraft.backbones.fetch import fetch
    from regraft.data.targets import REGRESSION
    from regraft.registry.serving import export_saved_model, largest_difference, load_served
    from regraft.tuning.classifier import Classifier, graft
    from regraft.tuning.loop import Trainer
    from regraft.tuning.lora import enable_lora, kerashub_backbone

    started = time.monotonic()
    if preset is not None:
        add(name, preset)
    card = fetch(name, folder / "backbones", root=folder)
    keras.utils.set_random_seed(0)
    extractor = build_extractor(folder / "backbones", image_size_px=side_px)
    loaded = time.monotonic()
    random = np.random.default_rng(0)
    raw: list[Any] = list(TEXTS)
    if extractor.kind == "image":
        raw = [picture(random, extractor.image_size_px or 0) for _ in range(BATCH)]
        inputs = tf.stack([extractor.prepare(tf.constant(one)) for one in raw])
    else:
        inputs = extractor.prepare(tf.constant(raw))
    labels = tf.constant(np.arange(BATCH) % CLASSES, tf.int64)
    # Features of random weights may be of any size: the head brings logits to one at which the loss can be felt.
    features = extractor.model.predict_on_batch(inputs)
    kernel = random.normal(0, 1, (features.shape[1], CLASSES)).astype(np.float32)
    kernel /= (features @ kernel).std(axis=0)
    bias = -(features @ kernel).mean(axis=0)
    model = graft(extractor.model, kernel, bias)
    flops = operations(kerashub_backbone(model), side_px=card.input_size_px)
    counted = time.monotonic()
    if lora:
        enable_lora(model, 4)
    trainer = Trainer(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    before = float(loss(labels, trainer.logits([(inputs, labels)])))
    for _ in range(STEPS):
        trainer.step(inputs, labels, rate)
    after = float(loss(labels, trainer.logits([(inputs, labels)])))
    tuned = time.monotonic()
    (folder / "export").mkdir()
    # As of real values: they are the network's outputs as they are, where probabilities of random weights all may be 1.
    classifier = Classifier(extractor, model, tuple("abc"), kernel, bias, "lp_ft", REGRESSION)
    export_saved_model(classifier, folder / "export", example=raw[0])
    served = load_served(folder / "export")
    exported = time.monotonic()
    return Proof(
        parameters=card.parameters,
        flops=flops,
        load_s=loaded - started,
        tune_s=tuned - counted,
        export_s=exported - tuned,
        losses=(before, after),
        difference=largest_difference(classifier, served, raw) / float(np.abs(served.answers(raw)).max()),
    )


def picture(random: np.random.Generator, side: int) -> bytes:
    """Return a PNG of `_pixels`."""
    buffer = io.BytesIO()
    Image.fromarray(_pixels(random, side)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(random: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Return noise on some colour: uint8 (side, side, 3)."""
    return random.integers(0, 128, (side, side, 3), np.uint8) + random.integers(0, 128, 3, np.uint8)


if __name__ == "__main__":
    main()
