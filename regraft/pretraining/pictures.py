"""Lessons on pictures: what they show (supervised), or which way up they are (rotation)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.backbones.card import Card
from regraft.backbones.extractor import image_model, image_preparation
from regraft.backbones.presets import DEFAULT_SIZE_PX
from regraft.backbones.weights import sha256
from regraft.data import fetch
from regraft.data.against import read_others
from regraft.data.examples import collect, tensorflow_reads
from regraft.data.records import open_split, write_prepared
from regraft.data.sources import Source as DataSource
from regraft.data.splits import assign, place
from regraft.data.targets import MULTILABEL, REGRESSION
from regraft.errors import BackboneError, DataError
from regraft.pretraining.beginning import Beginning
from regraft.pretraining.lesson import Lesson
from regraft.settings import PretrainSettings
from regraft.tuning.augment import augmentation
from regraft.tuning.batches import Batches, Source
from regraft.tuning.classifier import graft
from regraft.tuning.loop import Trainer
from regraft.tuning.objective import CLASSES, OBJECTIVES, Objective
from regraft.tuning.scores import Score

HELD_OUT = 0.1
TURNS = 4
STRIDE_PX = 32


def supervised(
    source: DataSource, beginning: Beginning, settings: PretrainSettings, *, seed: int, scratch: Path
) -> Lesson:
    """Return the lesson of labelled pictures: which class each is of, or which labels hold.

    The source's own validation split judges, else a tenth of its train. Its test split, if it has one, is left alone.

    Args:
        source: Of images.
        beginning: A network that takes pictures.
        settings: As a person set them.
        seed: Of order and augmentation.
        scratch: A folder for copies of the source.

    Raises:
        DataError: If the source holds no labelled images, or has one class alone.
        BackboneError: If the size of pictures does not fit the network.
    """
    raw = _copied(source, beginning.card, scratch)
    encoded, prepared = scratch / "encoded", scratch / "prepared"
    encoded.mkdir()
    collection = collect("image", raw, encoded)
    if collection.task == REGRESSION:
        raise DataError(
            f"backbone.pretrain.source: {source.text!r} has real values as targets, and method supervised learns from "
            "classes or labels. Set backbone.pretrain.method: rotation, which needs none."
        )
    splits = {name: list(collection.splits.get(name, ())) for name in ("train", "validation")}
    names = list(collection.target_names) or sorted({example.label for held in splits.values() for example in held})
    if collection.task != MULTILABEL and len({example.label for example in splits["train"]}) < 2:
        raise DataError(
            f"backbone.pretrain.source: {source.text!r} has one class alone ({', '.join(names) or 'none'}): there is "
            "nothing to tell apart. Add classes, or set backbone.pretrain.method: rotation, which needs none."
        )
    if not splits["validation"]:
        chosen = assign(splits["train"], {"validation": HELD_OUT}, ("validation",))
        everything = splits["train"]
        splits = {name: [example for example in everything if chosen[example.id] == name] for name in splits}
    write_prepared(prepared, "image", names, splits, task=collection.task)
    learned, judged = open_split(prepared, "train"), open_split(prepared, "validation")
    return _lesson(
        learned, judged, beginning, settings,
        seed=seed, aim=OBJECTIVES[learned.task], outputs=len(names), answers=judged.labels, seen=learned.ids,
        facts={"classes": len(names), "examples": len(learned)},
    )  # fmt: skip


def rotation(
    source: DataSource, beginning: Beginning, settings: PretrainSettings, *, seed: int, scratch: Path
) -> Lesson:
    """Return the lesson of unlabelled pictures: by how many quarters each was turned.

    Source: Gidaris, Singh & Komodakis, 2018 (arXiv:1803.07728).

    Args:
        source: Of images, with or without labels, which are not looked at.
        beginning: See `supervised`; so for the others.
        settings: See there.
        seed: Also of the turns.
        scratch: See there.

    Raises:
        DataError: If the source holds fewer than two images.
        BackboneError: See `supervised`.
    """
    raw = _copied(source, beginning.card, scratch)
    found = [Path(str(content)) for content in read_others("image", raw, None).contents]
    named = {sha256(path): path for path in found}  # copies count once
    readable = {name: named[name] for name in sorted(named, key=place) if tensorflow_reads(named[name].read_bytes())}
    names = list(readable)
    held_out = max(1, sum(place(name) < HELD_OUT for name in names))
    if len(names) <= held_out:
        raise DataError(
            f"backbone.pretrain.source: {source.text!r} holds {len(names)} different image(s) that can be read; "
            "to learn from some and be judged by others takes two."
        )
    learned = _Files([readable[name] for name in names[held_out:]])
    judged = _Files([readable[name] for name in names[:held_out]])
    return _lesson(
        learned, judged, beginning, settings,
        seed=seed, aim=CLASSES, outputs=TURNS, answers=np.arange(held_out) % TURNS, seen=names[held_out:],
        facts={"examples": len(learned.labels)}, turns=True,
    )  # fmt: skip


def _copied(source: DataSource, card: Card, scratch: Path) -> Path:
    """Return a folder in `scratch` with the images of `source`, as they came.

    Raises:
        DataError: If it holds none.
    """
    if fetch.kind_of(source) != "image":
        raise DataError(f"backbone.pretrain.source: {source.text!r} holds no images, which {card.name} takes.")
    raw = scratch / "source"
    raw.mkdir(parents=True)
    fetch.fetch(source, raw)
    return raw


def _lesson(
    learned: Source,
    judged: Source,
    beginning: Beginning,
    settings: PretrainSettings,
    *,
    seed: int,
    aim: Objective,
    outputs: int,
    answers: NDArray[Any],
    seen: Sequence[str],
    facts: dict[str, Any],
    turns: bool = False,
) -> Lesson:
    """Return the lesson of pictures whose answers are their labels, or, with `turns`, how they are turned.

    `answers` are those of `judged`.
    """
    backbone, card = beginning.backbone, beginning.card
    small, full = sizes = _sizes(backbone, card, settings)
    features = image_model(backbone, card, full if small == full else None)
    kernel = np.zeros((features.output_shape[-1], outputs), np.float32)
    given = {
        size: Batches(
            learned, np.arange(len(learned.labels)), image_preparation(size), settings.batch_size, seed,
            augment=augmentation(flip=True), vary_batch=_turn if turns else None,
        )
        for size in set(sizes)
    }  # fmt: skip
    shown = Batches(judged, np.arange(len(judged.labels)), image_preparation(full), settings.batch_size, seed)

    def judge(trainer: Trainer) -> Score:
        batches = _turned_by(answers, shown) if turns else shown.in_order()
        return aim.score(trainer.logits(batches), answers)

    return Lesson(
        model=graft(features, kernel, kernel[0]),
        aim=aim,
        steps_per_epoch=given[full].steps_per_epoch,
        sizes=sizes,
        batches=lambda size, epoch, taken: given[size].training(epoch, taken),
        judge=judge,
        unit="images",
        held_out=len(answers),
        seen=seen,
        facts=facts,
    )


@dataclass(frozen=True)
class _Files:
    """Pictures in files, as a source for batches; nothing is said of what they show."""

    files: Sequence[Path]
    kind: str = "image"

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.zeros(len(self.files), np.int64)

    def inputs(self, indices: Sequence[int]) -> list[bytes]:
        return [self.files[row].read_bytes() for row in indices]


def _turn(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    turns = tf.random.stateless_uniform((tf.shape(images)[0],), seed, 0, TURNS, tf.int64)
    return _turned(images, turns), turns


def _turned_by(turns: NDArray[Any], batches: Batches) -> Iterator[tuple[Any, Any]]:
    for number, (images, labels) in enumerate(batches.in_order()):
        first = number * batches.batch_size
        yield _turned(images, tf.constant(turns[first : first + len(labels)])), labels


def _turned(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Return square `images` (batch, side, side, 3), each turned by as many quarters as `turns` (batch,) says."""
    ways = tf.stack([tf.image.rot90(images, quarters) for quarters in range(TURNS)], axis=1)
    return tf.gather(ways, turns, axis=1, batch_dims=1)


def _sizes(backbone: keras_hub.models.Backbone, card: Card, settings: PretrainSettings) -> tuple[int, int]:
    """Return the sides of pictures in the first and in the second half of the training."""
    fixed = backbone.input.shape[1]
    full = card.input_size_px or DEFAULT_SIZE_PX if settings.image_size_px == "auto" else settings.image_size_px
    if fixed is not None and full != fixed:
        raise BackboneError(
            f"backbone.pretrain.image_size_px: {card.name} takes pictures of {fixed} px alone, got {full}."
        )
    if fixed is not None or not settings.progressive:
        return full, full
    return min(full, max(STRIDE_PX, STRIDE_PX * round(2 * full / 3 / STRIDE_PX))), full
