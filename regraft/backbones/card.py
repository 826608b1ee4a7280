"""The card that lies beside a stored backbone: what it is, how its input is prepared, where its weights came from."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from regraft.backbones.weights import CARD
from regraft.errors import BackboneError
from regraft.files import read_json, write_json

UNTRAINED = "nothing"
POOLINGS = ("average", "last", "class")


@dataclass(frozen=True)
class Card:
    """What `regraft.json` says.

    Attributes:
        name: The catalogue's name, or the folder's for a preset of one's own.
        input_size_px: Side of the images it was trained on; None for text.
        is_fixed_size: Whether it takes images of no other size, as a transformer with a table of positions.
        input_tokens: The longest text it takes, in tokens; None for images.
        offset: `(pixel - offset) / divisor`, one number a channel; empty for text. So `divisor`.
        pooling: How positions become one vector: `average` (over real tokens only, for text), `last` (the last real
            token, of a text that is read from left to right), or `class` (the first token, of a picture in patches).
        weights_sha256: Of the numbers (see `weights_digest`), not of the file around them; caches are keyed by it.
        origin: Where the weights came from, without any path of this machine.
        source_dataset: What it was pretrained on; `UNTRAINED` if on nothing.
        pretraining: How, if that was done by this program: source, method, steps, held-out loss; else None.
        flops: Operations of one example, see `arithmetic.operations`; 0 if they were not counted.
    """

    name: str
    kind: Literal["image", "text"]
    parameters: int
    feature_size: int
    pooling: str
    weights_sha256: str
    source_dataset: str
    licence: str
    origin: str
    input_size_px: int | None = None
    input_tokens: int | None = None
    offset: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()
    pretraining: dict[str, Any] | None = None
    is_fixed_size: bool = False
    flops: int = 0

    @property
    def is_pretrained(self) -> bool:
        """Whether the weights have learnt anything; else they are random."""
        return self.source_dataset != UNTRAINED

    def write(self, folder: Path) -> None:
        """Write the card into the preset `folder`."""
        write_json(folder / CARD, dataclasses.asdict(self))


def read_card(folder: Path) -> Card:
    """Read the card of the preset `folder`.

    Raises:
        BackboneError: If there is none, or it is of another version of this program.
    """
    try:
        values = read_json(folder / CARD)
        card = Card(**{**values, "offset": tuple(values["offset"]), "divisor": tuple(values["divisor"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackboneError(
            f"{folder / CARD} cannot be read ({error!r}). Run the backbone stage again to fetch the backbone anew."
        ) from None
    if card.pooling not in POOLINGS:
        raise BackboneError(f"{folder / CARD}: pooling is {card.pooling!r}, and must be one of {', '.join(POOLINGS)}.")
    return card


def stored_backbone(backbones: Path) -> Path:
    """Return the one preset folder in `backbones`.

    Raises:
        BackboneError: If there is none, or more than one.
    """
    found = sorted(path.parent for path in backbones.glob(f"*/{CARD}"))
    if len(found) != 1:
        what = ", ".join(path.name for path in found) or "nothing"
        raise BackboneError(f"{backbones} must hold one backbone, found {what}. Run the backbone stage again.")
    return found[0]


def weights_digest(backbone: keras.Model) -> str:
    """Return the sha256 of the weights of `backbone`: shape, type and bytes of each, in the order of the network.

    Taken from a loaded network, it also proves that loading left no weight as it was initialised.
    """
    digest = hashlib.sha256()
    for variable in backbone.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.shape} {value.dtype.str}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
