"""What fine-tuning is given: the examples, what a person set, and the ways there are to do it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import tensorflow as tf
from numpy.typing import NDArray

from regraft.data.targets import CLASSIFICATION, REGRESSION
from regraft.errors import TrainingError
from regraft.settings import FinetuneSettings
from regraft.tuning.batches import Source, steps_in_epoch
from regraft.tuning.objective import CLASSES, Objective
from regraft.tuning.solvers import Features

# Peak rates of AdamW worth trying, a factor of about three apart.
RATES = (1.0e-5, 3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3)
# Weights that begin from nothing have further to go.
RATES_FROM_NOTHING = (1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3, 1.0e-2)
# A head of zeros has further to go than a solved one.
RATES_OF_ZERO_HEAD = (3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3)
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
        groups: Whose each training example is (a speaker's, a patient's), shape (N,): what is held out is held out
            whole. None: nobody's.
    """

    train: Source
    validation: Source
    train_features: Features
    validation_features: Features
    prepare: Callable[[tf.Tensor], Any]
    classes: int
    objective: Objective = CLASSES
    groups: NDArray[Any] | None = None


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
        l2_sp: Strength of the pull back to the weights at the start, see `loop.Trainer`; 0 for none.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
        mixup: Parameter of the Beta distribution of shares in which two inputs are mixed; 0 for none.
        soup: Whether epochs are averaged as long as validation gains by it, see `loop.train`.
        budget_s: Seconds that the whole search and training may take, about; None for any.
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
    l2_sp: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    soup: bool = False
    budget_s: float | None = None
    accumulate: int = 1

    @property
    def softens(self) -> bool:
        """Whether labels of training examples are shares of several classes."""
        return self.label_smoothing > 0.0 or self.mixup > 0.0


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
        everything_learns: Whether statistics and tables of embeddings learn too, see `loop.Trainer`.
        rates: Peak rates worth trying, in rising order. The search begins in their middle and walks downhill.
    """

    name: str
    head: Literal["solved", "zero"] = "solved"
    gradual: bool = False
    lora_rank: int = 0
    contrastive: bool = False
    everything_learns: bool = False
    rates: tuple[float, ...] = RATES


WAYS = {
    way.name: way
    for way in (
        # LP-FT of Kumar et al., 2022 (arXiv:2202.10054): a solved head keeps the first steps from tearing up features
        # for the sake of a random one.
        Way("lp_ft"),
        # The plain recipe. A head of zeros, as BiT has it (Kolesnikov et al., 2020, arXiv:1912.11370), is no worse than
        # a random one and needs no seed.
        Way("full", head="zero", rates=RATES_OF_ZERO_HEAD),
        Way("gradual", gradual=True),
        # Hu et al., 2021 (arXiv:2106.09685), on queries and values.
        Way("lora", lora_rank=8, rates=LORA_RATES),
        # SetFit, for few texts a class.
        Way("contrastive", contrastive=True),
    )
}


FEW_A_CLASS = 64
BATCH_SIZES = (32, 16)
STEPS_PER_EPOCH = 8
LEAST_STEPS = 200
# A pilot that is too short favours rates that are too low: on MNIST (505 steps in all) 40 steps preferred 1e-4 to
# 3e-4, 100 steps 3e-4, which is right. A quarter of the run is enough, and 100 steps are.
PILOT_FRACTION = 0.25
PILOT_STEPS_MOST = 100
JUDGING_FOLDS = 4
# Of which one judges pilots and rehearsals, and then has no say on what they chose.
CHOOSING_FOLD = 0
ENOUGH_TO_DECIDE = 200
FEWEST_EPOCHS, MOST_EPOCHS = 4, 100
STEPS_FROM_NOTHING = 1500
# Few examples make short epochs: two of them, four steps, are no reason to give up.
PATIENCE_STEPS, LEAST_PATIENCE_EPOCHS = 50, 2


def batch_size_for(examples: int, *, pretrained: bool = True) -> int:
    """Return what `batch_size: auto` means: the largest of `BATCH_SIZES` with `STEPS_PER_EPOCH` steps in an epoch.

    The largest of all for a network that begins from nothing, whose normalisation follows the statistics of batches.

    Steps are what counts, so few examples in large batches are shown again and again for the same number of steps. With
    8 examples a class `full` was right on 0.936, 0.957, 0.966 of the test split of sign_digits in batches of 32, 16 and
    8, of grocery10 on 0.862, 0.806, 0.815, of fsdd on 0.783, 0.810, 0.747, in 788, 542 and 306 s together.
    """
    if not pretrained:
        return BATCH_SIZES[0]
    return next((size for size in BATCH_SIZES if examples // size >= STEPS_PER_EPOCH), BATCH_SIZES[-1])


def epochs_for(examples: int, batch_size: int, *, pretrained: bool = True) -> int:
    """Return how many epochs `epochs: auto` allows: enough for `LEAST_STEPS` steps, from 4 to 100.

    As in BiT-HyperRule (arXiv:1912.11370) steps are what counts: few examples need more passes to come as far. A
    network that begins from nothing gets `STEPS_FROM_NOTHING`.
    """
    least = LEAST_STEPS if pretrained else STEPS_FROM_NOTHING
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-least // steps_in_epoch(examples, batch_size))))


def patience_for(examples: int, batch_size: int) -> int:
    """Return how many epochs `patience_epochs: auto` waits: `PATIENCE_STEPS` steps, and 2 at least."""
    return max(LEAST_PATIENCE_EPOCHS, -(-PATIENCE_STEPS // steps_in_epoch(examples, batch_size)))


def recipe_for(settings: FinetuneSettings, seed: int, examples: int, *, pretrained: bool) -> Recipe:
    """Return what a person set, with the rules for so many training examples in place of `auto`."""
    batch_size = settings.batch_size
    if batch_size == "auto":
        batch_size = batch_size_for(examples, pretrained=pretrained)
    by_rule = epochs_for(examples, batch_size, pretrained=pretrained)
    epochs = by_rule if settings.epochs == "auto" else settings.epochs
    patience = settings.patience_epochs
    if patience == "auto":
        patience = patience_for(examples, batch_size)
    by_name = {"strategy", "epochs", "patience_epochs", "class_weights", "precision", "batch_size"}
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        patience_epochs=patience,
        seed=seed,
        **settings.model_dump(exclude=by_name),
    )


def from_nothing(way: Way) -> Way:
    """Return `way` as it is tried on a backbone that never learnt anything."""
    return replace(way, rates=RATES_FROM_NOTHING, everything_learns=True)


def pilot_steps(total_steps: int) -> int:
    """Return how many steps a pilot takes, for a run of `total_steps`."""
    return max(1, min(PILOT_STEPS_MOST, round(PILOT_FRACTION * total_steps)))


def epochs_within(steps: float, epochs: int, *, steps_per_epoch: float, pilots: int, rehearsals: int) -> int:
    """Return the most epochs, up to `epochs`, whose run, pilots and rehearsals take at most `steps`; 0 if none do.

    Args:
        steps: That there is time for.
        epochs: Wanted.
        steps_per_epoch: What an epoch takes, validation included, in steps.
        pilots: How many come first, see `pilot_steps`.
        rehearsals: How many runs without one of `JUDGING_FOLDS` folds there are besides.
    """
    runs = 1.0 + rehearsals * (1.0 - 1.0 / JUDGING_FOLDS)
    for fewer in range(epochs, 0, -1):
        if pilots * pilot_steps(round(fewer * steps_per_epoch)) + runs * fewer * steps_per_epoch <= steps:
            return fewer
    return 0


def folds_to_judge(train: int, validation: int) -> int:
    """Return how many of `JUDGING_FOLDS` folds of the training data help to decide between probe and fine-tuned model.

    As many as it takes to have `ENOUGH_TO_DECIDE` examples with those of the validation split, all but `CHOOSING_FOLD`
    at most; none if that is enough.
    """
    lacking = max(0, ENOUGH_TO_DECIDE - validation)
    return min(JUDGING_FOLDS - 1, -(-lacking * JUDGING_FOLDS // max(1, train)))


def fits(way: Way, data: Data) -> bool:
    """Return whether `way` can learn from `data`; the backbone may have its say besides."""
    return not way.contrastive or (data.train.kind == "text" and data.objective.task == CLASSIFICATION)


def refuse_what_does_not_fit(ways: Sequence[Way], data: Data, recipe: Recipe) -> None:
    """Check that ways and options can do something with `data`.

    Raises:
        TrainingError: If one of them cannot.
    """
    kind, task = data.train.kind, data.objective.task
    for way in ways:
        if not fits(way, data):
            raise TrainingError(
                f"finetune.strategy: {way.name} is for texts with one class each; this is {kind} with {task}. "
                "Use auto, lp_ft, gradual, full or probe."
            )
    if recipe.label_smoothing and task == REGRESSION:
        raise TrainingError("finetune.label_smoothing is for classes and labels; these are real values. Set it to 0.")
    if recipe.mixup and kind == "text":
        raise TrainingError("finetune.mixup is for images and recordings; texts cannot be mixed. Set it to 0.")


def competitors(data: Data, *, has_attention: bool, accumulate: int = 1) -> tuple[Way, ...]:
    """Return the ways that `strategy: auto` tries out, besides the probe: all that fit.

    Args:
        data: Decides by kind, task and examples a class.
        has_attention: Whether the backbone takes LoRA.
        accumulate: Slices of a batch; `contrastive` needs it whole.
    """
    few = len(data.train.labels) <= FEW_A_CLASS * data.classes
    left_out = {
        "lora": few or not has_attention,  # it spares memory, which few examples do not need
        "contrastive": not few or accumulate > 1,
    }
    return tuple(way for way in WAYS.values() if fits(way, data) and not left_out.get(way.name))
