"""Fetch the pretrained backbone, or begin one from nothing, or pretrain one; store it as a verified KerasHub preset."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from regraft import determinism
from regraft.backbones.card import Card
from regraft.backbones.fetch import fetch
from regraft.files import read_json, write_bytes, write_json
from regraft.paths import Paths
from regraft.settings import BackboneSettings

log = logging.getLogger(__name__)

CURVE = "pretraining.png"


def run(backbone: BackboneSettings, seed: int, paths: Paths) -> None:
    """Read reports/choice.json and perhaps data/sample/, write models/backbones/ and, for people, three reports.

    reports/backbone.json says what the network is, its licence, and where it came from; reports/pretraining.json how it
    was pretrained here, epoch by epoch or look by look, if it was; pretraining_time.json how long that took. All bytes
    but those of the last are the same for the same source, settings and seed, also after an interruption: see
    `tasks.finetune`.

    The seed counts only for weights that are drawn or trained here.
    """
    facts: dict[str, Any] = {"mode": backbone.mode}
    times: dict[str, Any] = {}
    if backbone.mode == "fetch":
        card = fetch(read_json(paths.choice)["name"], paths.backbones, root=paths.root, seed=seed)
    elif backbone.mode == "scratch":
        from regraft.pretraining.beginning import scratch

        determinism.set_up(seed)
        card = scratch(backbone.name, root=paths.root, seed=seed).store(paths.backbones)
    else:
        card, facts, times = _pretrain(backbone, seed, paths)
    write_json(paths.reports / "backbone.json", dataclasses.asdict(card))
    write_json(paths.reports / "pretraining.json", facts)
    write_json(paths.reports / "pretraining_time.json", times)
    log.info("backbone %s: %.1f million parameters, from %s", card.name, card.parameters / 1e6, card.origin)


def _pretrain(backbone: BackboneSettings, seed: int, paths: Paths) -> tuple[Card, dict[str, Any], dict[str, Any]]:
    from regraft.pretraining.course import pretrain
    from regraft.pretraining.curve import draw_curve
    from regraft.pretraining.sample import sample_folder
    from regraft.pretraining.source import parse_source
    from regraft.tuning.devices import find_devices

    determinism.set_up(seed)
    devices = find_devices(backbone.pretrain.precision)
    scratch = Path(os.environ.get("REGRAFT_SCRATCH", paths.scratch / "backbone"))
    source = parse_source(str(backbone.pretrain.source), paths.root)
    said = source.fingerprint(paths.state / "pretraining-index.json")
    # Of a TFDS data set its name is all there is.
    digest = said.get("digest") or said["source"]
    learned = pretrain(
        backbone,
        seed=seed,
        root=paths.root,
        scratch=scratch,
        digest=digest,
        devices=devices,
        sample=sample_folder(paths),
    )
    if devices.is_chief:
        card = learned.beginning.store(paths.backbones, seen=learned.seen)
        write_bytes(paths.backbones / card.name / CURVE, draw_curve(learned.facts))
    else:
        card = learned.beginning.card
    history = learned.history
    log.info(
        "pretrained on %d %s in %.0f s, held-out %s %.4f",
        history.examples, learned.facts["unit"], history.seconds, learned.facts["loss_name"],
        learned.facts["held_out_loss"]["after"],
    )  # fmt: skip
    times = {"seconds": history.seconds}
    if history.looks:
        looking = sum(look["seconds"] for look in history.looks)
        times |= {"looks_seconds": looking, "looks_share": looking / history.seconds}
        log.info("%s; looks took %.1f%% of the time", learned.facts["stopped"], 100 * times["looks_share"])
    return card, learned.facts, times
