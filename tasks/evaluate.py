"""Export the model, score the test split through the export, and report."""

import csv
import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from regraft.backbones.extractor import Extractor
from regraft.data.records import Split, open_split
from regraft.determinism import set_up
from regraft.errors import TrainingError
from regraft.evaluation.metrics import classification_metrics, paired_gain
from regraft.evaluation.plots import Mistake, to_png
from regraft.evaluation.report import Facts, draw_plots, render_report
from regraft.evaluation.speed import measure_speed
from regraft.files import read_json, replace_directory, write_json, write_text
from regraft.paths import Paths
from regraft.progress import Progress
from regraft.registry.serving import ServedModel, export_saved_model, largest_difference, load_served
from regraft.settings import EvaluateSettings
from regraft.tuning.classifier import load_classifier

log = logging.getLogger(__name__)

BATCH_SIZE = 64
PARITY_EXAMPLES = 32
PARITY_TOLERANCE = 1e-3  # of a probability; the export reorders float32 sums, it must not change answers
SPEED_EXAMPLES = 64
SPEED_BUDGET_S = 2.0  # for each of two measurements
MISTAKES_SHOWN = {"image": 12, "audio": 12, "text": 6}


def run(evaluate: EvaluateSettings, name: str, seed: int, paths: Paths) -> None:
    """Write models/serving and, of the test split, reports/{metrics.json,speed.json,predictions.csv,plots,report.html}.

    All of it is the same for the same data and seed, but for speed.json and the speeds on the page.

    Raises:
        TrainingError: If the exported model answers differently from the trained one.
    """
    set_up(seed)
    classifier = load_classifier(paths.model, paths.backbones)
    test = open_split(paths.prepared, "test")
    with replace_directory(paths.serving) as directory:
        export_saved_model(classifier, directory, example=test.inputs([0])[0])
        served = load_served(directory)
        sample = test.inputs(range(min(PARITY_EXAMPLES, len(test))))
        difference = largest_difference(classifier, served, sample)
        if not difference <= PARITY_TOLERANCE:  # true for NaN as well
            raise TrainingError(
                f"The exported model differs from the trained one by {difference:.2g} in a probability (allowed: "
                f"{PARITY_TOLERANCE:g}; {len(sample)} test examples), so it is not kept. Something in the model does "
                "not survive tf.saved_model.save; nothing needs to be trained again."
            )
    log.info("the exported model agrees with the trained one within %.1g on %d examples", difference, len(sample))

    probabilities = predict(served, test)
    predicted = probabilities.argmax(axis=1)
    probe = (np.load(paths.features / "test.npy") @ classifier.kernel + classifier.bias).argmax(axis=1)
    metrics = {
        "shipped": classifier.shipped,
        "labels": list(classifier.labels),
        **_score(test, evaluate, predicted=predicted, probe=probe, majority=_majority(paths), seed=seed),
    }
    write_json(paths.reports / "metrics.json", metrics)
    write_predictions(paths.reports / "predictions.csv", test, probabilities)
    accuracy = metrics["test"]["accuracy"]
    log.info(
        "test accuracy %.4f (%.4f to %.4f) on %d examples; probe %.4f",
        accuracy["value"], accuracy["low"], accuracy["high"], len(test), metrics["probe"]["test"]["accuracy"]["value"],
    )  # fmt: skip

    speed = {
        **measure_speed(
            served.probabilities, test.inputs(range(min(SPEED_EXAMPLES, len(test)))), budget_s=SPEED_BUDGET_S
        ),
        "training": read_json(paths.reports / "training_time.json"),
    }
    write_json(paths.reports / "speed.json", speed)
    mistakes = surest_mistakes(test, probabilities, limit=MISTAKES_SHOWN[test.kind])
    if test.kind == "audio":
        mistakes = [replace(mistake, content=draw_sound(classifier.extractor, mistake.content)) for mistake in mistakes]
    facts = Facts(
        name=name,
        metrics=metrics,
        speed=speed,
        training=read_json(paths.reports / "training.json"),
        data=read_json(paths.reports / "data.json"),
        download=read_json(paths.reports / "download.json"),
        backbone=classifier.extractor.card,
        features=read_json(paths.features / "features.json"),
        seed=seed,
        evaluate=evaluate,
        mistakes=mistakes,
    )
    plots = draw_plots(facts)
    with replace_directory(paths.reports / "plots") as directory:
        for plot, png in plots.items():
            (directory / f"{plot}.png").write_bytes(png)
    write_text(paths.reports / "report.html", render_report(facts, plots))


def predict(served: ServedModel, split: Split) -> np.ndarray:
    """Return the probabilities of every example of `split`, float32, shape (len(split), classes), in its order.

    Texts are answered in the order of their length: a batch is padded to its longest text, so mixing them costs time.
    """
    order = list(range(len(split)))
    if split.kind == "text":
        order.sort(key=lambda row: len(split.inputs([row])[0]))
    probabilities = np.empty((len(split), len(split.class_names)), np.float32)
    progress = Progress(log, "testing", len(split), "examples")
    for start in range(0, len(split), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        probabilities[rows] = served.probabilities(split.inputs(rows))
        progress.advance(len(rows))
    return probabilities


def write_predictions(path: Path, split: Split, probabilities: np.ndarray) -> None:
    """Write one line an example: id, name, label, predicted class, its probability and that of the label."""
    predicted = probabilities.argmax(axis=1)
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["id", "name", "label", "predicted", "probability", "probability_of_label"])
    for row, (label, guess) in enumerate(zip(split.labels, predicted, strict=True)):
        shares = (f"{probabilities[row, column]:.6f}" for column in (guess, label))
        writer.writerow([split.ids[row], split.names[row], split.class_names[label], split.class_names[guess], *shares])
    write_text(path, lines.getvalue())


def surest_mistakes(split: Split, probabilities: np.ndarray, *, limit: int) -> list[Mistake]:
    """Return the wrong answers given with the highest probability, at most `limit`, highest first."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    shares = probabilities[wrong, predicted[wrong]]
    rows = wrong[np.argsort(-shares, kind="stable")[:limit]]
    return [
        Mistake(
            name=split.names[row],
            label=split.class_names[split.labels[row]],
            predicted=split.class_names[predicted[row]],
            probability=float(probabilities[row, predicted[row]]),
            content=content,
        )
        for row, content in zip(rows, split.inputs([int(row) for row in rows]), strict=True)
    ]


def draw_sound(extractor: Extractor, recording: bytes | str) -> bytes:
    """Return what the backbone sees of a recording as PNG: its windows side by side."""
    pictures = extractor.prepare(tf.constant(recording)).numpy()
    return to_png(np.concatenate(list(pictures), axis=1) if pictures.ndim == 4 else pictures)


def _majority(paths: Paths) -> int:
    """Return the most frequent class of the training split."""
    train = open_split(paths.prepared, "train")
    return int(np.bincount(train.labels, minlength=len(train.class_names)).argmax())


def _score(
    test: Split, evaluate: EvaluateSettings, *, predicted: np.ndarray, probe: np.ndarray, majority: int, seed: int
) -> dict[str, Any]:
    """Score the model, its probe and the most frequent class on the same examples."""
    samples, interval = evaluate.bootstrap_samples, evaluate.interval

    def score(answers: np.ndarray) -> dict[str, Any]:
        return classification_metrics(
            test.labels, answers, test.class_names, samples=samples, interval=interval, seed=seed
        )

    return {
        "test": score(predicted),
        "probe": {"test": _summary(score(probe))},
        "majority": {
            "label": test.class_names[majority],
            "test": _summary(score(np.full(len(test), majority))),
        },
        "gain_over_probe": paired_gain(
            test.labels, predicted, probe, classes=len(test.class_names), samples=samples, interval=interval, seed=seed
        ),
    }


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
