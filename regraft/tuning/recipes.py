"""What fine-tuning is given: the examples, what a person set, and the ways there are to do it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from regraft.data.targets import CLASSIFICATION
from regraft.tuning.batches import Source
from regraft.tuning.objective import CLASSES, Objective
from regraft.tuning.solvers import Features

# Peak rates of AdamW worth trying, a factor of about three apart.
RATES = (1.0e-5, 3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3)
# The few weights of LoRA begin at zero and bear steps ten times as long.
LORA_RATES = (1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3, 1.0e-2)


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
        layer_decay: Rate of a layer over that of the layer above it, see `layers.decayed_multipliers`; in (0, 1].
        seed: Decides order, augmentation and dropout.
        accumulate: In how many slices a batch is worked through, see `loop.Trainer`.
    """

    epochs: int
    batch_size: int
    learning_rate: float | str
    patience_epochs: int
    augment: bool
    seed: int
    layer_decay: float = 1.0
    accumulate: int = 1


@dataclass(frozen=True)
class Way:
    """One way to fine-tune backbone and head.

    Attributes:
        name: The strategy, as settings call it.
        head: What the head starts from: "solved" on the frozen features, or "zero".
        gradual: Whether layers join from the top down, see `layers.gradual_multipliers`.
        lora_rank: Of the matrices that learn in place of the attention's own; 0 for none.
        contrastive: Whether the backbone learns from pairs which examples are alike, see `objective.Likeness`, and the
            head is solved anew on its features.
        rates: Peak rates worth trying, in rising order. The search begins in their middle and walks downhill.
    """

    name: str
    head: Literal["solved", "zero"] = "solved"
    gradual: bool = False
    lora_rank: int = 0
    contrastive: bool = False
    rates: tuple[float, ...] = RATES


WAYS = {
    way.name: way
    for way in (
        # LP-FT of Kumar et al., 2022 (arXiv:2202.10054): a solved head keeps the first steps from tearing up features
        # for the sake of a random one.
        Way("lp_ft"),
        # The plain recipe. A head of zeros, as BiT has it (Kolesnikov et al., 2020, arXiv:1912.11370), is no worse than
        # a random one and needs no seed.
        Way("full", head="zero"),
        Way("gradual", gradual=True),
        # Hu et al., 2021 (arXiv:2106.09685), on queries and values.
        Way("lora", lora_rank=8, rates=LORA_RATES),
        # SetFit, for few texts a class.
        Way("contrastive", contrastive=True),
    )
}


FEW_A_CLASS = 64
LEAST_STEPS = 200
JUDGING_FOLDS = 4
ENOUGH_TO_DECIDE = 200
FEWEST_EPOCHS, MOST_EPOCHS = 4, 20


def epochs_for(examples: int, batch_size: int) -> int:
    """Return how many epochs `epochs: auto` allows: enough for `LEAST_STEPS` steps, from 4 to 20.

    As in BiT-HyperRule (arXiv:1912.11370) steps are what counts: few examples need more passes to come as far.
    """
    steps = max(1, examples // batch_size)
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-LEAST_STEPS // steps)))


def folds_to_judge(train: int, validation: int) -> int:
    """Return how many of `JUDGING_FOLDS` folds of the training data help to decide between probe and fine-tuned model.

    As many as it takes to have `ENOUGH_TO_DECIDE` examples with those of the validation split; none if that is enough.
    """
    lacking = max(0, ENOUGH_TO_DECIDE - validation)
    return min(JUDGING_FOLDS, -(-lacking * JUDGING_FOLDS // max(1, train)))


def fits(way: Way, data: Data) -> bool:
    """Return whether `way` can learn from `data`; the backbone may have its say besides."""
    return not way.contrastive or (data.train.kind == "text" and data.objective.task == CLASSIFICATION)


def competitors(data: Data, *, has_attention: bool, accumulate: int = 1) -> tuple[Way, ...]:
    """Return the ways that `strategy: auto` tries out, besides the probe.

    `full` is left out: it differs from `lp_ft` in its head alone, and begins with a worse one.

    Args:
        data: Decides by kind, task and examples a class.
        has_attention: Whether the backbone takes LoRA.
        accumulate: Slices of a batch; `contrastive` needs it whole.
    """
    few = len(data.train.labels) <= FEW_A_CLASS * data.classes
    if few and accumulate == 1 and fits(WAYS["contrastive"], data):
        return (WAYS["lp_ft"], WAYS["contrastive"])
    if has_attention:
        return (WAYS["lp_ft"], WAYS["lora"])
    return (WAYS["lp_ft"], WAYS["gradual"])
