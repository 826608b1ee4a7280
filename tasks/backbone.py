"""Fetch the pretrained backbone, or begin one from nothing, and store it as a verified KerasHub preset."""

import dataclasses
import logging

from regraft.backbones.fetch import fetch
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.settings import BackboneSettings

log = logging.getLogger(__name__)


def run(backbone: BackboneSettings, seed: int, paths: Paths) -> None:
    """Read reports/choice.json, write models/backbones/ and, for people, reports/backbone.json.

    That says what the backbone is, what its licence is, and where it came from.
    The seed counts only for a network that begins from nothing.
    """
    card = fetch(read_json(paths.choice)["name"], paths.backbones, root=paths.root, seed=seed)
    write_json(paths.reports / "backbone.json", dataclasses.asdict(card))
    log.info("backbone %s: %.1f million parameters, from %s", card.name, card.parameters / 1e6, card.origin)
