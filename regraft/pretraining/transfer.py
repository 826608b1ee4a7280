"""The project's own examples as the judge of a pretraining: how well a probe on the network's features answers them."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from regraft.backbones import catalogue
from regraft.backbones.extractor import (
    fixed_size,
    image_model,
    image_preparation,
    pair_model,
    pair_preparation,
    text_model,
    text_preparation,
)
from regraft.backbones.folding import folded_normalization
from regraft.backbones.inputs import image_size
from regraft.backbones.presets import DEFAULT_SIZE_PX, MOST_TOKENS
from regraft.backbones.spectrogram import as_view, sound_preparation
from regraft.data.records import Split, open_split
from regraft.data.targets import REGRESSION
from regraft.errors import BackboneError, DataError
from regraft.files import read_json
from regraft.pretraining.beginning import Beginning
from regraft.pretraining.sample import ABOUT
from regraft.settings import EmbedSettings
from regraft.tuning.batches import Batches
from regraft.tuning.devices import Devices
from regraft.tuning.objective import OBJECTIVES
from regraft.tuning.probe import cross_validate
from regraft.tuning.scores import Score
from regraft.tuning.target_scale import TargetScale

log = logging.getLogger(__name__)

LOOKS = 16  # at most
PATIENCE_LOOKS = 4
BATCH_SIZE = 32

Looked = dict[str, Any]


class TransferLooks:
    """Looks at a network in pretraining through a cross-validated probe on the project's own examples.

    Pretraining stops when `PATIENCE_LOOKS` looks in a row have not gained more than the standard error of the gain (of
    the probe's refined log loss, over the same examples) on the last that did. A sample that few looks can tell apart
    stops it early; the best look of all is kept.

    Args:
        folder: See `ranking.sample.write_sample`.
        beginning: The network, whose weights are looked at as they are at each look. Its card has the size of pictures
            or the number of tokens that it will have when it is pretrained.
        devices: What trains.

    Raises:
        BackboneError: If the network takes another kind of data than the project has.
        DataError: If the project has too few examples to hold some out.
    """

    def __init__(self, folder: Path, beginning: Beginning, devices: Devices) -> None:
        self._split = open_split(folder, "train")
        require_kind(beginning, self._split)
        self.objective = OBJECTIVES[self._split.task]
        self._devices = devices
        self._labels: Any = self._split.labels
        if self._split.task == REGRESSION:
            self._labels = TargetScale.of(self._labels).apply(self._labels)
        self._about = read_json(folder / ABOUT)
        model, prepare = _model_and_preparation(beginning, self._split, self._about)
        self._batches = Batches(self._split, np.arange(len(self._split)), prepare, BATCH_SIZE, seed=0)

        def features_of(inputs: Any) -> tf.Tensor:
            with folded_normalization(model):
                return model(inputs, training=False)

        shapes = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), model.input)
        self._features_of = tf.function(features_of, input_signature=[shapes], autograph=False)
        self.before = self.take()

    @property
    def identity(self) -> str:
        """What decides what is seen at a look, apart from the network."""
        content = [self._split.ids, self._split.labels.tolist(), self._about]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def examples(self) -> int:
        """How many examples of the project are looked at."""
        return len(self._split)

    def take(self) -> Looked:
        """Return how well the features of the network as it is now suit the project, and how long that took here.

        "losses" are the refined log losses of held-out examples, by fold.
        """
        started = time.monotonic()
        features = np.concatenate([self._features_of(inputs).numpy() for inputs, _ in self._batches.in_order()])
        try:
            score = cross_validate(
                features,
                self._labels,
                classes=len(self._split.class_names),
                objective=self.objective,
                groups=self._split.groups,
            )
        except ValueError as error:
            raise DataError(f"backbone.pretrain.stop: transfer cannot be judged: {error}. Set it to never.") from None
        # All workers must come to the same decision, so they take the chief's numbers.
        said = self._devices.from_chief(np.array([score.log_loss, score.accuracy, *score.refined_log_losses]))
        log.info("held-out %s of the probe on the project's own examples: %.4f", self.objective.loss_name, said[0])
        return {
            "log_loss": float(said[0]),
            "accuracy": float(said[1]),
            "losses": said[2:].tolist(),
            "seconds": time.monotonic() - started,
        }

    def best(self, taken: list[Looked]) -> int:
        """Return the look with the lowest refined log loss; 0 is the network as it began."""
        return int(np.argmin([score.refined_log_loss for score in _scores([self.before, *taken])]))

    def why_stop(self, taken: list[Looked]) -> str | None:
        """Return why it is enough, or None."""
        gained = last_gains([self.before, *taken])[-1]
        if len(taken) - gained < PATIENCE_LOOKS:
            return None
        since = f"look {gained}" if gained else "the network as it began"
        return f"{PATIENCE_LOOKS} looks in a row gained no more than a standard error on {since}"

    def rows(self, taken: list[Looked]) -> list[dict[str, Any]]:
        """Return what a report says of the network as it began and of each look, ready for JSON.

        Of each look the gain too: on the last one before it that gained clearly, as `why_stop` counts.
        """
        looks = [self.before, *taken]
        rows: list[dict[str, Any]] = [{"loss": look["log_loss"], "measure": look["accuracy"]} for look in looks]
        scores = _scores(looks)
        for row, score, against in zip(rows[1:], scores[1:], last_gains(looks), strict=False):
            differences = scores[against].refined_log_losses - score.refined_log_losses
            row["gain"] = float(differences.mean())
            row["gain_standard_error"] = float(differences.std() / np.sqrt(len(differences)))
        return rows


def last_gains(looks: Sequence[Looked]) -> list[int]:
    """Return for each of `looks` the place of the last one up to it that gained clearly; the first one counts as one.

    To gain clearly is to be better than the one that did last, by more than one standard error of the mean difference.
    """
    scores = _scores(looks)
    last = [0]
    for number, score in enumerate(scores[1:], 1):
        last.append(number if scores[last[-1]].is_clearly_worse_than(score) else last[-1])
    return last


def require_kind(beginning: Beginning, split: Split) -> None:
    """Raise BackboneError unless the network takes the kind of data that `split` has."""
    if catalogue.backbone_kind(split.kind) != beginning.card.kind:
        raise BackboneError(
            f"backbone.pretrain.stop: transfer probes {beginning.card.name} on the project's own examples, which are "
            f"{split.kind} data, and it takes {beginning.card.kind} data. Name a network that takes them, or set it to "
            "never."
        )


def _scores(looks: Sequence[Looked]) -> list[Score]:
    losses = [np.array(look["losses"]) for look in looks]
    return [
        Score(look["log_loss"], float(own.mean()), look["accuracy"], own)
        for look, own in zip(looks, losses, strict=True)
    ]


def _model_and_preparation(beginning: Beginning, split: Split, about: dict[str, Any]) -> tuple[keras.Model, Any]:
    """Return what `extractor.build_extractor` makes of a stored network, for one that is in training."""
    backbone, card = beginning.backbone, beginning.card
    if split.kind == "text":
        longest = min(about["max_tokens"], card.input_tokens or MOST_TOKENS)
        prepare = text_preparation(beginning.tokenizer, longest, card.pooling)
        if about["pair"]:
            return pair_model(backbone, card.pooling), pair_preparation(prepare)
        return text_model(backbone, card.pooling), prepare
    heard = as_view(about["view"])
    embed = EmbedSettings(image_size_px=about["image_size_px"])
    side = fixed_size(card, embed.image_size_px) or image_size(embed, about, card, heard) or DEFAULT_SIZE_PX
    if heard is not None:
        return image_model(backbone, card, side, windows=heard.windows), sound_preparation(heard, side)
    return image_model(backbone, card, side), image_preparation(side)
