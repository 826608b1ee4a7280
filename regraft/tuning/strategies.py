"""Ways to tune a grafted model: `probe` leaves the backbone alone, `lp_ft` fine-tunes both from the solved head.

`lp_ft` is LP-FT of Kumar et al., 2022 (arXiv:2202.10054): starting from a solved head keeps the first steps from
tearing up features for the sake of a random one. What it adds is caution: the learning rate is tried out first, and
the probe ships unless validation prefers the fine-tuned model.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.errors import Diverged, TrainingError
from regraft.files import read_json, write_json
from regraft.progress import Progress
from regraft.tuning.augment import augment_spectrogram, augmentation
from regraft.tuning.batches import Batches, Source, text_lengths
from regraft.tuning.classifier import set_head
from regraft.tuning.loop import Checkpoint, History, Plan, State, Trainer, train
from regraft.tuning.objective import CLASSES, Objective
from regraft.tuning.probe import Probe, assign_folds, refit_probe
from regraft.tuning.scores import Score
from regraft.tuning.solvers import Features, Labels

log = logging.getLogger(__name__)

# Peak rates of AdamW worth trying, a factor of about three apart. The search begins at `FIRST_RATE` and walks uphill.
RATES = (1.0e-5, 3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3)
FIRST_RATE = 1.0e-4
# A pilot that is too short favours rates that are too low: on MNIST (505 steps in all) 40 steps preferred 1e-4 to
# 3e-4, 100 steps 3e-4, which is right. A quarter of the run is enough, and 100 steps are.
PILOT_FRACTION = 0.25
PILOT_STEPS_MOST = 100
WARMUP_FRACTION = 0.1
# Fine-tuning starts from a head solved with so many times the probe's penalty. The probe fits small training sets
# perfectly, and then the few examples it is unsure of make all the gradients, which AdamW blows up to full steps in
# any direction; a head that still errs on many gives gradients worth following. Refined log loss after five epochs at
# 3e-4, from the probe's own penalty and from ten times that: trash 0.471 and 0.440 (600 photos), groceries at 128 px
# 0.327 and 0.255 (101 photos).
START_PENALTY_FACTOR = 10.0
# Below this many validation examples a quarter of the training data is held out of the pilots, to judge them as well.
ENOUGH_TO_JUDGE_PILOTS = 500
JUDGING_FOLD = 0
JUDGING_FOLDS = 4
CHIRALITY_SAMPLE = 512
CHIRALITY_FOLDS = 4
# Measured with EfficientNet-Lite0: trash 0.50, groceries 0.61, MNIST digits 0.83, hand signs 0.87.
CHIRALITY_LIMIT = 0.70


@dataclass(frozen=True)
class Data:
    """Training and validation examples with the frozen backbone's features of each.

    Attributes:
        train: Encoded images, recordings or texts, and labels.
        validation: The same of the validation split.
        train_features: float32, shape (N, D), in row order.
        validation_features: float32, shape (M, D), in row order.
        prepare: `Extractor.prepare`.
        classes: K, the number of outputs.
        objective: What training aims at; decides the shape of labels.
    """

    train: Source
    validation: Source
    train_features: Features
    validation_features: Features
    prepare: Callable[[tf.Tensor], Any]
    classes: int
    objective: Objective = CLASSES


@dataclass(frozen=True)
class Recipe:
    """What a person sets for fine-tuning.

    Attributes:
        epochs: At most so many passes over the training data.
        batch_size: Examples a step.
        learning_rate: Peak rate, or "auto".
        patience_epochs: Stop after so many epochs in a row that are clearly worse on validation than the best one.
        augment: Whether training images and recordings are varied.
        seed: Decides order, augmentation and dropout.
    """

    epochs: int
    batch_size: int
    learning_rate: float | str
    patience_epochs: int
    augment: bool
    seed: int


@dataclass(frozen=True)
class Tuned:
    """What a strategy came to; the model given to it holds the weights that ship.

    Attributes:
        shipped: "probe" or "lp_ft".
        why: One sentence with the numbers that decided.
        facts: For the report, ready for JSON: the same for the same data and seed.
        history: Of the final fine-tuning run; None if there was none.
    """

    shipped: str
    why: str
    facts: dict[str, Any]
    history: History | None


def probe_only(probe: Probe, objective: Objective = CLASSES) -> Tuned:
    """Ship the solved head on the backbone as it is."""
    why = (
        "Strategy probe: the solved head ships on the frozen backbone, validation "
        f"{objective.loss_name} {probe.validation.log_loss:.4f}, "
        f"{objective.measure_name} {probe.validation.accuracy:.4f}."
    )
    return Tuned("probe", why, {"history": [], "best_epoch": 0}, None)


def lp_ft(
    model: keras.Model, backbone: keras.Model, data: Data, probe: Probe, recipe: Recipe, *, scratch: Path, run: str
) -> Tuned:
    """Fine-tune `model` from the probe; go back to the probe unless validation prefers the result.

    Args:
        model: Backbone and head as `graft` makes them, the head being the probe's. Changed in place.
        backbone: The part of `model` that makes features.
        data: Training and validation examples.
        probe: The solved head.
        recipe: What a person set.
        scratch: Folder for checkpoints and the results of pilots; a second call with the same `run` continues from
            them.
        run: Identifies data, settings and seed.

    Raises:
        TrainingError: If the loss stops being a number at the chosen rate.
    """
    objective = data.objective
    flip = _Flip(False, None)
    if recipe.augment and data.train.kind == "image":
        flip = flip_is_safe(backbone, data, recipe)
    ways = {"image": augmentation(flip=flip.safe), "audio": augment_spectrogram}
    vary = ways.get(data.train.kind) if recipe.augment else None
    is_text = data.train.kind == "text"
    train_lengths = text_lengths(data.train) if is_text else None
    validation_lengths = text_lengths(data.validation) if is_text else None

    def batches(source: Source, rows: Labels, lengths: Labels | None) -> Batches:
        return Batches(source, rows, data.prepare, recipe.batch_size, recipe.seed, vary, lengths)

    trainer = Trainer(model, objective)
    untouched = trainer.state()
    set_head(model, *_starting_head(data, probe, np.arange(len(data.train.labels))))
    start = trainer.state()
    everything = batches(data.train, np.arange(len(data.train.labels)), train_lengths)
    # Like lengths side by side waste no time on padding; the order changes no mean.
    by_length = (
        np.arange(len(data.validation.labels))
        if validation_lengths is None
        else np.argsort(validation_lengths, kind="stable")
    )
    judged = batches(data.validation, by_length, None)
    judged_labels = data.validation.labels[by_length]

    pilots: list[Pilot] = []
    if isinstance(recipe.learning_rate, float):
        rate = recipe.learning_rate
    else:
        pilots = _run_pilots(
            trainer,
            data,
            probe,
            start=start,
            everything=everything,
            judged=judged,
            lengths=train_lengths,
            plan_steps=recipe.epochs * everything.steps_per_epoch,
            scratch=scratch,
            run=run,
        )
        rate = choose_rate(pilots)
    trainer.restore(start)

    steps = everything.steps_per_epoch
    plan = _plan(recipe.epochs, steps, rate, recipe.patience_epochs)
    per_epoch = min(len(everything.rows), steps * recipe.batch_size)
    noun = {"text": "texts", "image": "images"}.get(data.train.kind, "recordings")
    progress = Progress(log, "fine-tuning", recipe.epochs * per_epoch, noun)
    history = train(
        trainer,
        plan,
        everything.training,
        lambda: objective.score(trainer.logits(judged.in_order()), judged_labels),
        checkpoint=Checkpoint(scratch / "finetune.npz", run),
        on_batch=lambda examples, loss: progress.advance(examples, f"loss {loss:.3f}"),
    )
    tuned_logits = trainer.logits(judged.in_order())
    verdict = compare(probe.logits(data.validation_features[by_length]), tuned_logits, judged_labels, objective)
    if not verdict.prefers_tuned:
        trainer.restore(untouched)
    facts = {
        "learning_rate": rate,
        "learning_rate_chosen_by": "pilot runs" if pilots else "settings",
        "pilots": [asdict(pilot) for pilot in pilots],
        "augmentation": {
            "used": vary is not None,
            "flip": flip.safe,
            "chirality": flip.chirality,
            "chirality_limit": CHIRALITY_LIMIT,
        },
        "optimizer": "AdamW",
        "steps_per_epoch": steps,
        "history": [asdict(epoch) for epoch in history.epochs],
        "best_epoch": history.best_epoch,
        "lowest_epoch": history.lowest_epoch,
        "comparison": asdict(verdict),
    }
    why = verdict.sentence(history.best_epoch, objective)
    return Tuned("lp_ft" if verdict.prefers_tuned else "probe", why, facts, history)


@dataclass(frozen=True)
class Verdict:
    """The probe against the fine-tuned model on the same validation examples.

    Attributes:
        probe_log_loss: As `scores.Score.refined_log_loss`.
        tuned_log_loss: As `scores.Score.refined_log_loss`.
        gained: Examples that the fine-tuned model answers better, see `Objective.gained_and_lost`.
        lost: Examples that the probe answers better.
        examples: How many were compared.
        prefers_tuned: Whether the fine-tuned model ships.
    """

    probe_log_loss: float
    tuned_log_loss: float
    gained: int
    lost: int
    examples: int
    prefers_tuned: bool

    def sentence(self, best_epoch: int, objective: Objective = CLASSES) -> str:
        """Return the decision and its reasons in words."""
        losses = (
            f"refined validation {objective.loss_name} {self.tuned_log_loss:.4f} against the probe's "
            f"{self.probe_log_loss:.4f}"
        )
        answers = objective.gains.format(gained=self.gained, lost=self.lost, examples=self.examples)
        if self.prefers_tuned:
            decision = "The fine-tuned model ships"
        else:
            decision = "The probe ships, validation does not prefer the fine-tuned model"
        return f"{decision} (epoch {best_epoch}): {losses}, {answers}."


def compare(
    probe_logits: NDArray[np.floating],
    tuned_logits: NDArray[np.floating],
    labels: NDArray[Any],
    objective: Objective = CLASSES,
) -> Verdict:
    """Judge the fine-tuned model against the probe on examples that trained neither.

    The fine-tuned model is preferred if its loss is lower and it does not lose more answers than chance explains:
    with g answers gained and l lost, at most sqrt(g + l) more lost than gained (one standard error of the paired
    difference). The loss leads because it sees every example, where accuracy sees only the few that change sides.

    Args:
        probe_logits: Shape (N, K).
        tuned_logits: Shape (N, K), same rows.
        labels: Shape (N,) or (N, K).
        objective: What the outputs are.
    """
    gained, lost = objective.gained_and_lost(probe_logits, tuned_logits, labels)
    probe_loss, tuned_loss = (
        float(objective.score(logits, labels).refined_log_loss) for logits in (probe_logits, tuned_logits)
    )
    preferred = tuned_loss < probe_loss and lost - gained <= (gained + lost) ** 0.5
    return Verdict(probe_loss, tuned_loss, gained, lost, len(labels), preferred)


@dataclass(frozen=True)
class Pilot:
    """A short run at one rate, annealed to zero like the real one, and how it judged.

    Attributes:
        rate: Peak learning rate.
        log_loss: What decides: the mean of the losses of each kind of held-out data; None if training diverged.
        validation_log_loss: On the validation split; None if training diverged.
        held_out_log_loss: On training examples kept out of the pilot; None if the validation split is large enough
            alone.
    """

    rate: float
    log_loss: float | None
    validation_log_loss: float | None
    held_out_log_loss: float | None


def choose_rate(pilots: list[Pilot]) -> float:
    """Return the rate with the lowest log loss; the lower rate of two equal ones.

    Raises:
        TrainingError: If every pilot diverged.
    """
    finished = [(pilot.log_loss, pilot.rate) for pilot in pilots if pilot.log_loss is not None]
    if not finished:
        tried = ", ".join(f"{pilot.rate:g}" for pilot in pilots)
        raise TrainingError(
            f"the loss stopped being a number at every learning rate that was tried ({tried}). "
            "Check the data for examples that are not what they should be, or set finetune.strategy: probe."
        )
    return min(finished)[1]


def next_rate(pilots: list[Pilot]) -> float | None:
    """Return the rate to try next, walking from `FIRST_RATE` downhill; None when both neighbours are worse.

    The loss is taken to have one valley over the rates, so three or four pilots find its bottom among five rates.
    """
    if not pilots:
        return FIRST_RATE
    losses = {pilot.rate: float("inf") if pilot.log_loss is None else pilot.log_loss for pilot in pilots}
    best = RATES.index(min(losses, key=lambda rate: (losses[rate], rate)))
    for neighbour in (best + 1, best - 1):
        if 0 <= neighbour < len(RATES) and RATES[neighbour] not in losses:
            return RATES[neighbour]
    return None


def _run_pilots(
    trainer: Trainer,
    data: Data,
    probe: Probe,
    *,
    start: State,
    everything: Batches,
    judged: Batches,
    lengths: Labels | None,
    plan_steps: int,
    scratch: Path,
    run: str,
) -> list[Pilot]:
    """Run pilots until `next_rate` has none left; results are kept in `scratch` for a search that is interrupted."""
    held_out = np.array([], np.int64)
    head = None
    if len(data.validation.labels) < ENOUGH_TO_JUDGE_PILOTS:
        fold_of = assign_folds(data.objective.groupings(data.train.labels)[0], JUDGING_FOLDS)
        held_out, rest = np.flatnonzero(fold_of == JUDGING_FOLD), np.flatnonzero(fold_of != JUDGING_FOLD)
        # A head that has never seen the rows that judge.
        head = _starting_head(data, probe, rest)
        everything = everything.of(rest)
    judges = [(judged, data.validation.labels[judged.rows])]
    if len(held_out):
        held_out = held_out if lengths is None else held_out[np.argsort(lengths[held_out], kind="stable")]
        judges.append((everything.of(held_out), data.train.labels[held_out]))
    steps = max(1, min(PILOT_STEPS_MOST, round(PILOT_FRACTION * plan_steps)))
    file = scratch / "pilots.json"
    kept = read_json(file) if file.exists() else {}
    pilots = [Pilot(**pilot) for pilot in kept["pilots"]] if kept.get("run") == run else []
    while (rate := next_rate(pilots)) is not None:
        trainer.restore(start)
        if head is not None:
            set_head(trainer.model, *head)
        progress = Progress(log, f"trying learning rate {rate:g}", steps * everything.batch_size, "examples")
        pilots.append(_pilot(trainer, _plan(1, steps, rate, 1), everything, judges, progress))
        if (loss := pilots[-1].log_loss) is not None:
            log.info("learning rate %g: held-out %s %.4f", rate, data.objective.loss_name, loss)
        write_json(file, {"run": run, "pilots": [asdict(pilot) for pilot in pilots]})
    return pilots


def _starting_head(data: Data, probe: Probe, rows: Labels) -> tuple[Features, Features]:
    """Return kernel (D, K) and bias (K,) that fine-tuning on `rows` starts from."""
    features, labels = data.train_features[rows], data.train.labels[rows]
    penalty = START_PENALTY_FACTOR * probe.penalty
    return refit_probe(features, labels, classes=data.classes, penalty=penalty, objective=data.objective)


def _pilot(
    trainer: Trainer, plan: Plan, batches: Batches, judges: list[tuple[Batches, Labels]], progress: Progress
) -> Pilot:
    """Train by `plan` and judge; a loss that is not a number is an answer here, not an error."""
    scores: list[Score] = []

    def validate() -> Score:
        scores.extend(trainer.objective.score(trainer.logits(judge.in_order()), labels) for judge, labels in judges)
        return scores[0]

    try:
        train(
            trainer,
            plan,
            lambda _: batches.training_steps(plan.total_steps),
            validate,
            on_batch=lambda examples, loss: progress.advance(examples, f"loss {loss:.3f}"),
        )
    except Diverged as error:
        log.info("learning rate %g is too high: %s", plan.peak_rate, error)
        return Pilot(plan.peak_rate, None, None, None)
    losses = [judged.refined_log_loss for judged in scores]
    return Pilot(plan.peak_rate, sum(losses) / len(losses), losses[0], losses[1] if len(losses) > 1 else None)


def _plan(epochs: int, steps_per_epoch: int, rate: float, patience_epochs: int) -> Plan:
    warmup = max(1, round(WARMUP_FRACTION * epochs * steps_per_epoch))
    return Plan(epochs, steps_per_epoch, rate, warmup, patience_epochs)


@dataclass(frozen=True)
class _Flip:
    """Whether mirror images are shown in training, and the evidence (None if nothing was measured)."""

    safe: bool
    chirality: float | None


def flip_is_safe(backbone: keras.Model, data: Data, recipe: Recipe) -> _Flip:
    """Decide from the training images whether mirroring keeps them what they are.

    Mirrored photos of things are as likely as the photos themselves; mirrored digits, letters and arrows are not, and
    may belong to another class. Where originals can be told from their mirror images (`chirality` above
    `CHIRALITY_LIMIT`), images are not flipped. Costs one frozen forward pass over at most `CHIRALITY_SAMPLE` images.

    Source: the question is that of Lin, Sun, Davis & Snavely, Visual Chirality, 2020 (arXiv:2006.09512).
    """
    rows = np.arange(
        min(CHIRALITY_SAMPLE, len(data.train.labels))
    )  # rows are in the order of content hashes: a random sample
    forward = tf.function(lambda images: backbone(tf.reverse(images, [2]), training=False), reduce_retracing=True)
    images = Batches(data.train, rows, data.prepare, recipe.batch_size, recipe.seed).in_order()
    mirrored = np.concatenate([forward(batch).numpy() for batch, _ in images])
    differences = data.train_features[rows] - mirrored
    # Mirroring must keep every target what it is.
    value = max(chirality(differences, group) for group in data.objective.groupings(data.train.labels[rows]))
    safe = value <= CHIRALITY_LIMIT
    log.info(
        "images are told from their mirror images %.0f%% of the time (limit %.0f%%): training %s mirror images",
        100 * value, 100 * CHIRALITY_LIMIT, "uses" if safe else "does not use",
    )  # fmt: skip
    return _Flip(safe, value)


def chirality(differences: Features, labels: Labels) -> float:
    """Return how often the original of a pair (image, mirror image) is recognised, in [0, 1]; 0.5 is guessing.

    Each pair is judged by the mean difference of the other folds' pairs of its class: by class, because arrows to the
    left and arrows to the right make up a symmetric set in which no arrow may be mirrored.

    Args:
        differences: Features of the image minus features of its mirror image, float32, shape (N, D).
        labels: Shape (N,).
    """
    deviations = differences.std(axis=0)
    scaled = differences / np.where(deviations > 1e-6, deviations, 1.0)
    fold_of = assign_folds(labels, CHIRALITY_FOLDS)
    votes: list[NDArray[np.bool_]] = []
    for label in np.unique(labels):
        for fold in range(CHIRALITY_FOLDS):
            judged = (labels == label) & (fold_of == fold)
            others = (labels == label) & (fold_of != fold)
            if judged.any() and others.any():
                votes.append(scaled[judged] @ scaled[others].mean(axis=0) > 0.0)
    return float(np.concatenate(votes).mean()) if votes else 1.0
