"""The one training loop: the same steps for the same seed, checkpointed on the way, stopped when it stops helping."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.backbones.folding import folded_normalization
from regraft.errors import Diverged, SettingsError, TrainingError
from regraft.tuning.devices import ONE_DEVICE, Devices, LocalAdamW, lower_precision, rows_of
from regraft.tuning.objective import CLASSES, Aim
from regraft.tuning.schedules import warmup_cosine
from regraft.tuning.scores import Score

log = logging.getLogger(__name__)

State = list[NDArray[Any]]

AVERAGE_MEMORY = 0.97  # the average reaches back over about 33 steps
CHECKPOINT_INTERVAL_S = 30.0  # unless REGRAFT_CHECKPOINT_S says otherwise; no result depends on it
# Training goes on for at least so many times as long as the last checkpoint took to write: they cost at most 3%.
CHECKPOINT_COST = 33.0
SUM = tf.distribute.ReduceOp.SUM


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training rows.
        steps_per_epoch: Optimizer steps in a pass.
        peak_rate: Highest learning rate of the schedule.
        warmup_steps: Steps of linear rise before it.
        patience_epochs: Stop after so many epochs in a row that are clearly worse on validation than the best one.
        soup: Whether weights of several epochs may be averaged: see `train`.
        unfreezing: Multipliers of the rate of each trainable weight at a step, which counts from 0: see
            `layers.gradual_multipliers`. They take the place of the trainer's, which must have some.
        remedy: What to do, in words, if the loss stops being a number.
    """

    epochs: int
    steps_per_epoch: int
    peak_rate: float
    warmup_steps: int
    patience_epochs: int
    soup: bool = False
    unfreezing: Callable[[int], NDArray[np.float32]] | None = None
    remedy: str = "Set a lower finetune.learning_rate, or strategy: probe."

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to, in the words of `scores.Score`; the training loss is that of the objective."""

    epoch: int
    train_loss: float
    validation_log_loss: float
    validation_refined_log_loss: float
    validation_accuracy: float
    last_rate: float


@dataclass
class History:
    """The epochs of a run, which of them was chosen, and how long they took here (not reproducible).

    Attributes:
        epochs: One row an epoch.
        best_epoch: The epoch whose weights are kept; 0 before the first.
        lowest_epoch: The epoch with the lowest refined log loss, which need not be the chosen one: see `train`.
        averaged_epochs: How many epochs' weights are averaged in what is kept: see `train`.
        kept_log_loss: Refined log loss of what is kept; None before the first epoch.
        seconds: Time spent in training and validation, checkpoints included.
        examples: Examples trained on, each counted as often as it was seen.
        looks: What a judge other than validation was told by its looks, one an epoch: see `Looks`.
        checkpoints: How often the state was written to disk.
        checkpoints_seconds: Time spent on that.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    lowest_epoch: int = 0
    averaged_epochs: int = 0
    kept_log_loss: float | None = None
    looks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    examples: int = 0
    checkpoints: int = 0
    checkpoints_seconds: float = 0.0


class Looks(Protocol):
    """A judge that takes the place of validation in `train`: it says what is kept, and when to stop.

    It answers by what it was told alone, so that a run that is continued goes on as it would have.
    """

    def take(self) -> dict[str, Any]:
        """Return what there is to say of the model as it is now, ready for JSON."""

    def best(self, taken: list[dict[str, Any]]) -> int:
        """Return which of the looks `taken` was the best, counted from 1; 0 is the model before training."""

    def why_stop(self, taken: list[dict[str, Any]]) -> str | None:
        """Return in words why training should stop after the looks `taken`; None if it should go on."""


class Trainer:
    """A model with its optimizer, both compiled once and set back to any earlier state without compiling again.

    The optimizer is AdamW. Its steps tear at first (on small data validation gets worse before it gets better) and
    swing to and fro later, so what is judged and kept is a running average of the weights, which does neither. On
    1,000 photos of trash (600 to validate, three epochs, refined log loss from the probe's 0.566): AdamW at 3e-4
    0.476, with the average 0.470 and already 0.472 after two epochs; Nesterov momentum at 1e-3, 3e-3, 1e-2 0.589,
    0.553, 0.540.

    Args:
        model: Ends in the outputs of `objective`. Every BatchNormalization in it is set to `trainable = False`, which
            keeps its statistics still; calling it with training=False would not (keras-team/keras#20285). So are
            tables of embeddings. Unless `everything_learns`.
        objective: Decides the loss.
        weight_decay: AdamW's, on kernels only.
        clip_norm: The global norm that gradients are scaled down to.
        l2_sp: Strength of a pull back to the weights that `start` found, in place of weight decay: each step moves all
            of them, the head's too, towards those by `rate * l2_sp` of the distance. L2-SP of Li, Grandvalet &
            Davoine, 2018, equation 3 (arXiv:1802.01483), decoupled from AdamW's moments as weight decay is.
        multipliers: Of the learning rate, one for each of `model.trainable_variables` as they are after freezing, see
            `layers.decayed_multipliers`; None leaves all steps as they are.
        devices: What trains. The model must have been made in their scope.
        accumulate: In how many slices, one after another, a replica works through its rows of a batch. The step is that
            of the whole batch; only the slice under way takes memory.
        everything_learns: Whether statistics and tables learn too: what they are in a network that has learnt nothing
            is nothing to keep.

    Raises:
        ValueError: If the loss needs the whole batch at once, and `accumulate` is more than 1.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Aim = CLASSES,
        *,
        weight_decay: float = 0.01,
        clip_norm: float = 1.0,
        l2_sp: float = 0.0,
        multipliers: NDArray[np.float32] | None = None,
        devices: Devices = ONE_DEVICE,
        accumulate: int = 1,
        everything_learns: bool = False,
    ) -> None:
        if objective.compares_examples and accumulate > 1:
            raise ValueError(f"the loss compares all examples of a batch: accumulate must be 1, got {accumulate}")
        self.model = model
        self.objective = objective
        self.devices = devices
        self._accumulate = accumulate
        if not everything_learns:
            freeze_statistics_and_tables(model)
        # They follow the training batches by a running average of their own.
        self._statistics = _moving_statistics(model) if everything_learns else []
        self._clip_norm = clip_norm
        self._weights = model.trainable_variables
        self._l2_sp = l2_sp
        self.multipliers: tf.Variable = None
        with devices.scope():
            self._averages = [tf.Variable(weight.value, trainable=False) for weight in self._weights]
            self._starts = [tf.Variable(weight.value, trainable=False) for weight in self._weights] if l2_sp else []
            if multipliers is not None:
                self.multipliers = tf.Variable(multipliers, trainable=False, dtype=tf.float32)
            self._optimizer = self._make_optimizer(0.0 if l2_sp else weight_decay)
        self._loss_of = objective.training_loss()
        # One graph for every batch: a graph for each shape met would round differently, so that a run that continues,
        # and meets other shapes first, would end in other bytes.
        inputs = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), model.input)
        labels, rate = _label_spec(objective, model), tf.TensorSpec((), tf.float32)
        self._step = tf.function(self._one_step, input_signature=[inputs, labels, rate])
        self._forward = tf.function(self._one_forward, input_signature=[inputs])

    def step(self, inputs: Any, labels: tf.Tensor, rate: float) -> float:
        """Take one optimizer step at learning rate `rate`; return the mean loss of the batch before it."""
        return float(self._step(inputs, labels, tf.constant(rate, tf.float32)))

    def logits(self, batches: Iterable[tuple[Any, tf.Tensor]]) -> NDArray[np.float32]:
        """Return the logits of every row of `batches`, in order, float32, shape (N, K), in inference mode."""
        return np.concatenate([self._forward(inputs).numpy() for inputs, _ in batches])

    def state(self) -> State:
        """Return copies of all variables (model, its random state, averages, optimizer) in a fixed order."""
        return [np.array(variable.numpy()) for variable in self._variables()]

    def restore(self, state: State) -> None:
        """Set every variable to its value in `state`, which `state()` returned."""
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def use(self, weights: State) -> None:
        """Set the model's trainable weights, and statistics that learn, to `weights`, which `averages()` returned."""
        for weight, value in zip([*self._weights, *self._statistics], weights, strict=True):
            weight.assign(value)

    def averages(self) -> State:
        """Return copies of the running averages of the model's trainable weights, in their order.

        After them, statistics of BatchNormalizations that learn, as they are.
        """
        return [np.array(average.numpy()) for average in [*self._averages, *self._statistics]]

    def start(self) -> None:
        """Let the running averages begin at the weights as they are now, and `l2_sp` pull back to them.

        They are those of the chief, where there are several workers: others may have solved the head to other last
        digits.
        """
        if self.devices.span_processes:
            self.restore([self.devices.from_chief(value) for value in self.state()])
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(weight.value)
        if self._starts:
            for start, weight in zip(self._starts, self._weights, strict=True):
                start.assign(weight.value)

    def statistics_to_keep(self) -> dict[str, NDArray[Any]]:
        """Return copies of the moving means and variances that may not move, by the path of the variable."""
        learning = {id(variable) for variable in self._statistics}
        return {
            variable.path: np.array(variable.numpy())
            for variable in _moving_statistics(self.model)
            if id(variable) not in learning
        }

    @contextmanager
    def using(self, weights: State) -> Iterator[None]:
        """Give the model other trainable weights for a while."""
        kept = [np.array(weight.numpy()) for weight in [*self._weights, *self._statistics]]
        self.use(weights)
        try:
            yield
        finally:
            self.use(kept)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self._averages, *self._optimizer.variables]

    def _make_optimizer(self, weight_decay: float) -> keras.optimizers.Optimizer:
        vectors = [weight for weight in self._weights if len(weight.shape) < 2]
        scaled = self.devices.precision == "float16"
        optimizer = LocalAdamW(1e-3, weight_decay=weight_decay, global_clipnorm=self._clip_norm if scaled else None)
        optimizer.exclude_from_weight_decay(var_list=vectors)
        if scaled:  # else the small gradients of float16 would be zeros; it divides by the scale, then clips
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self._weights)
        return optimizer

    def _one_step(self, inputs: Any, labels: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        if self.devices.replicas == 1:
            loss, slopes, reached = self._slopes(inputs, labels)
            self._update(slopes, reached, rate)
            return loss
        total, replicas = tf.shape(labels)[0], self.devices.replicas

        def part(batch: Any, replica: int) -> Any:
            # Where examples are compared with each other, every replica works through the whole batch.
            if self.objective.compares_examples:
                return batch, tf.constant(1.0 / replicas)
            return _slice(batch, *rows_of(replica, replicas, total), total)

        def work(batch: Any, share: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            loss, slopes, reached = self._slopes(*batch)
            everywhere = tf.distribute.get_replica_context().all_reduce
            self._update(everywhere(SUM, [share * slope for slope in slopes]), reached, rate)
            return share * loss

        batch, share = self.devices.deal((inputs, labels), part)
        losses = self.devices.strategy.run(work, args=(batch, share, rate))
        return self.devices.strategy.reduce(SUM, losses, axis=None)

    def _slopes(self, inputs: Any, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor], list[Any]]:
        """Return the mean loss, its gradients, and the weights they belong to.

        A backbone may have weights that its features do not use (BERT's pooler): they have no gradient and stay as they
        are.
        """
        if self._accumulate == 1:
            loss, slopes = self._slopes_at_once(inputs, labels)
            reached = [weight for slope, weight in zip(slopes, self._weights, strict=True) if slope is not None]
            return loss, [slope for slope in slopes if slope is not None], reached
        total, reached = tf.shape(labels)[0], []

        def add(number: tf.Tensor, loss: tf.Tensor, sums: list[tf.Tensor]) -> tuple[Any, ...]:
            batch, share = _slice((inputs, labels), *rows_of(number, self._accumulate, total), total)
            mean, slopes = self._slopes_at_once(*batch)
            reached[:] = [slope is not None for slope in slopes]
            added = [
                so_far if slope is None else so_far + share * slope for so_far, slope in zip(sums, slopes, strict=True)
            ]
            return number + 1, loss + share * mean, added

        zeros = [tf.zeros(weight.shape, tf.float32) for weight in self._weights]
        _, loss, sums = tf.while_loop(
            lambda number, *_: number < self._accumulate,
            add,
            (tf.constant(0), tf.constant(0.0), zeros),
            parallel_iterations=1,
        )
        some = [(slope, weight) for slope, weight, is_some in zip(sums, self._weights, reached, strict=True) if is_some]
        return loss, [slope for slope, _ in some], [weight for _, weight in some]

    def _slopes_at_once(self, inputs: Any, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
        """Return the mean loss and its gradients (times the scale of losses, in float16) by all weights."""
        with tf.GradientTape() as tape:
            loss = self._loss(inputs, labels)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [weight.value for weight in self._weights])
        return loss, [None if slope is None else tf.convert_to_tensor(slope) for slope in gradients]

    def _loss(self, inputs: Any, labels: tf.Tensor) -> tf.Tensor:
        """Return the mean loss of some examples: what training minimises."""
        with lower_precision(self.model, self.devices.precision), folded_normalization(self.model):
            outputs = self.model(inputs, training=True)
        return self._loss_of(labels, outputs)

    def _update(self, slopes: list[tf.Tensor], reached: list[Any], rate: tf.Tensor) -> None:
        """Take the step that the gradients `slopes` of the weights `reached` ask for."""
        if self.devices.precision != "float16":
            slopes, _ = tf.clip_by_global_norm(slopes, self._clip_norm)
        self._optimizer.learning_rate.assign(rate)
        before = [] if self.multipliers is None else [tf.identity(weight.value) for weight in self._weights]
        self._optimizer.apply(slopes, reached)
        if self._starts:
            for start, weight in zip(self._starts, self._weights, strict=True):
                weight.assign(weight.value - rate * self._l2_sp * (weight.value - start))
        # AdamW divides a gradient by its own size, so a smaller gradient makes no smaller step: the step itself, weight
        # decay included, is what a multiplier shortens.
        for number, start in enumerate(before):
            weight = self._weights[number]
            weight.assign(start + self.multipliers[number] * (weight.value - start))
        # A short memory at first, so that the average does not hang on to where training began.
        taken = tf.cast(self._optimizer.iterations.value, tf.float32)
        memory = tf.minimum(AVERAGE_MEMORY, (1.0 + taken) / (10.0 + taken))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(memory * average + (1.0 - memory) * weight.value)

    def _answers(self, inputs: Any) -> tf.Tensor:
        with folded_normalization(self.model):
            return self.model(inputs, training=False)

    def _one_forward(self, inputs: Any) -> tf.Tensor:
        if self.devices.replicas == 1:
            return self._answers(inputs)
        total, replicas = tf.shape(tf.nest.flatten(inputs)[0])[0], self.devices.replicas

        def part(inputs: Any, replica: int) -> Any:
            each = -(-total // replicas)  # all replicas get as many rows, which may be the last one again
            rows = tf.minimum(replica * each + tf.range(each), total - 1)
            return tf.nest.map_structure(lambda values: tf.gather(values, rows), inputs)

        parts = self.devices.deal(inputs, part)
        outputs = self.devices.strategy.run(self._answers, args=(parts,))
        return self.devices.strategy.gather(outputs, axis=0)[:total]


def _slice(batch: Any, start: Any, end: Any, total: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Return rows `start` to `end` of all tensors of `batch`, and which share of its `total` rows they are.

    Of no rows the share is 0, and one row stands in for them, because the mean of none would be no number.
    """
    first = tf.minimum(start, total - 1)
    rows = tf.nest.map_structure(lambda values: values[first : tf.maximum(end, first + 1)], batch)
    return rows, tf.cast(end - start, tf.float32) / tf.cast(total, tf.float32)


def train(
    trainer: Trainer,
    plan: Plan,
    training: Callable[[int, int], Iterable[tuple[Any, tf.Tensor]]],
    validate: Callable[[], Score],
    *,
    checkpoint: "Checkpoint | None" = None,
    on_batch: Callable[[int, float], None] = lambda examples, loss: None,
    looks: Looks | None = None,
) -> History:
    """Train by `plan`, leaving the model with the average weights of its best epoch on validation.

    The best epoch is the latest whose refined log loss is not clearly higher than the lowest
    (`Score.is_clearly_worse_than`). With few validation examples the lowest of several noisy numbers is mostly luck,
    while weights at the end of the schedule, where the rate has come down to zero, are better than those of its
    middle as a rule.

    With `plan.soup` each such epoch is also averaged with what is kept so far, and the average is kept in its place if
    its refined log loss is lower than those of both; an average that is better than a single epoch after it stays.
    Source: the greedy soup of Wortsman et al., 2022 (arXiv:2203.05482), over the epochs of one run, in their order.

    Args:
        trainer: The model at its start.
        plan: Length, rates and patience.
        training: Returns the batches of an epoch, counted from 1, after so many that were already taken.
        validate: Scores the trainer's model as it is now; called while it has its average weights.
        checkpoint: Where to save on the way, and to continue from; None keeps nothing.
        on_batch: Told after each step how many examples it took and their loss; on continuing, told once about those
            already seen.
        looks: Takes a look after each epoch, with the average weights too. What `validate` says is then noted alone:
            the weights of the best look are kept, and the looks say when to stop.

    Raises:
        Diverged: If the loss stops being a finite number.
        TrainingError: If a BatchNormalization statistic has moved.
    """
    still = trainer.statistics_to_keep()
    trainer.start()
    history, best, lowest, part = History(), trainer.averages(), None, Part()
    saved = checkpoint.load_from_chief(trainer.devices) if checkpoint else None
    checkpoint = checkpoint if trainer.devices.is_chief else None
    if saved:
        history, best, lowest, part = saved.history, saved.best, saved.lowest, saved.part
        trainer.restore(saved.state)
        log.info(
            "continuing after epoch %d of %d and %d of %d steps of the next one, from a checkpoint",
            len(history.epochs), plan.epochs, part.steps, plan.steps_per_epoch,
        )  # fmt: skip
        on_batch(history.examples + part.examples, part.last_loss)
    clock = _Clock()
    for epoch in range(len(history.epochs) + 1, plan.epochs + 1):
        if why := _why_stop(plan, history, looks):
            log.info("stopping: %s", why)
            break
        step = (epoch - 1) * plan.steps_per_epoch + part.steps
        for inputs, labels in training(epoch, part.steps):
            # Counted from 1 to just short of the end: neither the first step nor the last has a rate of zero.
            rate = warmup_cosine(
                step + 1, total_steps=plan.total_steps + 1, warmup_steps=plan.warmup_steps, peak=plan.peak_rate
            )
            if plan.unfreezing:
                trainer.multipliers.assign(plan.unfreezing(step))
            loss = trainer.step(inputs, labels, rate)
            if not math.isfinite(loss):
                raise Diverged(
                    f"the training loss became {loss} in epoch {epoch} at step {step + 1} of {plan.total_steps} "
                    f"(learning rate {rate:.3g}). {plan.remedy}"
                )
            part.add(loss, len(labels), rate)
            step += 1
            on_batch(len(labels), loss)
            if checkpoint and checkpoint.is_due():
                history.seconds += clock.lap()
                checkpoint.save(Saved(history, trainer.state(), best, lowest, part))
                history.seconds += checkpoint.count(history, clock.lap())
        with trainer.using(trainer.averages()):
            now = validate()
            if not math.isfinite(now.log_loss):
                raise Diverged(
                    f"the validation {trainer.objective.loss_name} became {now.log_loss} after epoch {epoch} "
                    f"(peak learning rate {plan.peak_rate:.3g}). {plan.remedy}"
                )
            if looks:
                history.looks.append(looks.take())
        history.epochs.append(
            Epoch(epoch, part.mean_loss, now.log_loss, now.refined_log_loss, now.accuracy, part.last_rate)
        )
        history.seconds += clock.lap()
        history.examples += part.examples
        part = Part()
        if lowest is None or now.refined_log_loss < lowest.refined_log_loss:
            history.lowest_epoch, lowest = epoch, now
        if _is_to_keep(history, now, lowest, looks):
            best = _kept(trainer, history, best, now, validate if plan.soup else None)
            history.seconds += clock.lap()
        if checkpoint and (checkpoint.is_due() or epoch == plan.epochs or _why_stop(plan, history, looks)):
            checkpoint.save(Saved(history, trainer.state(), best, lowest, part))
            history.seconds += checkpoint.count(history, clock.lap())
        log.info(
            "%s %d of %d: training loss %.4f, validation %s %.4f, validation %s %.4f",
            "look" if looks else "epoch", epoch, plan.epochs, history.epochs[-1].train_loss,
            trainer.objective.loss_name, now.log_loss, trainer.objective.measure_name, now.accuracy,
        )  # fmt: skip
    trainer.use(best)
    _require_still(still, trainer.statistics_to_keep())
    return history


def _is_to_keep(history: History, now: Score, lowest: Score, looks: Looks | None) -> bool:
    """Return whether the weights of the latest epoch, which scored `now`, take the place of what is kept."""
    if looks:
        return looks.best(history.looks) == len(history.epochs)
    return not now.is_clearly_worse_than(lowest)


def _why_stop(plan: Plan, history: History, looks: Looks | None) -> str | None:
    if looks:
        return looks.why_stop(history.looks)
    if len(history.epochs) >= history.best_epoch + plan.patience_epochs:
        return f"validation has been clearly worse than its best for {plan.patience_epochs} epochs"
    return None


def _require_still(before: dict[str, NDArray[Any]], after: dict[str, NDArray[Any]]) -> None:
    moved = [name for name, value in before.items() if not np.array_equal(value, after[name])]
    if moved:
        raise TrainingError(
            f"{len(moved)} BatchNormalization statistics moved although they are frozen, e.g. {moved[0]}"
        )


def _kept(trainer: Trainer, history: History, best: State, now: Score, validate: Callable[[], Score] | None) -> State:
    """Return the weights to keep after an epoch that scored `now`: its own, or averaged with `best`; note which."""
    own, epochs, before = trainer.averages(), history.averaged_epochs, history.kept_log_loss
    history.best_epoch = len(history.epochs)
    if validate and before is not None:
        mean = [(epochs * kept + new) / (epochs + 1) for kept, new in zip(best, own, strict=True)]
        with trainer.using(mean):
            together = validate().refined_log_loss
        if together < min(now.refined_log_loss, before):
            history.averaged_epochs, history.kept_log_loss = epochs + 1, together
            return mean
        if epochs > 1 and before <= now.refined_log_loss:
            return best
    history.averaged_epochs, history.kept_log_loss = 1, now.refined_log_loss
    return own


def freeze_statistics_and_tables(model: keras.Model) -> None:
    """Set `trainable = False` on every BatchNormalization and every table of embeddings in `model`, however deep.

    BatchNormalization, because statistics of small batches of new data would wreck what the backbone knows. Tables,
    because a row learns only from texts with its word: in MiniLM they are half of all weights, and tuning them would
    take words of the training data away from their synonyms.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization | keras.layers.Embedding):
            layer.trainable = False


def _label_spec(objective: Aim, model: keras.Model) -> tf.TensorSpec:
    """Return shape and type of a batch of labels."""
    if objective.labels_are_indices:
        return tf.TensorSpec((None,), tf.int64)
    return tf.TensorSpec((None, model.output_shape[-1]), tf.float32)


def _moving_statistics(model: keras.Model) -> list[Any]:
    """Return the moving mean and variance of every BatchNormalization in `model`, however deep."""
    return [
        variable
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


class _Clock:
    """Tells the seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return passed


@dataclass
class Part:
    """What there is of an epoch that is not finished.

    Attributes:
        steps: Optimizer steps taken in it.
        losses: Of each step, times its examples.
        examples: Examples seen in it.
        last_loss: Of the last step.
        last_rate: Learning rate of the last step.
    """

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    examples: int = 0
    last_loss: float = 0.0
    last_rate: float = 0.0

    def add(self, loss: float, examples: int, rate: float) -> None:
        """Count a step of so many examples, whose mean loss was `loss`."""
        self.steps += 1
        self.losses.append(loss * examples)
        self.examples += examples
        self.last_loss, self.last_rate = loss, rate

    @property
    def mean_loss(self) -> float:
        return math.fsum(self.losses) / self.examples


@dataclass(frozen=True)
class Saved:
    """All that training needs to go on as if it had never stopped.

    Attributes:
        history: The epochs so far.
        state: All variables, see `Trainer.state`.
        best: The average weights of the best epoch so far, or those at the start.
        lowest: The score with the lowest refined log loss so far; None before the first epoch has ended.
        part: The epoch that is under way.
    """

    history: History
    state: State
    best: State
    lowest: Score | None
    part: Part


class Checkpoint:
    """One file that holds the latest saved step.

    Args:
        file: Ends in .npz.
        run: Identifies the run (settings, seed, data); a file left by another run is ignored.
        interval_s: Least time between two saves, 0 for one after every step; longer where a save takes more than
            1 / `CHECKPOINT_COST` of it. By default what the environment variable REGRAFT_CHECKPOINT_S says, or 30.

    Raises:
        SettingsError: If REGRAFT_CHECKPOINT_S is not a number of seconds.
    """

    def __init__(self, file: Path, run: str, *, interval_s: float | None = None) -> None:
        self.file = file
        self.run = run
        self._interval_s = _checkpoint_interval_s() if interval_s is None else interval_s
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the latest save, or else the start, was long enough ago."""
        return time.monotonic() - self._saved_at >= self._interval_s

    def count(self, history: History, seconds: float) -> float:
        """Note in `history` that a save took so long, and space the next ones by it; return `seconds`."""
        history.checkpoints += 1
        history.checkpoints_seconds += seconds
        if self._interval_s > 0.0:
            self._interval_s = max(self._interval_s, CHECKPOINT_COST * seconds)
        self._saved_at = time.monotonic()
        return seconds

    def save(self, saved: Saved) -> None:
        """Replace the file; whoever reads it finds the old step or the new one, never a part."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(self.file.name + ".part")
        arrays: dict[str, Any] = {f"state_{number:05d}": value for number, value in enumerate(saved.state)}
        arrays |= {f"best_{number:05d}": value for number, value in enumerate(saved.best)}
        lowest = None
        if saved.lowest:
            lowest = asdict(saved.lowest)
            arrays["lowest"] = lowest.pop("refined_log_losses")
        about = {"run": self.run, "history": asdict(saved.history), "lowest": lowest, "part": asdict(saved.part)}
        arrays["about"] = np.array(json.dumps(about))
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.file)

    def load_from_chief(self, devices: Devices) -> Saved | None:
        """Return what the chief saved in this very run, or None; as `load` where there is but one process."""
        devices.copy_from_chief(self.file)
        return self.load()

    def load(self) -> Saved | None:
        """Return what was saved by this very run, or None."""
        if not self.file.exists():
            return None
        with np.load(self.file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["run"] != self.run:
                log.info("ignoring the checkpoint %s: it belongs to a run with other settings or data", self.file.name)
                return None
            state = [stored[name] for name in sorted(stored.files) if name.startswith("state_")]
            best = [stored[name] for name in sorted(stored.files) if name.startswith("best_")]
            lowest = about["lowest"] and Score(**about["lowest"], refined_log_losses=stored["lowest"])
        kept = about["history"]
        history = History(**{**kept, "epochs": [Epoch(**epoch) for epoch in kept["epochs"]]})
        return Saved(history, state, best, lowest, Part(**about["part"]))


def _checkpoint_interval_s() -> float:
    said = os.environ.get("REGRAFT_CHECKPOINT_S", str(CHECKPOINT_INTERVAL_S))
    try:
        interval_s = float(said)
    except ValueError:
        interval_s = -1.0
    if not 0.0 <= interval_s < math.inf:
        raise SettingsError(f"the environment variable REGRAFT_CHECKPOINT_S must be a number of seconds, got {said!r}.")
    return interval_s
