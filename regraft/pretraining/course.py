"""The course of a pretraining: a network, a lesson, the loop, and what came of it."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np

from regraft.backbones import small
from regraft.backbones.card import Card
from regraft.data.records import open_split
from regraft.errors import BackboneError
from regraft.files import read_json, write_json
from regraft.pretraining import pictures, texts
from regraft.pretraining.beginning import Beginning, pretrained, shape_of, with_vocabulary
from regraft.pretraining.lesson import Lesson
from regraft.pretraining.source import parse_source, read_paragraphs
from regraft.pretraining.transfer import LOOKS, TransferLooks, require_kind
from regraft.pretraining.vocabulary import learn_tokenizer
from regraft.progress import Progress
from regraft.settings import BackboneSettings, PretrainSettings
from regraft.tuning.devices import Devices, failures_explained
from regraft.tuning.loop import Checkpoint, History, Plan, Trainer, train

log = logging.getLogger(__name__)

METHODS = {"image": ("supervised", "rotation"), "text": ("masked", "causal")}
# Steps that `epochs: auto` allows, in at least and at most so many epochs.
STEPS, STEPS_FROM_WEIGHTS = 3000, 500
FEWEST_EPOCHS, MOST_EPOCHS = 2, 60
WARMUP_SHARE = 0.06
# Peak rates of AdamW that `learning_rate: auto` means.
RATES = {"supervised": 3.0e-3, "rotation": 3.0e-3, "masked": 1.0e-3, "causal": 1.0e-3}
RATES_FROM_WEIGHTS = {"supervised": 3.0e-4, "rotation": 3.0e-4, "masked": 5.0e-5, "causal": 5.0e-5}
PATIENCE_EPOCHS = 3
TIMED_STEPS = 6
REMEDY = "Set a lower backbone.pretrain.learning_rate."


@dataclass(frozen=True)
class Learned:
    """What pretraining came to.

    Attributes:
        beginning: The network, with the weights it has now.
        facts: For reports/pretraining.json: the same for the same source, settings and seed, but for `budget_s`.
        history: The epochs, and how long they took here.
        seen: See `Lesson.seen`.
    """

    beginning: Beginning
    facts: dict[str, Any]
    history: History
    seen: Sequence[str]


def pretrain(
    settings: BackboneSettings,
    *,
    seed: int,
    root: Path,
    scratch: Path,
    digest: str,
    devices: Devices,
    sample: Path,
    on_step: Callable[[], None] = lambda: None,
) -> Learned:
    """Pretrain the network that `settings` name, continuing from a checkpoint in `scratch` if there is one of this run.

    Args:
        settings: In mode pretrain.
        seed: Of weights, order and all else that is drawn.
        root: What relative paths start at.
        scratch: A folder for checkpoints and copies.
        digest: That of the content of the source.
        devices: What trains.
        sample: Examples of the project, which are read with `stop: transfer` alone: see `ranking.sample`.
        on_step: Called after every step.

    Raises:
        BackboneError: If method, network and source do not fit each other.
        DataError: If there is nothing to learn from in the source.
        Diverged: If the loss stops being a number.
        ResourceError: If a disk or another worker gave out.
    """
    wanted = settings.pretrain
    source = parse_source(str(wanted.source), root)
    with devices.scope():
        start = pretrained if wanted.start == "weights" else shape_of
        beginning = start(settings.name, root=root, seed=seed)
        method = method_for(beginning, wanted.method)
        if settings.is_judged_by_target:
            require_kind(beginning, open_split(sample, "train"))
        copies = scratch / "copies"
        shutil.rmtree(copies, ignore_errors=True)  # of an attempt that was interrupted
        if method in METHODS["text"]:
            paragraphs = read_paragraphs(source)
            if beginning.tokenizer is None:
                tokenizer = learn_tokenizer(beginning.backbone, paragraphs, wanted.vocabulary_size)
                beginning = with_vocabulary(beginning, tokenizer, seed)
            teach_texts = {"masked": texts.masked, "causal": texts.causal}[method]
            lesson = teach_texts(paragraphs, beginning, wanted, seed=seed)
        else:
            teach_pictures = {"supervised": pictures.supervised, "rotation": pictures.rotation}[method]
            lesson = teach_pictures(source, beginning, wanted, seed=seed, scratch=copies)
        trainer = Trainer(lesson.model, lesson.aim, devices=devices, everything_learns=True)
        beginning = replace(beginning, card=replace(beginning.card, **_limit(beginning.card, wanted, lesson)))
    identity = f"{seed}/{settings.model_dump_json()}/{digest}/{devices.facts()}"
    remedy = "Set a smaller backbone.pretrain.batch_size."
    with failures_explained(devices, batch_size=wanted.batch_size, accumulate=1, image_size_px=None, remedy=remedy):
        plan = _plan(wanted, method, lesson)
        if wanted.budget_s is not None:
            plan = _within(plan, wanted.budget_s, trainer, lesson, kept=scratch / "plan.json", identity=identity)
        before = lesson.judge(trainer)
        looks = TransferLooks(sample, beginning, devices) if settings.is_judged_by_target else None
        log.info(
            "pretraining %s (%s, from %s): %d epochs of %d steps, held-out %s %.4f before",
            settings.name, method, wanted.start, plan.epochs, plan.steps_per_epoch, lesson.aim.loss_name,
            before.log_loss,
        )  # fmt: skip
        identity += f"/{looks.identity}" if looks else ""
        history = _train(
            trainer, lesson, plan, Checkpoint(scratch / "checkpoint.npz", identity), on_step=on_step, looks=looks
        )
    after = history.epochs[history.best_epoch - 1] if history.best_epoch else None
    facts = {
        "mode": "pretrain",
        "method": method,
        "start": wanted.start,
        "source": source.shown,
        "source_digest": digest,
        **(_looked(history, plan, looks) if looks else _passes(history, plan)),
        "peak_rate": plan.peak_rate,
        "batch_size": wanted.batch_size,
        "sizes": list(lesson.sizes),
        "unit": lesson.unit,
        "held_out": lesson.held_out,
        "loss_name": lesson.aim.loss_name,
        "measure_name": lesson.aim.measure_name,
        "held_out_loss": {"before": before.log_loss, "after": after.validation_log_loss if after else before.log_loss},
        "held_out_measure": {
            "before": before.accuracy,
            "after": after.validation_accuracy if after else before.accuracy,
        },
        **lesson.facts,
    }
    card = _card(beginning.card, wanted, facts, seed)
    if looks and not history.best_epoch:
        log.warning(
            "%s is as it was before pretraining: the probe on the project's own examples gained nothing by it",
            card.name,
        )
    return Learned(replace(beginning, card=card), facts, history, lesson.seen)


def method_for(beginning: Beginning, method: str) -> str:
    """Return the method that `auto` means for a network, or the one that was set if it fits.

    Raises:
        BackboneError: If it does not.
    """
    card = beginning.card
    fitting: tuple[str, ...] = METHODS[card.kind]
    if card.kind == "text":
        kind = type(beginning.backbone).__name__.removesuffix("Backbone")
        is_masked = isinstance(beginning.backbone, small.SmallRNN) or hasattr(keras_hub.models, f"{kind}MaskedLM")
        is_causal = not is_masked and hasattr(keras_hub.models, f"{kind}CausalLM")
        fitting = ("masked",) * is_masked + ("causal",) * is_causal
    if method == "auto" and fitting:
        return fitting[0]
    if method not in fitting:
        raise BackboneError(
            f"backbone.pretrain.method: {method} does not fit {card.name}, which takes {card.kind} data"
            + (f"; what fits: {', '.join(fitting)}." if fitting else " and cannot be pretrained here.")
        )
    return method


def _train(
    trainer: Trainer,
    lesson: Lesson,
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    on_step: Callable[[], None],
    looks: TransferLooks | None,
) -> History:
    parts = _between_looks(plan) if looks else plan
    progress: Progress | None = None

    def batches(part: int, taken: int) -> Iterator[tuple[Any, Any]]:
        nonlocal progress
        step, end = (part - 1) * parts.steps_per_epoch + taken, part * parts.steps_per_epoch
        if progress is None:  # of what this process does
            progress = Progress(log, "pretraining", parts.total_steps - step, "steps")
        small, full = lesson.sizes
        while step < end:
            passes, within = divmod(step, plan.steps_per_epoch)
            some = min(end - step, plan.steps_per_epoch - within)
            size = small if passes < plan.epochs // 2 else full
            yield from islice(lesson.batches(size, passes + 1, within), some)
            step += some

    def count(_: int, loss: float) -> None:
        if progress is not None:
            progress.advance(1, f"loss {loss:.3f}")
            on_step()

    return train(
        trainer, parts, batches, lambda: lesson.judge(trainer), checkpoint=checkpoint, on_batch=count, looks=looks
    )


def _between_looks(plan: Plan) -> Plan:
    """Return `plan` in equal parts that each end with a look: at most `LOOKS`, and rarely fewer than half.

    Of such numbers it is the one that leaves out the fewest steps at the end.
    """
    shortest = -(-plan.total_steps // LOOKS)
    interval = min(range(shortest, 2 * shortest), key=lambda steps: plan.total_steps % steps)
    return replace(plan, epochs=plan.total_steps // interval, steps_per_epoch=interval)


def _passes(history: History, plan: Plan) -> dict[str, Any]:
    return {
        "steps": len(history.epochs) * plan.steps_per_epoch,
        "epochs": [asdict(epoch) for epoch in history.epochs],
        "best_epoch": history.best_epoch,
    }


def _looked(history: History, plan: Plan, looks: TransferLooks) -> dict[str, Any]:
    """Return the facts of a pretraining that looks have judged; epochs of the history are what lies between two."""
    parts = _between_looks(plan)
    interval = parts.steps_per_epoch
    before, *after = looks.rows(history.looks)
    rows = [
        {"look": 0, "step": 0, "target": before},
        *(
            {
                "look": epoch.epoch,
                "step": epoch.epoch * interval,
                "train_loss": epoch.train_loss,
                "held_out_loss": epoch.validation_log_loss,
                "held_out_measure": epoch.validation_accuracy,
                "last_rate": epoch.last_rate,
                "target": said,
            }
            for epoch, said in zip(history.epochs, after, strict=True)
        ),
    ]
    return {
        "steps": len(history.epochs) * interval,
        "planned_steps": parts.total_steps,
        "looks": rows,
        "best_look": history.best_epoch,
        "stopped": looks.why_stop(history.looks) or "all steps that were planned were done",
        "target_examples": looks.examples,
        "target_loss_name": looks.objective.loss_name,
        "target_measure_name": looks.objective.measure_name,
    }


def _plan(wanted: PretrainSettings, method: str, lesson: Lesson) -> Plan:
    """Return how long and how fast to train."""
    from_nothing = wanted.start == "nothing"
    if wanted.epochs == "auto":
        enough = round((STEPS if from_nothing else STEPS_FROM_WEIGHTS) / lesson.steps_per_epoch)
        epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, enough))
    else:
        epochs = wanted.epochs
    rates = RATES if from_nothing else RATES_FROM_WEIGHTS
    rate = rates[method] if wanted.learning_rate == "auto" else wanted.learning_rate
    return _planned(epochs, lesson.steps_per_epoch, rate)


def _planned(epochs: int, steps_per_epoch: int, rate: float) -> Plan:
    warmup = max(1, round(WARMUP_SHARE * epochs * steps_per_epoch))
    return Plan(epochs, steps_per_epoch, rate, warmup, PATIENCE_EPOCHS, remedy=REMEDY)


def _within(plan: Plan, budget_s: float, trainer: Trainer, lesson: Lesson, *, kept: Path, identity: str) -> Plan:
    """Return the part of `plan` that there is time for, at least two steps; its schedule ends with the budget.

    What it came to is kept in the file `kept` for a run that goes on.
    """
    noted = read_json(kept) if kept.exists() else {}
    if noted.get("run") != identity:
        noted = {"run": identity, "steps": max(2, int(budget_s / _seconds_of_a_step(trainer, lesson)))}
        write_json(kept, noted)
    epochs = max(1, min(plan.epochs, noted["steps"] // plan.steps_per_epoch))
    return _planned(epochs, min(plan.steps_per_epoch, noted["steps"]), plan.peak_rate)


def _seconds_of_a_step(trainer: Trainer, lesson: Lesson) -> float:
    """Return how long a step takes, mean of both sizes, leaving the trainer as it was."""
    untouched, medians = trainer.state(), []
    for size in dict.fromkeys(lesson.sizes):
        seconds, began = [], time.monotonic()
        for number, (inputs, labels) in enumerate(lesson.batches(size, 1, 0)):
            trainer.step(inputs, labels, 0.0)
            seconds.append(time.monotonic() - began)
            began = time.monotonic()
            if number == TIMED_STEPS:
                break
        medians.append(float(np.median(seconds[1:] or seconds)))  # the first compiles
    trainer.restore(untouched)
    return sum(medians) / len(medians)


def _card(card: Card, wanted: PretrainSettings, facts: dict[str, Any], seed: int) -> Card:
    """Return the card of the network after pretraining; `Beginning.store` adds the sum of its weights."""
    said = ("method", "start", "source", "source_digest", "steps", "held_out", "held_out_loss", "held_out_measure")
    learnt_from = f"{facts['source']} {facts['source_digest'][:12]}"
    if wanted.start == "weights":
        learnt_from = f"{card.source_dataset}, then {learnt_from}"
    return replace(
        card,
        source_dataset=learnt_from,
        origin=f"pretrained here ({facts['method']}, {facts['steps']} steps, seed {seed})",
        pretraining={key: facts[key] for key in said},
    )


def _limit(card: Card, wanted: PretrainSettings, lesson: Lesson) -> dict[str, Any]:
    """Return what the card of a network that begins from nothing has to say of the inputs that it learns from."""
    if wanted.start == "nothing" and card.kind == "image":
        return {"input_size_px": lesson.sizes[1]}
    if wanted.start == "nothing" and card.input_tokens is not None:
        return {"input_tokens": min(card.input_tokens, wanted.max_tokens)}
    return {}
