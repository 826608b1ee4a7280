"""What a method of pretraining gives to the training loop."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from regraft.tuning.loop import Trainer
from regraft.tuning.objective import Aim
from regraft.tuning.scores import Score


@dataclass(frozen=True)
class Lesson:
    """A model to train, the examples it learns from, and how it is judged.

    Attributes:
        model: Takes inputs of either size.
        aim: What a step lowers.
        steps_per_epoch: Of one pass, whatever the size.
        sizes: Of inputs in the first half of the training and after it: side in pixels, or tokens in a sequence.
        batches: Those of an epoch, counted from 1, at a size, after so many that were already taken.
        judge: Scores the model of a trainer on what was held out, at the full size.
        unit: What examples are called.
        held_out: How many of them judge.
        seen: sha256 (hex) of each image or paragraph that is learned from.
        facts: What the method has to say in reports, ready for JSON.
    """

    model: keras.Model
    aim: Aim
    steps_per_epoch: int
    sizes: tuple[int, int]
    batches: Callable[[int, int, int], Iterable[tuple[Any, Any]]]
    judge: Callable[[Trainer], Score]
    unit: str
    held_out: int
    seen: Sequence[str]
    facts: dict[str, Any]
