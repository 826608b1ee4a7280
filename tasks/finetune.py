"""Solve the head on the cached features, then fine-tune backbone and head from there."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regraft import determinism
from regraft.backbones.extractor import Extractor, extractor_as
from regraft.data.records import Split, open_split
from regraft.data.targets import REGRESSION
from regraft.errors import TrainingError
from regraft.files import read_json, replace_directory, write_json
from regraft.paths import Paths
from regraft.settings import FinetuneSettings
from regraft.tuning.batches import Source
from regraft.tuning.class_weights import log_weights
from regraft.tuning.classifier import Classifier, get_head, graft, save_classifier, set_head
from regraft.tuning.devices import Devices, failures_explained, find_devices
from regraft.tuning.lora import has_attention
from regraft.tuning.objective import OBJECTIVES, Objective
from regraft.tuning.probe import Probe, fit_probe
from regraft.tuning.recipes import WAYS, Data, Way, competitors, from_nothing, recipe_for
from regraft.tuning.solvers import Features
from regraft.tuning.strategies import Tuned, fine_tune, probe_only
from regraft.tuning.target_scale import Relabelled, TargetScale

log = logging.getLogger(__name__)


def run(finetune: FinetuneSettings, seed: int, paths: Paths) -> None:
    """Read data/prepared, features/ and models/backbones/, write models/model/ and three reports.

    models/model/, training.json and selection.json (which strategies were tried, how they did, which was taken and why)
    are the same for the same data, settings and seed, also after an interruption: what is half done lies in the folder
    named by REGRAFT_SCRATCH (by default .scratch/finetune), and stays there for whoever records the stage to delete, so
    that a run killed before that need not train again. training_time.json holds what may differ between two runs: on
    which devices, and how fast it went here.

    Several GPUs share every batch, and so do several processes, each with the project's data and features, if TF_CONFIG
    says so: all of them train, and only the chief's writes anything but its scratch folder.

    Raises:
        TrainingError: If features and prepared data do not belong together, a setting does not fit the data, the loss
            stops being a number, or memory runs out.
        ResourceError: If another process that took part is gone.
    """
    determinism.set_up(seed)
    devices = find_devices(finetune.precision)
    started = time.monotonic()
    train, validation = open_split(paths.prepared, "train"), open_split(paths.prepared, "validation")
    about = read_json(paths.features / "features.json")
    train_features = _read_features(paths.features, "train", train)
    validation_features = _read_features(paths.features, "validation", validation)
    classes, objective = len(train.class_names), OBJECTIVES[train.task]
    if finetune.class_weights == "balanced" and train.task == REGRESSION:
        raise TrainingError("finetune.class_weights is for classes and labels; these are real values. Set it to none.")
    scale = TargetScale.of(train.labels) if train.task == REGRESSION else None
    rows: list[Source] = [
        Relabelled(split, scale.apply(split.labels)) if scale else split for split in (train, validation)
    ]
    learned, judged = rows
    probe = fit_probe(
        train_features, learned.labels, validation_features, judged.labels,
        classes=classes, objective=objective, groups=train.groups,
    )  # fmt: skip
    probe_seconds = time.monotonic() - started
    log.info(
        "the probe is solved: validation %s %.4f, %s %.4f, penalty %g",
        objective.loss_name, probe.validation.log_loss, objective.measure_name, probe.validation.accuracy,
        probe.penalty,
    )  # fmt: skip

    build = partial(_build, paths.backbones, about, probe, devices, seed)
    extractor, model = build()
    pretrained = extractor.card.is_pretrained
    scratch = Path(os.environ.get("REGRAFT_SCRATCH", paths.scratch / "finetune"))
    if finetune.strategy == "probe":
        tuned = probe_only(probe, objective)
    else:
        recipe = recipe_for(finetune, seed, len(train), pretrained=pretrained)
        data = Data(
            learned,
            judged,
            train_features,
            validation_features,
            extractor.prepare,
            classes,
            objective,
            groups=train.groups,
        )
        identity = _identity(
            {"finetune": finetune.model_dump(), "seed": seed, "features": about, **devices.facts()},
            (train, validation),
            probe,
        )
        ways = _ways(finetune, data, model, pretrained=pretrained)

        def models() -> Iterator[tuple[keras.Model, keras.Model]]:
            nonlocal extractor
            yield model, extractor.model
            while True:
                extractor, another = build()
                yield another, extractor.model

        with failures_explained(
            devices,
            batch_size=recipe.batch_size,
            accumulate=finetune.accumulate,
            image_size_px=about["image_size_px"],
        ):
            model, tuned = fine_tune(
                ways, models(), data, probe, recipe, scratch=scratch, run=identity, devices=devices
            )
    log.info("%s", tuned.why)
    weights = log_weights(train.labels, classes) if finetune.class_weights == "balanced" else np.float32(0.0)

    def answering(kernel: Features, bias: Features, temperature: float) -> tuple[Features, Features]:
        return scale.fold_into(kernel, bias) if scale else (kernel, bias + np.float32(temperature) * weights)

    of_probe = objective.temperature(probe.logits(validation_features), judged.labels)
    set_head(model, *answering(*get_head(model), of_probe if tuned.shipped == "probe" else tuned.temperature))
    kernel, bias = answering(probe.kernel, probe.bias, of_probe)

    if devices.is_chief:
        with replace_directory(paths.model) as directory:
            save_classifier(
                directory,
                Classifier(extractor, model, train.class_names, kernel, bias, tuned.shipped, train.task),
            )
        _report_decision(paths, finetune, probe, tuned, objective)
        _report_times(paths, tuned, devices, probe_seconds, time.monotonic() - started)


def _build(
    backbones: Path, about: Mapping[str, Any], probe: Probe, devices: Devices, seed: int
) -> tuple[Extractor, keras.Model]:
    """Return the extractor that the features described by `about` came from, and its model with the probe's head."""
    # Layers are numbered from 1 again, so that it makes no difference to their names, which are stored with the
    # weights, how many models were built before.
    keras.utils.clear_session(free_memory=False)
    determinism.set_up(seed)
    with devices.scope():
        extractor = extractor_as(backbones, about)
        return extractor, graft(extractor.model, probe.kernel, probe.bias)


def _ways(finetune: FinetuneSettings, data: Data, model: keras.Model, *, pretrained: bool) -> tuple[Way, ...]:
    """Return the ways to fine-tune that compete, or the one that was set."""
    auto = finetune.strategy == "auto"
    rivals = competitors(data, has_attention=has_attention(model), accumulate=finetune.accumulate)
    ways = rivals if auto else (WAYS[finetune.strategy],)
    return ways if pretrained else tuple(from_nothing(way) for way in ways)


def _report_decision(
    paths: Paths, finetune: FinetuneSettings, probe: Probe, tuned: Tuned, objective: Objective
) -> None:
    """Write training.json and selection.json, whose bytes are the same for the same data, settings and seed."""
    reported = objective.reported({"probe": probe.summary(), **tuned.facts})
    decision = {"strategy": finetune.strategy, "shipped": tuned.shipped, "why": tuned.why}
    options = finetune.model_dump(exclude={"strategy", "epochs", "learning_rate"})
    write_json(paths.reports / "training.json", {**decision, "options": options, **reported})
    selection = {
        "probe": reported["probe"]["validation"],
        "tried": reported["tried"],
        "comparison": reported.get("comparison"),
    }
    write_json(paths.reports / "selection.json", {**decision, **selection})


def _report_times(paths: Paths, tuned: Tuned, devices: Devices, probe_seconds: float, stage_seconds: float) -> None:
    """Write training_time.json: what may differ between two runs."""
    history = tuned.history
    write_json(
        paths.reports / "training_time.json",
        {
            "devices": devices.names,
            "probe_seconds": probe_seconds,
            "finetune_seconds": history.seconds if history else 0.0,
            "examples": history.examples if history else 0,
            "examples_per_second": history.examples / history.seconds if history else None,
            "checkpoints": history.checkpoints if history else 0,
            "checkpoints_seconds": history.checkpoints_seconds if history else 0.0,
            "stage_seconds": stage_seconds,
        },
    )


def _read_features(directory: Path, split: str, rows: Split) -> Features:
    """Return the features of a split.

    Raises:
        TrainingError: If their number is not that of the examples.
    """
    features = np.load(directory / f"{split}.npy")
    if len(features) != len(rows):
        raise TrainingError(
            f"{directory / split}.npy has {len(features)} rows, the prepared {split} split {len(rows)}: "
            "they do not belong together. Run the embed stage again."
        )
    return features


def _identity(settings: Mapping[str, object], splits: Sequence[Split], probe: Probe) -> str:
    """Return a digest of all that the weights depend on; checkpoints of another run are not continued."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for split in splits:
        digest.update("\n".join(split.ids).encode())
        digest.update(split.labels.tobytes())
    digest.update(probe.kernel.tobytes() + probe.bias.tobytes())
    return digest.hexdigest()
