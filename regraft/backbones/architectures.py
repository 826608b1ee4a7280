"""Networks by the names of the catalogue, of the true shape and with random weights."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import keras_hub
from ruamel.yaml import YAML

from regraft.backbones import small

ARCHITECTURES = Path(__file__).with_name("architectures.yaml")
OWN_CLASSES = {"SmallCNN": small.SmallCNN, "SmallRNN": small.SmallRNN}


@dataclass(frozen=True)
class Architecture:
    """The shape of a network: the name of its class, of KerasHub or of small.py, and what it is made with."""

    class_name: str
    config: dict[str, Any]

    def make(self, *, called: str) -> keras_hub.models.Backbone:
        """Return a network of this shape, with weights from the generator of the process."""
        made_by = OWN_CLASSES.get(self.class_name) or getattr(keras_hub.models, self.class_name)
        return made_by(**self.config, name=called)


@cache
def architectures() -> dict[str, Architecture]:
    """Return the shape of every network in the catalogue by name."""
    rows: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(ARCHITECTURES.read_text("utf-8"))
    return {name: Architecture(row["class"], row["config"]) for name, row in rows.items()}


def build(name: str, seed: int) -> keras_hub.models.Backbone:
    """Return a network of the shape that the catalogue's `name` has, with the initial weights that `seed` gives.

    Every initialiser draws its seed from the generator of the process, which is seeded here.

    Args:
        name: A name in the catalogue.
        seed: The same one gives the same weights, to the bit.
    """
    keras.utils.set_random_seed(seed)
    return architectures()[name].make(called=name)
