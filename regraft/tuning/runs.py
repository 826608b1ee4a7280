"""Runs of fine-tuning: short ones that try a rate out, whole ones, and those without a fold of the training data."""

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import Diverged
from regraft.files import read_json, write_json
from regraft.progress import Progress
from regraft.tuning.batches import Batches
from regraft.tuning.course import Course
from regraft.tuning.loop import Checkpoint, History, Plan, train
from regraft.tuning.objective import Objective
from regraft.tuning.pilots import Pilot, next_rate
from regraft.tuning.probe import refit_probe
from regraft.tuning.recipes import CHOOSING_FOLD, Recipe, Way, epochs_within, pilot_steps
from regraft.tuning.runner import Runner
from regraft.tuning.scores import Score
from regraft.tuning.solvers import Labels
from regraft.tuning.verdict import Verdict, compare

log = logging.getLogger(__name__)

WARMUP_FRACTION = 0.1
# Below this many validation examples a quarter of the training data is held out of the pilots, to judge them as well.
ENOUGH_TO_JUDGE_PILOTS = 500
TYPICAL_PILOTS = 4  # of a search among five rates
FINALISTS = 2  # ways whose rates are searched, after one pilot of each
# Of the interval after which no further fold is asked: looking several times needs more than 95% each time.
BEYOND_DOUBT = 0.99
CHECKPOINT, PILOT_CHECKPOINT, PILOTS, BUDGET = "finetune.npz", "pilot.npz", "pilots.json", "budget.json"


@dataclass(frozen=True)
class Evidence:
    """What both models say of examples that trained neither: outputs (N, K) and labels (N,) or (N, K)."""

    probe_logits: NDArray[np.float32]
    tuned_logits: NDArray[np.float32]
    labels: NDArray[Any]

    def with_more(self, more: "Evidence") -> "Evidence":
        """Return both together."""
        return Evidence(
            np.concatenate([self.probe_logits, more.probe_logits]),
            np.concatenate([self.tuned_logits, more.tuned_logits]),
            np.concatenate([self.labels, more.labels]),
        )

    def verdict(self, objective: Objective, **options: Any) -> Verdict:
        """Return what `verdict.compare` makes of it with `options`."""
        return compare(self.probe_logits, self.tuned_logits, self.labels, objective, **options)


class Runs:
    """Runs over a course, which leave checkpoints and results in a folder, for a call that is made again.

    Args:
        course: What they run over.
        scratch: The folder.
        run: Identifies data, settings and seed.
    """

    def __init__(self, course: Course, scratch: Path, run: str) -> None:
        self.course, self._scratch, self._run = course, scratch, run

    def within_budget(self, runner: Runner, ways: tuple[Way, ...], *, searches: bool) -> Recipe:
        """Return the recipe with as many epochs as `budget_s` allows beside the pilots; perhaps none.

        How fast it goes is measured once and kept in scratch, so that a run that is interrupted keeps to its plan.
        """
        course = self.course
        recipe, file = course.recipe, self._scratch / BUDGET
        course.devices.copy_from_chief(file)
        kept = read_json(file) if file.exists() else {}
        if kept.get("run") != self._run:
            first_s, step_s = _seconds_of_steps(runner, course.everything)
            runner.reset()
            final = min(len(ways), FINALISTS)
            pilots = (len(ways) if len(ways) > 1 else 0) + (final * TYPICAL_PILOTS if searches else 0)
            compiling_s = first_s * (len(ways) + final if len(ways) > 1 else 1)
            # Validation has no backward pass, which is two thirds of a step.
            per_epoch = course.everything.steps_per_epoch + len(course.judged.rows) / recipe.batch_size / 3.0
            rehearsals = len(course.folds) + final * bool(course.folds) if len(ways) > 1 else 0
            steps = (float(recipe.budget_s or 0.0) - compiling_s) / step_s
            epochs = epochs_within(
                steps, recipe.epochs, steps_per_epoch=per_epoch, pilots=pilots, rehearsals=rehearsals
            )
            log.info("a step takes %.3f s: %d epochs in %g s", step_s, epochs, recipe.budget_s)
            write_json(file, {"run": self._run, "epochs": epochs})
            course.devices.copy_from_chief(file)
            kept = read_json(file)
        return replace(recipe, epochs=kept["epochs"])

    def plan(self, runner: Runner, epochs: int, steps_per_epoch: int, rate: float, patience_epochs: int) -> Plan:
        total = epochs * steps_per_epoch
        warmup = max(1, round(WARMUP_FRACTION * total))
        soup = self.course.recipe.soup
        return Plan(epochs, steps_per_epoch, rate, warmup, patience_epochs, soup, runner.unfreezing(total))

    def run(self, runner: Runner, rate: float) -> History:
        """Give `runner` the whole run at peak rate `rate`."""
        course = self.course
        recipe, everything = course.recipe, course.everything
        runner.begin(np.arange(len(course.data.train.labels)))
        per_epoch = min(len(everything.rows), everything.steps_per_epoch * recipe.batch_size)
        noun = {"text": "texts", "image": "images"}.get(course.data.train.kind, "recordings")
        progress = Progress(log, f"fine-tuning ({runner.way.name})", recipe.epochs * per_epoch, noun)
        return train(
            runner.trainer,
            self.plan(runner, recipe.epochs, everything.steps_per_epoch, rate, recipe.patience_epochs),
            runner.batches(everything).training,
            lambda: runner.score(course.judged, course.judged_labels),
            checkpoint=Checkpoint(self._scratch / CHECKPOINT, f"{self._run}/{runner.way.name}"),
            on_batch=lambda examples, loss: progress.advance(examples, f"loss {loss:.3f}"),
        )

    def cross_validate(self, runner: Runner, rate: float, evidence: Evidence) -> tuple[Evidence, int]:
        """Return `evidence` with that of as many folds as it takes to decide, and how many; leave `runner` as it is."""
        course = self.course
        finished, asked = runner.state(), 0
        for fold in course.folds:
            try:
                of_fold = self.rehearse(runner, rate, fold)
            except Diverged as error:
                log.info("without fold %d: %s", fold + 1, error)
                of_fold = self._nothing_learnt(fold)
            evidence, asked = evidence.with_more(of_fold), asked + 1
            if evidence.verdict(course.data.objective, confidence=BEYOND_DOUBT).is_certain:
                break
        runner.restore(finished)
        return evidence, asked

    def loss_in_rehearsal(self, runner: Runner, rate: float) -> float | None:
        """Return the mean of the losses on validation data and on its fold after a rehearsal; None if it diverged."""
        try:
            held_out = self.rehearse(runner, rate, CHOOSING_FOLD)
        except Diverged as error:
            log.info("%s at learning rate %g: %s", runner.way.name, rate, error)
            return None
        course = self.course
        objective = course.data.objective
        of_fold = objective.score(held_out.tuned_logits, held_out.labels)
        of_validation = objective.score(runner.logits(course.judged), course.judged_labels)
        loss = (of_fold.refined_log_loss + of_validation.refined_log_loss) / 2.0
        log.info("%s without fold %d: held-out %s %.4f", runner.way.name, CHOOSING_FOLD + 1, objective.loss_name, loss)
        return loss

    def rehearse(self, runner: Runner, rate: float, fold: int) -> Evidence:
        """Make the whole run without a fold of the training data, and return what is said of that fold.

        The runner keeps the model that came out, and a second call continues from its checkpoint, the end.

        Raises:
            Diverged: If the loss stops being a number.
        """
        course = self.course
        data, recipe = course.data, course.recipe
        labels = data.train.labels
        learned, held_out = course.parted(fold)
        log.info("without fold %d: training on %d, judging by %d", fold + 1, len(learned), len(held_out))
        runner.begin(learned)
        batches = course.everything.of(learned)
        name = f"rehearsal-{runner.way.name}-{fold}"
        train(
            runner.trainer,
            self.plan(runner, recipe.epochs, batches.steps_per_epoch, rate, recipe.patience_epochs),
            runner.batches(batches).training,
            lambda: runner.score(course.judged, course.judged_labels),
            checkpoint=Checkpoint(self._scratch / f"{name}.npz", f"{self._run}/{name}"),
        )
        runner.finish_head()
        return Evidence(self._probe_logits(fold), runner.logits(batches.of(held_out)), labels[held_out])

    def _nothing_learnt(self, fold: int) -> Evidence:
        """Return what speaks of a fold where fine-tuning diverged: outputs of 0 for all, as from nothing learnt."""
        probe_logits = self._probe_logits(fold)
        _, held_out = self.course.parted(fold)
        return Evidence(probe_logits, np.zeros_like(probe_logits), self.course.data.train.labels[held_out])

    def _probe_logits(self, fold: int) -> NDArray[np.float32]:
        """Return what a probe that was solved without the fold says of it, float32, shape (rows in it, K)."""
        data, (learned, held_out) = self.course.data, self.course.parted(fold)
        kernel, bias = refit_probe(
            data.train_features[learned], data.train.labels[learned],
            classes=data.classes, penalty=self.course.probe.penalty, objective=data.objective,
        )  # fmt: skip
        logits: NDArray[np.float32] = data.train_features[held_out] @ kernel + bias
        return logits

    def run_pilots(self, runner: Runner, rates: tuple[float, ...], *, most: int | None = None) -> list[Pilot]:
        """Run pilots until `next_rate` has none left, or until there are so many.

        Results are kept in scratch, for a search that goes on and for one that was interrupted.
        """
        course = self.course
        data, everything = course.data, course.everything
        learned = np.arange(len(data.train.labels))
        judges = [(course.judged, course.judged_labels)]
        if len(data.validation.labels) < ENOUGH_TO_JUDGE_PILOTS:
            learned, held_out = course.parted(CHOOSING_FOLD)
            everything = everything.of(learned)
            if len(held_out):
                judges.append((everything.of(held_out), data.train.labels[held_out]))
        steps = pilot_steps(course.recipe.epochs * course.everything.steps_per_epoch)
        file = self._scratch / PILOTS
        course.devices.copy_from_chief(file)
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


def _seconds_of_steps(runner: Runner, batches: Batches) -> tuple[float, float]:
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
    runner: Runner,
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
