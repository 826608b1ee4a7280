"""Strategies: `probe` leaves the backbone alone, the others fine-tune it in one of the `recipes.WAYS`, with caution.

The learning rate is tried out first, and the probe ships unless validation prefers the fine-tuned model. `auto` tries
out every way that fits as well, searches the rates of the best two, gives the best the whole run (successive halving),
and ships it only if validation leaves no doubt that it is better than the probe.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.data.targets import REGRESSION
from regraft.errors import Diverged, TrainingError
from regraft.files import read_json, write_json
from regraft.progress import Progress
from regraft.tuning.augment import Augment, augment_spectrograms, augmentation
from regraft.tuning.batches import Batches, Source, text_lengths
from regraft.tuning.classifier import get_head, set_head
from regraft.tuning.devices import ONE_DEVICE, Devices
from regraft.tuning.layers import GROUPS, LEVELS, decayed_multipliers, gradual_multipliers, levels
from regraft.tuning.loop import Checkpoint, History, Plan, Trainer, freeze_statistics_and_tables, train
from regraft.tuning.mirrors import CHIRALITY_LIMIT, Flip, flip_is_safe
from regraft.tuning.objective import CLASSES, LIKENESS, SOFT_CLASSES, Objective
from regraft.tuning.pilots import Pilot, choose_rate, next_rate
from regraft.tuning.probe import Probe, assign_folds, refit_probe
from regraft.tuning.recipes import (
    JUDGING_FOLDS,
    Data,
    Recipe,
    Way,
    epochs_within,
    folds_to_judge,
    pilot_steps,
    refuse_what_does_not_fit,
)
from regraft.tuning.scores import Score
from regraft.tuning.soft_labels import mix, smooth
from regraft.tuning.solvers import Features, Labels
from regraft.tuning.verdict import Verdict, compare

log = logging.getLogger(__name__)

WARMUP_FRACTION = 0.1
# Fine-tuning starts from a head solved with so many times the probe's penalty. The probe fits small training sets
# perfectly, and then the few examples it is unsure of make all the gradients, which AdamW blows up to full steps in
# any direction; a head that still errs on many gives gradients worth following. Refined log loss after five epochs at
# 3e-4, from the probe's own penalty and from ten times that: trash 0.471 and 0.440 (600 photos), groceries at 128 px
# 0.327 and 0.255 (101 photos).
START_PENALTY_FACTOR = 10.0
# Below this many validation examples a quarter of the training data is held out of the pilots, to judge them as well.
ENOUGH_TO_JUDGE_PILOTS = 500
TYPICAL_PILOTS = 4  # of a search among five rates
FINALISTS = 2  # ways whose rates are searched, after one pilot of each
JUDGING_FOLD = 0
# Of the interval after which no further fold is asked: looking several times needs more than 95% each time.
BEYOND_DOUBT = 0.99
CHECKPOINT, PILOT_CHECKPOINT, PILOTS, BUDGET = "finetune.npz", "pilot.npz", "pilots.json", "budget.json"


@dataclass(frozen=True)
class Tuned:
    """What a strategy came to; the model given to it holds the weights that ship.

    Attributes:
        shipped: "probe" or the name of a way.
        why: One sentence with the numbers that decided.
        facts: For the report, ready for JSON: the same for the same data and seed.
        history: Of the final fine-tuning run; None if there was none.
        temperature: Of the fine-tuned model's logits on validation data, see `Objective.temperature`.
    """

    shipped: str
    why: str
    facts: dict[str, Any]
    history: History | None
    temperature: float = 1.0


def probe_only(probe: Probe, objective: Objective = CLASSES, reason: str = "Strategy probe.") -> Tuned:
    """Ship the solved head on the backbone as it is."""
    why = (
        f"{reason} The solved head ships on the frozen backbone, validation "
        f"{objective.loss_name} {probe.validation.log_loss:.4f}, "
        f"{objective.measure_name} {probe.validation.accuracy:.4f}."
    )
    return Tuned("probe", why, {"history": [], "best_epoch": 0, "tried": ()}, None)


def fine_tune(
    ways: tuple[Way, ...],
    models: Iterator[tuple[keras.Model, keras.Model]],
    data: Data,
    probe: Probe,
    recipe: Recipe,
    *,
    scratch: Path,
    run: str,
    devices: Devices = ONE_DEVICE,
) -> tuple[keras.Model, Tuned]:
    """Fine-tune from the probe in the best of `ways`; go back to the probe unless validation prefers the result.

    With one way, the fine-tuned model ships if it is better on validation; with several, the probe ships unless there
    is no doubt: see `verdict.compare`. Then, if the validation split is small, folds of the training data have a say
    too: both models are trained without the fold that judges them.

    Args:
        ways: To choose from; see `recipes.competitors`.
        models: As many equal models as are asked for: each backbone and head as `graft` makes them, the head being the
            probe's, and the part of it that makes features.
        data: Training and validation examples.
        probe: The solved head.
        recipe: What a person set.
        scratch: Folder for checkpoints and the results of pilots; a second call with the same `run` continues from
            them.
        run: Identifies data, settings and seed.
        devices: What trains; `models` must have been made in their scope.

    Returns:
        The model that ships, and what is to be said about it.

    Raises:
        TrainingError: If the loss stops being a number at the chosen rate, or a way does not fit the backbone.
    """
    objective = data.objective
    refuse_what_does_not_fit(ways, data, recipe)
    model, backbone = next(models)
    flip = Flip(False, None)
    if recipe.augment and data.train.kind == "image":
        flip = flip_is_safe(backbone, data, recipe)
    changes = {"image": augmentation(flip=flip.safe), "audio": augment_spectrograms}
    vary = changes.get(data.train.kind) if recipe.augment else None
    course = _Course(data, probe, recipe, vary=vary, scratch=scratch, run=run, devices=devices)
    turns = _Turns(course, chain([(model, backbone)], models))
    searches = isinstance(recipe.learning_rate, str)
    if recipe.budget_s is not None:
        course.recipe = course.within_budget(turns.of(ways[0]), ways, searches=searches)
        if not course.recipe.epochs:
            why = f"finetune.budget_s: {recipe.budget_s:g} is too little for one epoch, and short runs before it."
            return model, probe_only(probe, objective, why)
    contest = _compete(ways, course, turns, searches=searches)
    way = contest.way
    runner = turns.of(way)
    model = runner.model
    history = course.run(runner, contest.rate)
    runner.finish_head()
    probe_logits = probe.logits(data.validation_features[course.judged.rows])
    evidence = _Evidence(probe_logits, runner.logits(course.judged), course.judged_labels)
    temperature = objective.temperature(evidence.tuned_logits, evidence.labels)
    folds = 0
    if len(ways) > 1:
        evidence, folds = course.cross_validate(runner, contest.rate, evidence)
    verdict = evidence.verdict(objective, surely=len(ways) > 1)
    if not verdict.prefers_tuned:
        runner.reset()
    competition = contest.facts() if len(ways) > 1 else ()
    facts = {
        "learning_rate": contest.rate,
        "learning_rate_chosen_by": "pilot runs" if searches else "settings",
        "pilots": [asdict(pilot) for pilot in contest.pilots.get(way.name, [])],
        "augmentation": {
            "used": course.vary is not None,
            "flip": flip.safe,
            "chirality": flip.chirality,
            "chirality_limit": CHIRALITY_LIMIT,
        },
        "optimizer": "AdamW",
        "epochs": course.recipe.epochs,
        "averaged_epochs": history.averaged_epochs,
        **devices.facts(),
        "steps_per_epoch": course.everything.steps_per_epoch,
        "trained_weights": sum(int(np.prod(weight.shape)) for weight in model.trainable_variables),
        "history": [asdict(epoch) for epoch in history.epochs],
        "best_epoch": history.best_epoch,
        "lowest_epoch": history.lowest_epoch,
        "tried": competition,
        "comparison": {**asdict(verdict), "cross_validation_folds": folds},
    }
    why = verdict.sentence(history.best_epoch, objective)
    if len(ways) > 1:
        why = f"{why} Of the strategies tried in shorter runs {way.name} was best ({contest.in_words()})."
    shipped = way.name if verdict.prefers_tuned else "probe"
    return model, Tuned(shipped, why, facts, history, temperature)


def try_out(
    way: Way,
    model: keras.Model,
    backbone: keras.Model,
    data: Data,
    *,
    probe: Probe,
    recipe: Recipe,
    scratch: Path,
    run: str,
) -> Pilot:
    """Return how a short run at the middle one of the rates of `way` does, judged on held-out data.

    Arguments as for `fine_tune`; `model` and `backbone` are one of its `models`, and are left trained.
    """
    course = _Course(data, probe, recipe, vary=None, scratch=scratch, run=run, devices=ONE_DEVICE)
    [pilot] = course.run_pilots(_Runner(way, model, backbone, course), (way.rates[len(way.rates) // 2],))
    return pilot


@dataclass(frozen=True)
class _Contest:
    """Which way gets the whole run, at which peak rate, and how all did.

    Attributes:
        way: The winner.
        rate: Its peak rate.
        pilots: Short runs by name of way, in the order of the ways.
        rehearsals: Losses of whole runs without a fold of the training data, by name of way; see `_Course.rehearse`.
    """

    way: Way
    rate: float
    pilots: dict[str, list[Pilot]]
    rehearsals: dict[str, float | None]

    def facts(self) -> tuple[dict[str, Any], ...]:
        """Return a row for each way, ready for JSON: losses of the best pilot and of the rehearsal, and the pilots."""
        return tuple(
            {
                "strategy": name,
                "log_loss": min(_losses(runs), default=None),
                "rehearsal_log_loss": self.rehearsals.get(name),
                "pilots": [asdict(pilot) for pilot in runs],
            }
            for name, runs in self.pilots.items()
        )

    def in_words(self) -> str:
        """Return the losses of `facts` as a list in a sentence."""

        def say(loss: float | None) -> str:
            return "diverged" if loss is None else f"{loss:.4f}"

        short = ", ".join(f"{name} {say(min(_losses(runs), default=None))}" for name, runs in self.pilots.items())
        longer = ", ".join(f"{name} {say(loss)}" for name, loss in self.rehearsals.items())
        return f"held-out loss: {short}" + (f"; of the best two in longer runs: {longer}" if longer else "")


def _compete(ways: tuple[Way, ...], course: "_Course", turns: "_Turns", *, searches: bool) -> _Contest:
    """Let `ways` compete by successive halving: a pilot each; more rates for the best; a whole run, if that is short.

    Args:
        ways: At least one.
        course: What they run over.
        turns: Makes their runners.
        searches: Whether rates are to be found.

    Raises:
        TrainingError: If every pilot of every way diverged.
    """
    pilots: dict[str, list[Pilot]] = {}
    if len(ways) > 1:
        for way in ways:
            pilots[way.name] = course.run_pilots(turns.of(way), course.rates(way), most=1)
    rivals = finalists(ways, pilots)
    if searches:
        # The one whose turn it is goes first: the other's takes a model of its own.
        for way in sorted(rivals, key=lambda way: way is not turns.way):
            pilots[way.name] = course.run_pilots(turns.of(way), course.rates(way))
    rates = {
        way.name: choose_rate(pilots[way.name]) if searches else float(course.recipe.learning_rate) for way in rivals
    }
    rivals = sorted(rivals, key=lambda way: min(_losses(pilots.get(way.name, [])), default=math.inf))
    rehearsals: dict[str, float | None] = {}
    if len(rivals) > 1 and course.folds:
        for way in sorted(rivals, key=lambda way: way is not turns.way):
            rehearsals[way.name] = course.loss_in_rehearsal(turns.of(way), rates[way.name])
        rivals = sorted(rivals, key=lambda way: math.inf if (loss := rehearsals[way.name]) is None else loss)
    if len(ways) > 1:
        log.info("%s did best in shorter runs and gets the whole one", rivals[0].name)
    return _Contest(rivals[0], rates[rivals[0].name], pilots, rehearsals)


def finalists(ways: tuple[Way, ...], pilots: dict[str, list[Pilot]]) -> list[Way]:
    """Return the `FINALISTS` ways whose pilots have the lowest losses, the best first; of equal ones the earlier.

    Raises:
        TrainingError: If every pilot of every way diverged.
    """
    if len(ways) == 1:
        return list(ways)
    finished = [way for way in ways if _losses(pilots[way.name])]
    if not finished:
        choose_rate([pilot for runs in pilots.values() for pilot in runs])  # names the rates in its error
    return sorted(finished, key=lambda way: min(_losses(pilots[way.name])))[:FINALISTS]


def _losses(pilots: list[Pilot]) -> list[float]:
    return [pilot.log_loss for pilot in pilots if pilot.log_loss is not None]


def enable_lora(model: keras.Model, rank: int) -> None:
    """Freeze the backbone inside `model` and give its attention layers LoRA matrices of `rank`, which leave the head.

    Saving the model's weights stores each kernel with its matrices merged in, so a plain model loads them.

    Raises:
        TrainingError: If the backbone has no attention layers.
    """
    backbone = kerashub_backbone(model)
    if backbone is not None:
        backbone.enable_lora(rank)
    if backbone is None or not any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers()):
        raise TrainingError(
            "finetune.strategy: lora needs a backbone with attention (a transformer), such as one for texts; this one "
            f"({'unknown' if backbone is None else type(backbone).__name__}) has none. "
            "Use auto, lp_ft, gradual, full or probe."
        )


def has_attention(model: keras.Model) -> bool:
    """Return whether the backbone inside `model` has layers that LoRA can be added to."""
    backbone = kerashub_backbone(model)
    if backbone is None:
        return False
    names = set(backbone.default_lora_layer_names())
    return any(layer.name in names and hasattr(layer, "enable_lora") for layer in backbone._flatten_layers())


def kerashub_backbone(model: keras.Model) -> Any:
    """Return the KerasHub backbone inside `model`, or None."""
    import keras_hub

    inside = (layer for layer in model._flatten_layers() if isinstance(layer, keras_hub.models.Backbone))
    return next(inside, None)


@dataclass(frozen=True)
class _Evidence:
    """What both models say of examples that trained neither: outputs (N, K) and labels (N,) or (N, K)."""

    probe_logits: NDArray[np.float32]
    tuned_logits: NDArray[np.float32]
    labels: NDArray[Any]

    def with_more(self, more: "_Evidence") -> "_Evidence":
        """Return both together."""
        return _Evidence(
            np.concatenate([self.probe_logits, more.probe_logits]),
            np.concatenate([self.tuned_logits, more.tuned_logits]),
            np.concatenate([self.labels, more.labels]),
        )

    def verdict(self, objective: Objective, **options: Any) -> Verdict:
        """Return what `verdict.compare` makes of it with `options`."""
        return compare(self.probe_logits, self.tuned_logits, self.labels, objective, **options)


class _Course:
    """The batches that all ways learn from and are judged by, and the runs over them."""

    def __init__(
        self,
        data: Data,
        probe: Probe,
        recipe: Recipe,
        *,
        vary: Augment | None,
        scratch: Path,
        run: str,
        devices: Devices,
    ) -> None:
        self.devices = devices
        self.data, self.probe, self.recipe, self.vary = data, probe, recipe, vary
        self._scratch, self._run = scratch, run
        is_text = data.train.kind == "text"
        self._lengths = text_lengths(data.train) if is_text else None
        # Like lengths side by side waste no time on padding; the order changes no mean.
        by_length = (
            np.argsort(text_lengths(data.validation), kind="stable")
            if is_text
            else np.arange(len(data.validation.labels))
        )
        self.objective = SOFT_CLASSES if recipe.softens and data.objective.labels_are_indices else data.objective
        self.everything = self._batches(data.train, np.arange(len(data.train.labels)), self._lengths)
        self.judged = self._batches(data.validation, by_length, None)
        self.judged_labels = data.validation.labels[by_length]
        self._fold_of = assign_folds(data.objective.groupings(data.train.labels)[0], JUDGING_FOLDS)
        # Of the training data, those that help to decide where validation examples are too few to.
        self.folds = [
            fold
            for fold in range(folds_to_judge(len(data.train.labels), len(data.validation.labels)))
            if (self._fold_of == fold).any()
        ]

    def _batches(self, source: Source, rows: Labels, lengths: Labels | None) -> Batches:
        recipe = self.recipe
        vary_batch = self._soften if recipe.softens else None
        return Batches(
            source, rows, self.data.prepare, recipe.batch_size, recipe.seed, self.vary, lengths, vary_batch=vary_batch
        )

    def _soften(self, inputs: Any, labels: tf.Tensor, seed: tf.Tensor) -> tuple[Any, tf.Tensor]:
        recipe, data = self.recipe, self.data
        if data.objective.task != REGRESSION:
            labels = smooth(labels, data.classes, recipe.label_smoothing)
        return mix(inputs, labels, seed, recipe.mixup) if recipe.mixup else (inputs, labels)

    def within_budget(self, runner: "_Runner", ways: tuple[Way, ...], *, searches: bool) -> Recipe:
        """Return the recipe with as many epochs as `budget_s` allows beside the pilots; perhaps none.

        How fast it goes is measured once and kept in scratch, so that a run that is interrupted keeps to its plan.
        """
        recipe, file = self.recipe, self._scratch / BUDGET
        self.devices.copy_from_chief(file)
        kept = read_json(file) if file.exists() else {}
        if kept.get("run") != self._run:
            first_s, step_s = _seconds_of_steps(runner, self.everything)
            runner.reset()
            final = min(len(ways), FINALISTS)
            pilots = (len(ways) if len(ways) > 1 else 0) + (final * TYPICAL_PILOTS if searches else 0)
            compiling_s = first_s * (len(ways) + final if len(ways) > 1 else 1)
            # Validation has no backward pass, which is two thirds of a step.
            per_epoch = self.everything.steps_per_epoch + len(self.judged.rows) / recipe.batch_size / 3.0
            # One of them is that of a finalist which then does not get the whole run.
            rehearsals = len(self.folds) + bool(self.folds) if len(ways) > 1 else 0
            steps = (float(recipe.budget_s or 0.0) - compiling_s) / step_s
            epochs = epochs_within(
                steps, recipe.epochs, steps_per_epoch=per_epoch, pilots=pilots, rehearsals=rehearsals
            )
            log.info("a step takes %.3f s: %d epochs in %g s", step_s, epochs, recipe.budget_s)
            write_json(file, {"run": self._run, "epochs": epochs})
            self.devices.copy_from_chief(file)
            kept = read_json(file)
        return replace(recipe, epochs=kept["epochs"])

    def rates(self, way: Way) -> tuple[float, ...]:
        """Return the rates worth trying: those of the way, or the one that is set."""
        return way.rates if isinstance(self.recipe.learning_rate, str) else (self.recipe.learning_rate,)

    def plan(self, runner: "_Runner", epochs: int, steps_per_epoch: int, rate: float, patience_epochs: int) -> Plan:
        total = epochs * steps_per_epoch
        warmup = max(1, round(WARMUP_FRACTION * total))
        soup = self.recipe.soup
        return Plan(epochs, steps_per_epoch, rate, warmup, patience_epochs, soup, runner.unfreezing(total))

    def run(self, runner: "_Runner", rate: float) -> History:
        """Give `runner` the whole run at peak rate `rate`."""
        recipe, everything, trainer = self.recipe, self.everything, runner.trainer
        runner.begin(np.arange(len(self.data.train.labels)))
        per_epoch = min(len(everything.rows), everything.steps_per_epoch * recipe.batch_size)
        noun = {"text": "texts", "image": "images"}.get(self.data.train.kind, "recordings")
        progress = Progress(log, f"fine-tuning ({runner.way.name})", recipe.epochs * per_epoch, noun)
        return train(
            trainer,
            self.plan(runner, recipe.epochs, everything.steps_per_epoch, rate, recipe.patience_epochs),
            runner.batches(everything).training,
            lambda: runner.score(self.judged, self.judged_labels),
            checkpoint=Checkpoint(self._scratch / CHECKPOINT, f"{self._run}/{runner.way.name}"),
            on_batch=lambda examples, loss: progress.advance(examples, f"loss {loss:.3f}"),
        )

    def cross_validate(self, runner: "_Runner", rate: float, evidence: "_Evidence") -> tuple["_Evidence", int]:
        """Return `evidence` with that of as many folds as it takes to decide, and how many; leave `runner` as it is."""
        finished, asked = runner.state(), 0
        for fold in self.folds:
            evidence, asked = evidence.with_more(self.rehearse(runner, rate, fold)), asked + 1
            if evidence.verdict(self.data.objective, confidence=BEYOND_DOUBT).is_certain:
                break
        runner.restore(finished)
        return evidence, asked

    def loss_in_rehearsal(self, runner: "_Runner", rate: float) -> float | None:
        """Return the mean of the losses on validation data and on its fold after a rehearsal; None if it diverged."""
        try:
            held_out = self.rehearse(runner, rate, self.folds[0])
        except Diverged as error:
            log.info("%s at learning rate %g: %s", runner.way.name, rate, error)
            return None
        objective = self.data.objective
        of_fold = objective.score(held_out.tuned_logits, held_out.labels)
        of_validation = objective.score(runner.logits(self.judged), self.judged_labels)
        loss = (of_fold.refined_log_loss + of_validation.refined_log_loss) / 2.0
        log.info("%s without fold 1: held-out %s %.4f", runner.way.name, objective.loss_name, loss)
        return loss

    def rehearse(self, runner: "_Runner", rate: float, fold: int) -> "_Evidence":
        """Make the whole run without a fold of the training data, and return what is said of that fold.

        The runner keeps the model that came out, and a second call continues from its checkpoint, the end.

        Raises:
            Diverged: If the loss stops being a number.
        """
        data, recipe = self.data, self.recipe
        labels = data.train.labels
        learned, held_out = np.flatnonzero(self._fold_of != fold), np.flatnonzero(self._fold_of == fold)
        log.info("cross-validation, fold %d: training on %d, judging by %d", fold + 1, len(learned), len(held_out))
        runner.begin(learned)
        batches = self.everything.of(learned)
        name = f"rehearsal-{runner.way.name}-{fold}"
        train(
            runner.trainer,
            self.plan(runner, recipe.epochs, batches.steps_per_epoch, rate, recipe.patience_epochs),
            runner.batches(batches).training,
            lambda: runner.score(self.judged, self.judged_labels),
            checkpoint=Checkpoint(self._scratch / f"{name}.npz", f"{self._run}/{name}"),
        )
        runner.finish_head()
        kernel, bias = refit_probe(
            data.train_features[learned], labels[learned],
            classes=data.classes, penalty=self.probe.penalty, objective=data.objective,
        )  # fmt: skip
        probe_logits = data.train_features[held_out] @ kernel + bias
        return _Evidence(probe_logits, runner.logits(batches.of(held_out)), labels[held_out])

    def run_pilots(self, runner: "_Runner", rates: tuple[float, ...], *, most: int | None = None) -> list[Pilot]:
        """Run pilots until `next_rate` has none left, or until there are so many.

        Results are kept in scratch, for a search that goes on and for one that was interrupted.
        """
        data, everything = self.data, self.everything
        held_out = np.array([], np.int64)
        learned = np.arange(len(data.train.labels))
        if len(data.validation.labels) < ENOUGH_TO_JUDGE_PILOTS:
            held_out, learned = (
                np.flatnonzero(self._fold_of == JUDGING_FOLD),
                np.flatnonzero(self._fold_of != JUDGING_FOLD),
            )
            everything = everything.of(learned)
        judges = [(self.judged, self.judged_labels)]
        if len(held_out):
            lengths = self._lengths
            held_out = held_out if lengths is None else held_out[np.argsort(lengths[held_out], kind="stable")]
            judges.append((everything.of(held_out), data.train.labels[held_out]))
        steps = pilot_steps(self.recipe.epochs * self.everything.steps_per_epoch)
        file = self._scratch / PILOTS
        self.devices.copy_from_chief(file)
        kept = read_json(file) if file.exists() else {}
        known = kept["pilots"] if kept.get("run") == self._run else {}
        pilots = [Pilot(**pilot) for pilot in known.get(runner.way.name, [])]
        while (most is None or len(pilots) < most) and (rate := next_rate(pilots, rates)) is not None:
            # A head that has never seen the rows that judge.
            runner.begin(learned)
            name = f"{runner.way.name} at learning rate {rate:g}"
            batch = min(everything.batch_size, len(everything.rows))
            progress = Progress(log, f"trying {name}", steps * batch, "examples")
            checkpoint = Checkpoint(self._scratch / PILOT_CHECKPOINT, f"{self._run}/{name}")
            plan = self.plan(runner, 1, steps, rate, 1)
            pilots.append(_pilot(runner, plan, everything, judges, progress=progress, checkpoint=checkpoint))
            if (loss := pilots[-1].log_loss) is not None:
                log.info("%s: held-out %s %.4f", name, data.objective.loss_name, loss)
            known[runner.way.name] = [asdict(pilot) for pilot in pilots]
            write_json(file, {"run": self._run, "pilots": known})
            checkpoint.file.unlink(missing_ok=True)
        return pilots[:most]  # of a search that was interrupted there may be more


class _Turns:
    """Runners one at a time: several at once, with their optimizers, would not fit into a small GPU's memory."""

    def __init__(self, course: _Course, models: Iterator[tuple[keras.Model, keras.Model]]) -> None:
        self._course, self._models = course, models
        self._runner: _Runner | None = None

    @property
    def way(self) -> Way | None:
        """The way whose turn it is."""
        return self._runner.way if self._runner else None

    def of(self, way: Way) -> "_Runner":
        """Return a runner for `way`, made anew unless it is the one whose turn it is."""
        if self._runner is None or self._runner.way is not way:
            self._runner = None
            self._runner = _Runner(way, *next(self._models), self._course)
        return self._runner


class _Runner:
    """A model set up for one way, which can begin again and again."""

    def __init__(self, way: Way, model: keras.Model, backbone: keras.Model, course: _Course) -> None:
        self.way = way
        self._course, self.model = course, model
        self._rows = np.arange(len(course.data.train.labels))
        if way.lora_rank:
            enable_lora(model, way.lora_rank)
        learner = backbone if way.contrastive else model
        if not way.everything_learns:
            freeze_statistics_and_tables(learner)
        multipliers = None
        if way.gradual:
            multipliers = np.ones(len(learner.trainable_variables), np.float32)  # `unfreezing` sets them at every step
        elif course.recipe.layer_decay < 1.0 and not way.lora_rank:
            multipliers = decayed_multipliers(levels(learner, LEVELS), course.recipe.layer_decay)
        objective = LIKENESS if way.contrastive else course.objective
        self.trainer = Trainer(
            learner,
            objective,
            l2_sp=course.recipe.l2_sp,
            multipliers=multipliers,
            devices=course.devices,
            accumulate=course.recipe.accumulate,
            everything_learns=way.everything_learns,
        )
        self._untouched = self.state()

    def state(self) -> tuple[Any, tuple[Features, Features]]:
        """Return all that training changes, for `restore`."""
        return self.trainer.state(), get_head(self.model)

    def restore(self, state: tuple[Any, tuple[Features, Features]]) -> None:
        """Set everything back to `state`."""
        self.trainer.restore(state[0])
        set_head(self.model, *state[1])

    def reset(self) -> None:
        """Set everything back to the untouched backbone with the probe's head."""
        self.restore(self._untouched)

    def begin(self, rows: Labels) -> None:
        """Set everything back, with the head that learning from `rows` of the training data starts from."""
        self.reset()
        self._rows = rows
        if self.way.head == "zero":
            set_head(self.model, *(np.zeros_like(part) for part in get_head(self.model)))
        elif not self.way.contrastive:
            self._solve_head(self._course.data.train_features[rows], START_PENALTY_FACTOR * self._course.probe.penalty)

    def batches(self, everything: Batches) -> Batches:
        """Return the batches this way learns from."""
        return replace(everything, in_pairs=True, vary_batch=None) if self.way.contrastive else everything

    def finish_head(self) -> None:
        """Solve the head on the features as they are now, if it did not learn with them."""
        if self.way.contrastive:
            batches = self._course.everything.of(self._rows)
            self._solve_head(self.trainer.logits(batches.in_order()), self._course.probe.penalty)

    def logits(self, batches: Batches) -> NDArray[np.float32]:
        """Return the outputs of backbone and head for all rows of `batches`, float32, shape (N, K)."""
        outputs = self.trainer.logits(batches.in_order())
        if not self.way.contrastive:
            return outputs
        kernel, bias = get_head(self.model)
        return outputs @ kernel + bias

    def score(self, batches: Batches, labels: Labels) -> Score:
        """Return the score of the model as it is now."""
        self.finish_head()
        return self._course.data.objective.score(self.logits(batches), labels)

    def _solve_head(self, features: Features, penalty: float) -> None:
        data = self._course.data
        labels = data.train.labels[self._rows]
        head = refit_probe(features, labels, classes=data.classes, penalty=penalty, objective=data.objective)
        set_head(self.model, *head)

    def unfreezing(self, total_steps: int) -> Callable[[int], NDArray[np.float32]] | None:
        """Return which weights learn when, in a run of `total_steps`; None if all do at any time."""
        return gradual_multipliers(levels(self.trainer.model, GROUPS), total_steps) if self.way.gradual else None


def _seconds_of_steps(runner: _Runner, batches: Batches) -> tuple[float, float]:
    """Return how long the first training step takes, which compiles, and a later one, with its share of the input.

    The median of the last three of eight: batches that were made while the first step was compiled have been used up.
    """
    runner.begin(batches.rows)
    seconds, began = [], time.monotonic()
    for inputs, labels in runner.batches(batches).training_steps(8):
        runner.trainer.step(inputs, labels, 0.0)
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
    return seconds[0], float(np.median(seconds[-3:]))


def _pilot(
    runner: _Runner,
    plan: Plan,
    batches: Batches,
    judges: list[tuple[Batches, Labels]],
    *,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Pilot:
    """Train by `plan` and judge; a loss that is not a number is an answer here, not an error."""
    scores: list[Score] = []

    def validate() -> Score:
        scores.extend(runner.score(judge, labels) for judge, labels in judges)
        return scores[0]

    try:
        train(
            runner.trainer,
            plan,
            lambda _, taken: runner.batches(batches).training_steps(plan.total_steps, taken),
            validate,
            checkpoint=checkpoint,
            on_batch=lambda examples, loss: progress.advance(examples, f"loss {loss:.3f}"),
        )
    except Diverged as error:
        log.info("learning rate %g is too high: %s", plan.peak_rate, error)
        return Pilot(plan.peak_rate, None, None, None)
    if not scores:  # continued from a checkpoint of its very end
        validate()
    losses = [judged.refined_log_loss for judged in scores]
    return Pilot(plan.peak_rate, sum(losses) / len(losses), losses[0], losses[1] if len(losses) > 1 else None)
