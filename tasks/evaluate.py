"""Export the model, score the test split through the export, and report."""

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from regraft.backbones.extractor import Extractor
from regraft.data.records import Split, open_split, read_info
from regraft.data.slice_columns import read_slices
from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION, label_set
from regraft.determinism import set_up
from regraft.errors import TrainingError
from regraft.evaluation import certainty, columns, slices
from regraft.evaluation.metrics import classification_metrics, paired_gain
from regraft.evaluation.plots import Mistake, to_png
from regraft.evaluation.probabilities import probability_metrics
from regraft.evaluation.report import PAIRS_SHOWN, Facts, Pairs, Shown, draw_plots, render_model_card, render_report
from regraft.evaluation.speed import measure_speed
from regraft.evaluation.unusual import Familiar, known_rows, measure_unusual, settle_familiar
from regraft.explanations import faithfulness
from regraft.explanations.attribution import Explainer, TextExplainer, explainer_of
from regraft.explanations.explain import draw
from regraft.files import read_json, replace_directory, write_json, write_text
from regraft.measures import headline
from regraft.paths import Paths
from regraft.progress import Progress
from regraft.registry.promotion import PREDICTED, PROBABILITY, TRUE, compact_ids
from regraft.registry.serving import compile_features, export_saved_model, largest_difference, load_served
from regraft.settings import EvaluateSettings
from regraft.tuning.class_weights import log_weights
from regraft.tuning.classifier import Classifier, get_head, load_classifier

log = logging.getLogger(__name__)

BATCH_SIZE = 64
PARITY_EXAMPLES = 32
# Of a probability, or of a target's standard deviation; the export reorders float32 sums, it must not change answers.
PARITY_TOLERANCE = 1e-3
SPEED_EXAMPLES = 64
SPEED_BUDGET_S = 2.0  # for each of two measurements
SLICE = "slice "  # before the names of columns to slice by in predictions.csv
EXPLAINED_EXAMPLES = 8  # of the test split, by which explanations are judged
MISTAKES_SHOWN = {"image": 12, "audio": 12, "text": 6}


def run(evaluate: EvaluateSettings, name: str, seed: int, paths: Paths) -> None:
    """Export the model to models/serving and say what it does on the test split.

    In reports/: metrics.json, speed.json, predictions.csv, plots, report.html and model_card.md; and seen.npy, which
    says which examples training saw, `regraft.registry.promotion.compact_ids`. All is the same for the same data and
    seed, but for speed.json and the speeds on page and card.

    Raises:
        TrainingError: If the exported model answers otherwise than the trained one, or a setting does not fit the task.
    """
    set_up(seed)
    classifier = load_classifier(paths.model, paths.backbones)
    test = open_split(paths.prepared, "test")
    training = read_json(paths.reports / "training.json")
    validation = open_split(paths.prepared, "validation")
    features = features_on(classifier, validation, paths.features / "validation.npy", "calibrating")
    settled = _settle(classifier, features, training=training, paths=paths, evaluate=evaluate, seed=seed)
    familiar = _familiar(classifier, features, paths)
    temperature = settled.calibration.temperature
    with replace_directory(paths.serving) as directory:
        export_saved_model(
            classifier,
            directory,
            example=test.inputs([0])[0],
            temperature=temperature,
            familiar=familiar,
            facts=settled.facts() | (familiar.facts() if familiar else {}),
        )
        served = load_served(directory)
        sample = test.inputs(range(min(PARITY_EXAMPLES, len(test))))
        difference = largest_difference(
            classifier, served, sample, temperature=temperature, units=_units(paths, test.task)
        )
        if not difference <= PARITY_TOLERANCE:  # true for NaN as well
            raise TrainingError(
                f"The exported model differs from the trained one by {difference:.2g} in an answer (allowed: "
                f"{PARITY_TOLERANCE:g}; {len(sample)} test examples), so it is not kept. Something in the model does "
                "not survive tf.saved_model.save; nothing needs to be trained again."
            )
    log.info("the exported model agrees with the trained one within %.1g on %d examples", difference, len(sample))

    told = read_slices(paths.slices, test.names)
    replies = predict(served.with_unusual, test, "testing")
    answers, unusual = replies[:, : len(classifier.labels)], replies[:, -1]
    probe = np.load(paths.features / "test.npy") @ classifier.kernel + classifier.bias
    judged = _judge_classes if test.task == CLASSIFICATION else _judge_columns
    outcome = judged(open_split(paths.prepared, "train"), test, answers, probe, evaluate=evaluate, seed=seed)
    chance = _chance(evaluate, seed)
    if test.task != REGRESSION:
        outcome.metrics["test"] |= probability_metrics(
            test.task, test.labels, answers, test.class_names, **chance, groups=test.groups
        )
    explainer = explainer_of(classifier)
    metrics = {
        "shipped": classifier.shipped,
        "task": classifier.task,
        "labels": list(classifier.labels),
        **outcome.metrics,
        **certainty.measure(settled, answers, test.labels, **chance),
        "unusual": measure_unusual(familiar, unusual, interval=evaluate.interval),
        "slices": _slice(test, answers, told, chance),
        "explanations": _test_explanations(explainer, test, float(_units(paths, test.task)[0]), seed),
    }
    write_json(paths.reports / "metrics.json", metrics)
    seen = [identity for split in ("train", "validation") for identity in open_split(paths.prepared, split).ids]
    np.save(paths.reports / "seen.npy", compact_ids(seen))
    write_text(paths.reports / "predictions.csv", _with_cells(outcome.predictions, told))
    log.info(
        "test %s on %d examples; probe %s", headline(test.task, metrics["test"], interval=evaluate.interval), len(test),
        headline(test.task, metrics["probe"]["test"], interval=evaluate.interval),
    )  # fmt: skip

    speed = {
        **measure_speed(served.answers, test.inputs(range(min(SPEED_EXAMPLES, len(test)))), budget_s=SPEED_BUDGET_S),
        "training": read_json(paths.reports / "training_time.json"),
    }
    write_json(paths.reports / "speed.json", speed)
    mistakes = [_explain(explainer, mistake) for mistake in outcome.mistakes]
    if test.kind == "audio":
        mistakes = [replace(mistake, content=draw_sound(classifier.extractor, mistake.content)) for mistake in mistakes]
    data = read_json(paths.reports / "data.json")
    listed = data["leakage"]
    facts = Facts(
        name=name,
        metrics=metrics,
        speed=speed,
        training=training,
        choice=read_json(paths.choice),
        data=data,
        download=read_json(paths.reports / "download.json"),
        backbone=classifier.extractor.card,
        features=read_json(paths.features / "features.json"),
        seed=seed,
        evaluate=evaluate,
        mistakes=mistakes,
        answers=None if test.task != REGRESSION else (test.labels, answers),
        sheet=(paths.reports / "data.png").read_bytes(),
        copies=show_pairs(paths.prepared, listed["across"]["listed"], classifier.extractor),
        conflicts=show_pairs(
            paths.prepared, listed["conflicts"]["listed"] + listed["near_conflicts"]["listed"], classifier.extractor
        ),
    )
    plots = draw_plots(facts)
    with replace_directory(paths.reports / "plots") as directory:
        for plot, png in plots.items():
            (directory / f"{plot}.png").write_bytes(png)
    write_text(paths.reports / "report.html", render_report(facts, plots))
    write_text(paths.model_card, render_model_card(facts))


def _settle(
    classifier: Classifier,
    features: np.ndarray,
    *,
    training: Mapping[str, Any],
    paths: Paths,
    evaluate: EvaluateSettings,
    seed: int,
) -> certainty.Certainty:
    """Let validation data, with these features, say how sure the model may be."""
    if evaluate.risk is not None and classifier.task == REGRESSION:
        raise TrainingError(
            f"evaluate.risk is {evaluate.risk:g}, and this model answers real values, which do not say how sure they "
            "are. Set it to null; `low` and `high` in its answers say how far off they may be."
        )
    validation = open_split(paths.prepared, "validation")
    outputs = _outputs(classifier, features)
    balance = None
    if training.get("options", {}).get("class_weights") == "balanced":
        train = open_split(paths.prepared, "train")
        balance = np.exp(log_weights(train.labels, len(train.class_names)).astype(np.float64))
    return certainty.settle(
        classifier.task,
        outputs,
        validation.labels,
        balance=balance,
        coverage=evaluate.coverage,
        risk=evaluate.risk,
        seed=seed,
    )


def outputs_on(classifier: Classifier, split: Split, features: Path) -> np.ndarray:
    """Return the model's logits or values of `split`, shape (N, K), before calibration; `features` as `features_on`."""
    return _outputs(classifier, features_on(classifier, split, features, "calibrating"))


def _outputs(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Return what the model's head makes of `features` (N, D): logits or values, shape (N, K)."""
    kernel, bias = get_head(classifier.model)
    outputs: np.ndarray = features @ kernel + bias
    return outputs


def features_on(
    classifier: Classifier, split: Split, features: Path, doing: str, rows: Sequence[int] | None = None
) -> np.ndarray:
    """Return what the model's head is given for `split`, or for `rows` of it, float32, shape (rows, D).

    If the backbone is still the frozen one, its features in the file `features` save running it.
    """
    if classifier.shipped == "probe":
        known: np.ndarray = np.load(features)
        return known if rows is None else known[list(rows)]
    return predict(compile_features(classifier), split, doing, rows)


def _familiar(classifier: Classifier, validation: np.ndarray, paths: Paths) -> Familiar | None:
    """Return what the model knows of its training data, with a limit read off the features `validation`."""
    train = open_split(paths.prepared, "train")
    known = features_on(classifier, train, paths.features / "train.npy", "remembering", known_rows(len(train)))
    return settle_familiar(known, validation)


def _test_explanations(explainer: Explainer, test: Split, unit: float, seed: int) -> dict[str, Any]:
    """Return how explanations of some test examples, evenly spread, fare beside random ones."""
    rows = np.unique(np.linspace(0, len(test) - 1, EXPLAINED_EXAMPLES).astype(np.int64))
    progress = Progress(log, "testing explanations", len(rows), "examples")
    return faithfulness.measure(explainer, test.inputs(rows.tolist()), seed=seed, unit=unit, advance=progress.advance)


def _explain(explainer: Explainer, mistake: Mistake) -> Mistake:
    """Return `mistake` with what spoke for the answer."""
    content: Any = mistake.content
    attribution = explainer.attribute(explainer.methods[0], content, faithfulness.top_output(explainer, content))
    if isinstance(explainer, TextExplainer):
        return replace(mistake, why=attribution.words())
    return replace(mistake, why=draw(explainer.prepared(content), attribution))


def _slice(
    test: Split, answers: np.ndarray, told: Mapping[str, Sequence[str]], chance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how the model does on slices of the test split; `chance` is how intervals are drawn."""
    found: dict[str, list[float]] = {}
    for start in range(0, len(test), BATCH_SIZE):
        contents = test.inputs(range(start, min(start + BATCH_SIZE, len(test))))
        for name, values in slices.traits(test.kind, contents).items():
            found.setdefault(name, []).extend(values)
    given = {CLASSIFICATION: answers.argmax(axis=1), MULTILABEL: answers >= 0.5}.get(test.task, answers)
    return slices.measure_slices(test.task, test.labels, given, found, told=told, **chance)


def _with_cells(predictions: str, told: Mapping[str, Sequence[str]]) -> str:
    """Return predictions.csv with a column more for each one of `told`, `slice NAME`."""
    if not told:
        return predictions
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    header, *rows = csv.reader(io.StringIO(predictions, newline=""))
    writer.writerow([*header, *(SLICE + name for name in told)])
    writer.writerows([*row, *cells] for row, cells in zip(rows, zip(*told.values(), strict=True), strict=True))
    return lines.getvalue()


def predict(
    answer: Callable[[Sequence[bytes | str]], np.ndarray],
    split: Split,
    doing: str,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Return what `answer` says to every example of `split`, or to `rows` of it, float32, one row each, in their order.

    Texts are answered in the order of their length: a batch is padded to its longest text, so mixing them costs time.
    """
    asked = list(range(len(split)) if rows is None else rows)
    order = list(range(len(asked)))
    if split.kind == "text":
        order.sort(key=lambda place: len(split.inputs([asked[place]])[0]))
    answers: np.ndarray | None = None
    progress = Progress(log, doing, len(asked), "examples")
    for start in range(0, len(order), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        answered = answer(split.inputs([asked[place] for place in places]))
        if answers is None:
            answers = np.empty((len(asked), answered.shape[1]), np.float32)
        answers[places] = answered
        progress.advance(len(places))
    if answers is None:
        raise TrainingError(f"nothing to answer ({doing}): the split is empty. Run the preprocess stage again.")
    return answers


def show_pairs(prepared: Path, named: Sequence[Sequence[str]], extractor: Extractor) -> Pairs:
    """Return the first of the pairs of examples `named` that are both still in the prepared data, as people see them.

    Args:
        prepared: The dataset.
        named: Pairs of names.
        extractor: Draws recordings.
    """
    if not named:
        return []
    splits = {split: open_split(prepared, split) for split in read_info(prepared).counts}
    places = {name: (split, row) for split, rows in splits.items() for row, name in enumerate(rows.names)}

    def show(name: str) -> Shown:
        split, row = places[name]
        rows = splits[split]
        content = rows.inputs([row])[0]
        return Shown(name, split, rows.target(row), draw_sound(extractor, content) if rows.kind == "audio" else content)

    kept = [pair for pair in named if places.keys() >= set(pair)]
    return [(show(one), show(other)) for one, other in kept[:PAIRS_SHOWN]]


def _units(paths: Paths, task: str) -> np.ndarray:
    """Return what differences between answers are measured in, by output: of real values the standard deviation."""
    if task != REGRESSION:
        return np.ones(1)
    deviations: np.ndarray = open_split(paths.prepared, "train").labels.std(axis=0, dtype=np.float64)
    return deviations


@dataclass(frozen=True)
class _Outcome:
    """What the test split says: the part of metrics.json, the text of predictions.csv, the mistakes to show."""

    metrics: dict[str, Any]
    predictions: str
    mistakes: list[Mistake]


def _judge_classes(
    train: Split, test: Split, probabilities: np.ndarray, probe: np.ndarray, *, evaluate: EvaluateSettings, seed: int
) -> _Outcome:
    majority = int(np.bincount(train.labels, minlength=len(train.class_names)).argmax())
    predicted = probabilities.argmax(axis=1)
    return _Outcome(
        _score(test, evaluate, predicted=predicted, probe=probe.argmax(axis=1), majority=majority, seed=seed),
        list_predictions(test, probabilities),
        surest_mistakes(test, probabilities, limit=MISTAKES_SHOWN[test.kind]),
    )


def _judge_columns(
    train: Split, test: Split, answers: np.ndarray, probe: np.ndarray, *, evaluate: EvaluateSettings, seed: int
) -> _Outcome:
    """Judge real values, or labels: a label is given when its probability is 0.5 or more."""
    task, names = test.task, test.class_names
    given, theirs = answers, probe
    if task == MULTILABEL:
        given, theirs = answers >= 0.5, probe >= 0.0
        sets, counts = np.unique(train.labels, axis=0, return_counts=True)
        constant = sets[counts.argmax()]
        baseline = f"always “{label_set(names, constant) or 'no label'}”"
    else:
        constant = train.labels.mean(axis=0, dtype=np.float64)
        baseline = "always the mean of training"
    chance = _chance(evaluate, seed) | {"groups": test.groups}
    metrics = {
        "test": {
            **columns.measure(task, test.labels, given, **chance),
            "by_column": columns.by_column(task, test.labels, given, names),
            "examples": len(test),
        },
        "probe": {"test": columns.measure(task, test.labels, theirs, **chance)},
        "baseline": {
            "name": baseline,
            "values": [float(value) for value in constant],
            "test": columns.measure(task, test.labels, np.tile(constant, (len(test), 1)), **chance),
        },
        "gain_over_probe": columns.gain(task, test.labels, given, theirs, **chance),
    }
    return _Outcome(metrics, list_columns(test, answers), worst_answers(test, answers, MISTAKES_SHOWN[test.kind]))


def list_columns(split: Split, answers: np.ndarray) -> str:
    """Return CSV, one line an example: id, name, and for each target or label what is true and what was predicted."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    is_labels = split.task == MULTILABEL
    parts = (TRUE, PREDICTED, PROBABILITY) if is_labels else (TRUE, PREDICTED)
    writer.writerow(["id", "name", *(part + name for name in split.class_names for part in parts)])
    for row, (truth, given) in enumerate(zip(split.labels, answers, strict=True)):
        cells: list[str] = []
        for true, answer in zip(truth, given, strict=True):
            # Nine digits tell any two float32 numbers apart.
            shown = (f"{true:.0f}", str(int(answer >= 0.5)), f"{answer:.6f}")
            cells += shown if is_labels else (f"{true:.9g}", f"{answer:.9g}")
        writer.writerow([split.ids[row], split.names[row], *cells])
    return lines.getvalue()


def worst_answers(split: Split, answers: np.ndarray, limit: int) -> list[Mistake]:
    """Return the answers furthest from the truth, at most `limit`, worst first; right label sets are no mistakes."""
    if split.task == MULTILABEL:
        wrong = ((answers >= 0.5) != split.labels).any(axis=1)
        distances = np.where(wrong, np.abs(answers - split.labels).max(axis=1), 0.0)
    else:
        deviations = split.labels.std(axis=0)
        distances = (np.abs(answers - split.labels) / np.where(deviations > 0.0, deviations, 1.0)).max(axis=1)
    rows = [int(row) for row in np.argsort(-distances, kind="stable")[:limit] if distances[row] > 0.0]

    def said(values: np.ndarray) -> str:
        if split.task == MULTILABEL:
            return label_set(split.class_names, (values >= 0.5).tolist()) or "no label"
        return ", ".join(f"{value:.4g}" for value in values)

    return [
        Mistake(split.names[row], said(split.labels[row]), said(answers[row]), None, content)
        for row, content in zip(rows, split.inputs(rows), strict=True)
    ]


def list_predictions(split: Split, probabilities: np.ndarray) -> str:
    """Return CSV, one line an example: id, name, label, predicted class, its probability and that of the label."""
    predicted = probabilities.argmax(axis=1)
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["id", "name", "label", "predicted", "probability", "probability_of_label"])
    for row, (label, guess) in enumerate(zip(split.labels, predicted, strict=True)):
        shares = (f"{probabilities[row, column]:.6f}" for column in (guess, label))
        writer.writerow([split.ids[row], split.names[row], split.class_names[label], split.class_names[guess], *shares])
    return lines.getvalue()


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


def _score(
    test: Split, evaluate: EvaluateSettings, *, predicted: np.ndarray, probe: np.ndarray, majority: int, seed: int
) -> dict[str, Any]:
    """Score the model, its probe and the most frequent class on the same examples."""
    chance = _chance(evaluate, seed) | {"groups": test.groups}

    def score(answers: np.ndarray) -> dict[str, Any]:
        return classification_metrics(test.labels, answers, test.class_names, **chance)

    return {
        "test": score(predicted),
        "probe": {"test": _summary(score(probe))},
        "majority": {
            "label": test.class_names[majority],
            "test": _summary(score(np.full(len(test), majority))),
        },
        "gain_over_probe": paired_gain(test.labels, predicted, probe, classes=len(test.class_names), **chance),
    }


def _chance(evaluate: EvaluateSettings, seed: int) -> Any:
    """Return how intervals are drawn."""
    return {"samples": evaluate.bootstrap_samples, "interval": evaluate.interval, "seed": seed}


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
