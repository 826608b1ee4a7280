"""Tiny real backbones and classifiers for the tests of evaluation: a few thousand weights, made in about a second."""

import io
from pathlib import Path
from typing import Any, Literal

import keras
import keras_hub
import numpy as np
from PIL import Image

from regraft.backbones.card import Card, weights_digest
from regraft.backbones.extractor import build_extractor
from regraft.data.records import open_split
from regraft.paths import Paths
from regraft.tuning.classifier import Classifier, graft

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "##s", "a", "very"]


def store_backbone(kind: Literal["image", "text"], backbones: Path) -> None:
    """Write an untrained backbone of `kind` as a preset folder into `backbones`."""
    keras.utils.set_random_seed(1)
    folder = backbones / f"tiny_{kind}"
    if kind == "image":
        backbone = keras_hub.models.VGGBackbone(
            stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 12], image_shape=(None, None, 3)
        )
    else:
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=len(VOCABULARY),
            num_layers=1,
            num_heads=2,
            hidden_dim=12,
            intermediate_dim=16,
            max_sequence_length=16,
        )
        keras_hub.tokenizers.BertTokenizer(vocabulary=VOCABULARY, lowercase=True).save_to_preset(str(folder))
    backbone.save_to_preset(str(folder))
    Card(
        name=folder.name,
        kind=kind,
        parameters=backbone.count_params(),
        feature_size=12,
        pooling="average",
        weights_sha256=weights_digest(backbone),
        source_dataset="nothing",
        licence="CC0-1.0",
        origin="made in a test",
        input_size_px=32 if kind == "image" else None,
        input_tokens=16 if kind == "text" else None,
        offset=(127.0, 127.0, 127.0) if kind == "image" else (),
        divisor=(128.0, 128.0, 128.0) if kind == "image" else (),
    ).write(folder)


def random_classifier(kind: Literal["image", "text"], backbones: Path, labels: tuple[str, ...]) -> Classifier:
    """Store a backbone in `backbones` and return it with a random head."""
    store_backbone(kind, backbones)
    extractor = build_extractor(backbones)
    random = np.random.default_rng(3)
    kernel = random.normal(size=(12, len(labels))).astype("float32")
    bias = random.normal(size=len(labels)).astype("float32")
    return Classifier(extractor, graft(extractor.model, kernel, bias), labels, kernel, bias, "lp_ft")


def picture(value: int, *, side_px: int = 20, file_format: str = "PNG") -> bytes:
    """An encoded picture of one grey level with a bright diagonal."""
    pixels = np.full((side_px, side_px, 3), value, np.uint8)
    pixels[np.arange(side_px), np.arange(side_px)] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def data_card(paths: Paths) -> dict[str, Any]:
    """Write reports/data.png and return what reports/data.json says of it and of copies: two are across splits."""
    names = [open_split(paths.prepared, split).names for split in ("train", "test")]
    across = [*[list(pair) for pair in zip(*names, strict=False)][:2], ["gone.png", names[1][0]]]
    paths.reports.mkdir(exist_ok=True)
    (paths.reports / "data.png").write_bytes(picture(200))
    none = {"pairs": 0, "listed": []}
    return {
        "shown": [],
        "leakage": {
            "across_splits": 3,
            "across_by_splits": {"train and test": 3},
            "across": {"pairs": 3, "listed": across},
            "conflicts": {"pairs": 1, "listed": across[:1]},
            "near_conflicts": none,
            "near": none,
            "dropped": {"examples": 0, "listed": []},
            "groups": {"groups": 0, "without_group": 30, "across_splits": 0, "listed": []},
        },
    }
