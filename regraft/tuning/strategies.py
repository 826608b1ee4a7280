"""Strategies: `probe` leaves the backbone alone, the others fine-tune it in one of the `recipes.WAYS`, with caution.

The learning rate is tried out first, and the probe ships unless validation prefers the fine-tuned model. `auto` tries
out every way that fits as well, searches the rates of the best two, gives the best the whole run (successive halving),
and ships it only if validation leaves no doubt that it is better than the probe.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regraft.errors import Diverged
from regraft.tuning.augment import augment_spectrograms, augmentation
from regraft.tuning.course import Course
from regraft.tuning.devices import ONE_DEVICE, Devices
from regraft.tuning.loop import History
from regraft.tuning.mirrors import CHIRALITY_LIMIT, Flip, flip_is_safe
from regraft.tuning.objective import CLASSES, Objective
from regraft.tuning.pilots import Pilot, choose_rate
from regraft.tuning.probe import Probe
from regraft.tuning.recipes import Data, Recipe, Way, refuse_what_does_not_fit
from regraft.tuning.runner import Runner, Turns
from regraft.tuning.runs import FINALISTS, Evidence, Runs

log = logging.getLogger(__name__)


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
    course = Course(data, probe, recipe, vary=vary, devices=devices)
    runs = Runs(course, scratch, run)
    turns = Turns(course, chain([(model, backbone)], models))
    searches = isinstance(recipe.learning_rate, str)
    if recipe.budget_s is not None:
        course.recipe = runs.within_budget(turns.of(ways[0]), ways, searches=searches)
        if not course.recipe.epochs:
            why = f"finetune.budget_s: {recipe.budget_s:g} is too little for one epoch, and short runs before it."
            return model, probe_only(probe, objective, why)
    contest = _compete(ways, runs, turns, searches=searches)
    way = contest.way
    runner = turns.of(way)
    model = runner.model
    try:
        history = runs.run(runner, contest.rate)
    except Diverged as error:
        if len(ways) == 1:
            raise
        runner.reset()
        return model, probe_only(probe, objective, f"{way.name} was best in shorter runs, and then {error}")
    runner.finish_head()
    probe_logits = probe.logits(data.validation_features[course.judged.rows])
    evidence = Evidence(probe_logits, runner.logits(course.judged), course.judged_labels)
    temperature = objective.temperature(evidence.tuned_logits, evidence.labels)
    folds = 0
    if len(ways) > 1:
        evidence, folds = runs.cross_validate(runner, contest.rate, evidence)
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
    course = Course(data, probe, recipe, vary=None, devices=ONE_DEVICE)
    [pilot] = Runs(course, scratch, run).run_pilots(
        Runner(way, model, backbone, course), (way.rates[len(way.rates) // 2],)
    )
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


def _compete(ways: tuple[Way, ...], runs: Runs, turns: Turns, *, searches: bool) -> _Contest:
    """Let `ways` compete by successive halving: a pilot each; more rates for the best; a whole run, if that is short.

    Args:
        ways: At least one.
        runs: What they run over.
        turns: Makes their runners.
        searches: Whether rates are to be found.

    Raises:
        TrainingError: If every pilot of every way diverged.
    """
    course = runs.course
    pilots: dict[str, list[Pilot]] = {}
    if len(ways) > 1:
        for way in ways:
            pilots[way.name] = runs.run_pilots(turns.of(way), course.rates(way), most=1)
    rivals = finalists(ways, pilots)
    if searches:
        # The one whose turn it is goes first: the other's takes a model of its own.
        for way in sorted(rivals, key=lambda way: way is not turns.way):
            pilots[way.name] = runs.run_pilots(turns.of(way), course.rates(way))
    rates = {
        way.name: choose_rate(pilots[way.name]) if searches else float(course.recipe.learning_rate) for way in rivals
    }
    rivals = sorted(rivals, key=lambda way: min(_losses(pilots.get(way.name, [])), default=math.inf))
    rehearsals: dict[str, float | None] = {}
    if len(rivals) > 1 and course.folds:
        for way in sorted(rivals, key=lambda way: way is not turns.way):
            rehearsals[way.name] = runs.loss_in_rehearsal(turns.of(way), rates[way.name])
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
