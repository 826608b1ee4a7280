"""Whether pretraining pays: a small network pretrained here, against the same network from nothing.

python -m benchmarks.pretraining pictures SOURCE TARGET [--per-class 10] [--seeds 5] [--method rotation] [--epochs 30]
python -m benchmarks.pretraining texts SOURCE TARGET [--per-class 16] [--seeds 5] [--epochs 10]
python -m benchmarks.pretraining stop SOURCE TARGET [--epochs 30]
python -m benchmarks.pretraining speed SOURCE TARGET

`pictures`: cnn_small is pretrained once on SOURCE (folder:DIR), then fine-tuned on a few examples a class of the folder
TARGET (train/ and test/ with class folders), another draw for each seed; and so is cnn_small as it begins from nothing.
`texts`: the same with a BERT of two layers of 128 on SOURCE (text:DIR) and the folder TARGET (train.csv, test.csv);
from nothing means random weights with the same tokenizer. Both print the accuracy on the whole test split, mean over
classes, and the mean difference of pairs with its 95% interval (Student's t). `stop`: cnn_small is pretrained on SOURCE
for the folder TARGET with backbone.pretrain.stop: never and with transfer; steps, seconds, the share of the looks, and
how often a probe on the features of each is right on the test split of TARGET. `speed`: steps a second of masked
language modelling on SOURCE by our loop, beside a bare loop of Keras over the same model and the same batches.
"""

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from scipy import stats

from benchmarks.projects import timed
from benchmarks.subsample import subsample_folder, subsample_table
from regraft.data.records import open_split
from regraft.determinism import set_up
from regraft.files import read_json
from regraft.paths import Paths
from regraft.pretraining import texts
from regraft.pretraining.beginning import shape_of, with_vocabulary
from regraft.pretraining.source import parse_source, read_paragraphs
from regraft.pretraining.vocabulary import RESERVED, learn_tokenizer
from regraft.settings import (
    BackboneSettings,
    DownloadSettings,
    EmbedSettings,
    FinetuneSettings,
    PreprocessSettings,
    PretrainSettings,
)
from regraft.tuning.batches import Batches
from regraft.tuning.classifier import load_classifier
from regraft.tuning.loop import Trainer
from regraft.tuning.probe import fit_probe
from tasks import backbone, choose, download, embed, finetune, preprocess

SEED = 7
TIMED_STEPS = 40


def main() -> None:
    """Print the comparison that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "texts", "stop", "speed"))
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--vocabulary-size", type=int, default=4096)
    parser.add_argument("--all-sizes-full", action="store_true", help="not progressive")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = PretrainSettings.model_validate(
        {
            "source": arguments.source,
            "method": arguments.method,
            "epochs": arguments.epochs or "auto",
            "learning_rate": arguments.learning_rate or "auto",
            "vocabulary_size": arguments.vocabulary_size,
            "progressive": not arguments.all_sizes_full,
        }
    )
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        root = Path(folder)
        name = "cnn_small" if arguments.what in ("pictures", "stop") else f"preset:{small_bert(root / 'bert_small')}"
        if arguments.what == "speed":
            speed(name, settings, root)
        elif arguments.what == "stop":
            stop(name, settings, f"folder:{arguments.target.resolve()}", root)
        else:
            compare(name, settings, arguments, root)


def compare(name: str, settings: PretrainSettings, arguments: argparse.Namespace, root: Path) -> None:
    """Pretrain once, then fine-tune pretrained and random weights on a draw of examples for each seed."""
    first, learner = Paths(root / "pretrained"), BackboneSettings(name=name, mode="pretrain", pretrain=settings)
    choose.run(learner, EmbedSettings(), SEED, first)
    _, seconds = timed(lambda: backbone.run(learner, SEED, first))
    facts = read_json(first.reports / "pretraining.json")
    loss, measure = facts["held_out_loss"], facts["held_out_measure"]
    print(
        f"pretrained by {facts['method']}, {facts['steps']} steps, {seconds:.0f} s: held-out {facts['loss_name']} "
        f"{loss['before']:.3f} before, {loss['after']:.3f} after; {facts['measure_name']} {measure['before']:.3f}, "
        f"{measure['after']:.3f}",
        flush=True,
    )
    preset = f"preset:{root / 'preset'}"
    shutil.copytree(next(first.backbones.iterdir()), root / "preset")
    scores = []
    for seed in range(arguments.seeds):
        draw = root / f"draw{seed}"
        is_table = (arguments.target / "train.csv").is_file()
        sample = subsample_table if is_table else subsample_folder
        sample(arguments.target, draw, arguments.per_class, seed=seed)
        source = f"{'csv' if is_table else 'folder'}:{draw}"
        pair = [
            transferred(BackboneSettings(name=preset, mode=mode), source, seed, Paths(root / f"{mode}{seed}"))
            for mode in ("fetch", "scratch")
        ]
        scores.append(pair)
        print(f"seed {seed}: pretrained {pair[0]:.4f}, from nothing {pair[1]:.4f}", flush=True)
    gains = np.array(scores)[:, 0] - np.array(scores)[:, 1]
    means = np.mean(scores, axis=0)
    print(f"mean of {len(gains)}: pretrained {means[0]:.4f}, from nothing {means[1]:.4f}, gain {gains.mean():.4f}")
    if len(gains) > 1:
        half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
        print(f"95% interval of the gain: {gains.mean() - half:.4f} to {gains.mean() + half:.4f}")


def stop(name: str, settings: PretrainSettings, target: str, root: Path) -> None:
    """Pretrain for the target `target` in both ways and print what each came to."""
    for way in ("never", "transfer"):
        paths = Paths(root / way)
        learner = BackboneSettings(name=name, mode="pretrain", pretrain=settings.model_copy(update={"stop": way}))
        prepare(target, paths)
        choose.run(learner, EmbedSettings(), SEED, paths)
        began, began_here = time.monotonic(), time.process_time()
        backbone.run(learner, SEED, paths)
        seconds, of_processors = time.monotonic() - began, time.process_time() - began_here
        embed.run(EmbedSettings(), paths)
        splits = {split: open_split(paths.prepared, split) for split in ("train", "validation", "test")}
        features = {split: np.load(paths.features / f"{split}.npy") for split in splits}
        labels = {split: held.labels.astype(np.int64) for split, held in splits.items()}
        probe = fit_probe(
            features["train"], labels["train"], features["validation"], labels["validation"],
            classes=len(splits["train"].class_names), groups=splits["train"].groups,
        )  # fmt: skip
        right = float((probe.logits(features["test"]).argmax(axis=1) == labels["test"]).mean())
        facts, times = (read_json(paths.reports / f"{report}.json") for report in ("pretraining", "pretraining_time"))
        print(
            f"{way}: {facts['steps']} steps, {seconds:.0f} s ({of_processors:.0f} s of processors), looks "
            f"{times.get('looks_share', 0.0):.1%} of the time, right on test {right:.4f}; {facts.get('stopped', '')}",
            flush=True,
        )
        for row in facts.get("looks", ()):
            print(row, flush=True)


def prepare(source: str, paths: Paths) -> None:
    """Run the stages up to prepared data."""
    download.run(DownloadSettings(source=source), paths)
    preprocess.run(PreprocessSettings(min_examples_per_class=3), paths)


def transferred(settings: BackboneSettings, source: str, seed: int, paths: Paths) -> float:
    """Run the stages up to fine-tuning; return the accuracy on the test split, averaged over classes."""
    prepare(source, paths)
    choose.run(settings, EmbedSettings(), seed, paths)
    backbone.run(settings, seed, paths)
    embed.run(EmbedSettings(), paths)
    finetune.run(FinetuneSettings(), seed, paths)
    classifier = load_classifier(paths.model, paths.backbones)
    test = open_split(paths.prepared, "test")
    batches = Batches(test, np.arange(len(test)), classifier.extractor.prepare, 32, seed)
    forward = tf.function(lambda inputs: classifier.model(inputs, training=False), reduce_retracing=True)
    answers = np.concatenate([forward(inputs).numpy() for inputs, _ in batches.in_order()]).argmax(axis=1)
    right = answers == test.labels
    return float(np.mean([right[test.labels == label].mean() for label in np.unique(test.labels)]))


def speed(name: str, settings: PretrainSettings, root: Path) -> None:
    """Print how many steps a second our loop and a bare one take; the best of three rounds of each."""
    set_up(SEED)
    paragraphs = read_paragraphs(parse_source(str(settings.source), root))
    beginning = shape_of(name, root=root, seed=SEED)
    tokenizer = learn_tokenizer(beginning.backbone, paragraphs, settings.vocabulary_size)
    beginning = with_vocabulary(beginning, tokenizer, SEED)
    lesson = texts.masked(paragraphs, beginning, settings, seed=SEED)
    trainer = Trainer(lesson.model, lesson.aim, everything_learns=True)
    optimizer = keras.optimizers.AdamW(1e-4, global_clipnorm=1.0)
    optimizer.build(lesson.model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def bare(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(lesson.model(inputs, training=True)[:, 0])
        optimizer.apply(
            tape.gradient(loss, [weight.value for weight in lesson.model.trainable_variables]),
            lesson.model.trainable_variables,
        )
        return loss

    def rate(step: Callable[[dict[str, tf.Tensor], tf.Tensor], object]) -> float:
        started = time.monotonic()
        for number, (inputs, labels) in enumerate(lesson.batches(lesson.sizes[1], 1, 0), 1):
            step(inputs, labels)
            if number == TIMED_STEPS:
                break
        return number / (time.monotonic() - started)

    ways: dict[str, Callable[[dict[str, tf.Tensor], tf.Tensor], object]] = {
        "our loop": lambda inputs, labels: trainer.step(inputs, labels, 1e-4),
        "bare loop": lambda inputs, _: bare(inputs).numpy(),
    }
    best = {name: max(rate(way) for _ in range(4)) for name, way in ways.items()}  # the first round compiles
    tokens = settings.batch_size * lesson.sizes[1]
    for way, steps in best.items():
        print(f"{way}: {steps:.2f} steps/s, {steps * tokens:.0f} tokens/s")
    print(f"ours takes {best['bare loop'] / best['our loop']:.2f} times as long")


def small_bert(folder: Path) -> Path:
    """Write a random BERT of two layers of 128, with a vocabulary of nothing but special tokens; return its folder."""
    network = keras_hub.models.BertBackbone(
        vocabulary_size=len(RESERVED),
        num_layers=2,
        num_heads=2,
        hidden_dim=128,
        intermediate_dim=512,
        max_sequence_length=128,
        dropout=0.0,  # so small a network does not learn the text by heart
        name=folder.name,
    )
    network.save_to_preset(str(folder))
    keras_hub.tokenizers.BertTokenizer(vocabulary=RESERVED, lowercase=True).save_to_preset(str(folder))
    return folder


if __name__ == "__main__":
    main()
