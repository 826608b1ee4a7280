"""The network that training begins with: of the shape of a backbone, with random weights or with those fetched."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import keras_hub

from regraft.backbones import architectures, catalogue, small
from regraft.backbones.arithmetic import operations
from regraft.backbones.card import UNTRAINED, Card, read_card, weights_digest
from regraft.backbones.fetch import card_of, fetch
from regraft.backbones.presets import load_backbone, load_tokenizer, save
from regraft.errors import BackboneError
from regraft.files import replace_directory
from regraft.pretraining.seen import write_seen

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Beginning:
    """A network, what is known of it, and for texts its tokenizer; None where one has yet to be learned."""

    backbone: keras_hub.models.Backbone
    card: Card
    tokenizer: Any = None

    def store(self, backbones: Path, *, seen: Sequence[str] = ()) -> Card:
        """Make `backbones` a folder with this network alone in it, as a preset with its card; return the card.

        Args:
            backbones: What is in it is deleted.
            seen: What it was pretrained on here, see `seen.write_seen`.
        """
        card = replace(
            self.card,
            parameters=self.backbone.count_params(),
            flops=operations(self.backbone, side_px=self.card.input_size_px),
            weights_sha256=weights_digest(self.backbone),
        )
        with replace_directory(backbones) as target:
            save(self.backbone, self.tokenizer, target / card.name)
            card.write(target / card.name)
            if seen:
                write_seen(target / card.name, seen)
        return card


def fetched(name: str, *, root: Path, seed: int) -> Beginning:
    """Return the backbone called `name` as `regraft.backbones.fetch.fetch` finds it, with its weights."""
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        card = fetch(name, Path(folder) / "backbones", root=root, seed=seed)
        preset = Path(folder) / "backbones" / card.name
        tokenizer = load_tokenizer(preset) if card.kind == "text" else None
        keras.utils.clear_session(free_memory=False)
        return Beginning(load_backbone(preset), read_card(preset), tokenizer)


def shape_of(name: str, *, root: Path, seed: int) -> Beginning:
    """Return a network of the shape of `name` with the weights that `seed` gives, and no tokenizer.

    Nothing is fetched for a name in the catalogue.

    Raises:
        BackboneError: If the name is unknown.
    """
    if entry := catalogue.entries().get(name):
        keras.utils.clear_session(free_memory=False)
        backbone = architectures.build(name, seed)
        card = card_of(entry, backbone, "")
    else:
        known = fetched(name, root=root, seed=seed)
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        backbone, card = type(known.backbone).from_config(known.backbone.get_config()), known.card
    origin = f"initial weights from seed {seed}"
    card = replace(card, origin=origin, source_dataset=UNTRAINED, licence=NOT_STATED, pretraining=None)
    return Beginning(backbone, card)


def with_vocabulary(beginning: Beginning, tokenizer: Any, seed: int) -> Beginning:
    """Return a network like that of `beginning`, with weights from `seed`, for the vocabulary of `tokenizer`."""
    config = {**beginning.backbone.get_config(), "vocabulary_size": tokenizer.vocabulary_size()}
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    backbone = type(beginning.backbone).from_config(config)
    return Beginning(backbone, beginning.card, tokenizer)


def scratch(name: str, *, root: Path, seed: int) -> Beginning:
    """Return a network of the shape of `name` with the weights that `seed` gives, and for text its own tokenizer.

    Raises:
        BackboneError: If the name is unknown, or the tokenizer, which comes with the weights, cannot be had here.
    """
    beginning = shape_of(name, root=root, seed=seed)
    if beginning.card.kind != "text":
        return beginning
    tokenizer = small.tokenizer_of(beginning.backbone) or fetched(name, root=root, seed=seed).tokenizer
    return replace(beginning, tokenizer=tokenizer)


def pretrained(name: str, *, root: Path, seed: int) -> Beginning:
    """Return the backbone called `name` with the weights it has learned.

    Raises:
        BackboneError: If it has learned nothing.
    """
    beginning = fetched(name, root=root, seed=seed)
    if not beginning.card.is_pretrained:
        raise BackboneError(
            f"backbone.pretrain.start: weights, but {name} has learnt nothing yet, so there are none to go on from. "
            "Set it to nothing, or name a pretrained backbone."
        )
    return beginning
