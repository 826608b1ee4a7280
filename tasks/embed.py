"""Turn every prepared example into the frozen backbone's features."""

import logging

import numpy as np

from regraft import determinism
from regraft.backbones import catalogue
from regraft.backbones.card import read_card, stored_backbone
from regraft.backbones.extractor import build_extractor
from regraft.backbones.features import FeatureCache, describe, embed_splits
from regraft.backbones.inputs import image_size, view
from regraft.data.records import open_split, read_info
from regraft.files import read_json, replace_directory, write_json
from regraft.paths import Paths
from regraft.pretraining.seen import count_seen
from regraft.progress import Progress
from regraft.settings import EmbedSettings

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
DESCRIBED = ("kind", "image_size_px", "view", "max_tokens", "pair", "feature_size", "weights_sha256")
SEED = 0  # nothing here is random; the call that sets it also makes TensorFlow's operations repeatable


def run(embed: EmbedSettings, paths: Paths) -> None:
    """Read data/prepared, models/backbones/ and two reports (data, choice), write features/ and reports/embed.json.

    features/SPLIT.npy is float32 (rows, features) in the row order of `open_split`; features/features.json says what
    they were computed with. reports/embed.json counts forward passes, so it depends on what the cache knew already.

    Raises:
        BackboneError: If the backbone takes another kind of data than was prepared.
    """
    determinism.set_up(SEED)
    card = read_card(stored_backbone(paths.backbones))
    kind = read_info(paths.prepared).kind
    catalogue.require_kind(card.name, card.kind, kind)
    data = read_json(paths.reports / "data.json")
    heard = view(embed, data) if kind == "audio" else None
    extractor = build_extractor(
        paths.backbones,
        image_size_px=read_json(paths.choice)["image_size_px"] or image_size(embed, data, card, heard),
        max_tokens=embed.max_tokens,
        view=heard,
        pair=data.get("pair") if kind == "text" else None,
    )
    splits = {name: open_split(paths.prepared, name) for name in SPLITS}
    description = describe(extractor, embed.batch_size)
    progress = Progress(log, "embedding", total=0, unit="examples")

    def advance(done: int, total: int) -> None:
        progress.total = total
        progress.advance(done)

    embedded = embed_splits(
        splits, extractor, FeatureCache(paths.feature_cache, description), batch_size=embed.batch_size, advance=advance
    )
    with replace_directory(paths.features) as directory:
        for name, features in embedded.features.items():
            np.save(directory / f"{name}.npy", features)
        write_json(directory / "features.json", {"backbone": card.name, **{key: description[key] for key in DESCRIBED}})
    counts = {"forward_passes": embedded.forward_passes, "from_cache": embedded.from_cache}
    seen = count_seen(extractor.preset, splits["test"].ids)
    if seen is not None:
        counts["test_examples_seen_in_pretraining"] = seen
    if seen:
        log.warning(
            "%d of %d test examples are among those that the backbone was pretrained on: a score on them says little",
            seen, len(splits["test"]),
        )  # fmt: skip
    write_json(paths.reports / "embed.json", counts)
    log.info(
        "embedded %d examples, %d forward passes, %d from cache",
        sum(map(len, embedded.features.values())), embedded.forward_passes, embedded.from_cache,
    )  # fmt: skip
