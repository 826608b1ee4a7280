"""Which learning rate each layer gets: smaller ones further down, or none until its turn comes.

Multipliers act on AdamW's steps, not on its gradients: see `loop.Trainer`.
"""

from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

LEVELS = 12  # of a deep network; fewer where fewer layers have weights
GROUPS = 4  # that are unfrozen one after another, the head not counted
GROUP_DECAY = 1.0 / 2.6  # Howard & Ruder, 2018, section 3.2 (arXiv:1801.06146)


def levels(model: keras.Model, most: int) -> list[int]:
    """Return how high in the network each of `model.trainable_variables` stands: 0 is nearest to the input.

    Layers with trainable weights, in the order of the network, are dealt to at most `most` levels of equal numbers of
    layers; the last layer, which is the head, has a level of its own above them. A block that is one layer to the
    network, such as a transformer's, counts as one; of a layer that is a pile of blocks (ViT's encoder), each does.
    """
    owners = [layer for layer in _in_order(model) if layer.trainable_variables]
    below = max(1, len(owners) - 1)
    height = min(most, below)
    level_of = {
        id(weight): height if number == len(owners) - 1 and len(owners) > 1 else number * height // below
        for number, layer in enumerate(owners)
        for weight in layer.trainable_variables
    }
    return [level_of[id(weight)] for weight in model.trainable_variables]


def _in_order(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of `model` from input to output, and in place of a model or a pile of blocks, its layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _in_order(layer)
        elif _is_pile(layer):
            yield from _parts(layer)
        else:
            yield layer


def _parts(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _is_pile(layer: keras.layers.Layer) -> bool:
    """Return whether `layer` holds several layers of one class that are made of layers themselves."""
    classes = [type(part) for part in _parts(layer) if _parts(part)]
    return len(set(classes)) < len(classes)


def decayed_multipliers(heights: Sequence[int], decay: float) -> NDArray[np.float32]:
    """Return decay ** (top - level) for each weight, float32, shape (W,).

    Args:
        heights: Of each weight, see `levels`.
        decay: In (0, 1]; 1 treats all alike.

    Source: ELECTRA's and AutoGluon's layer-wise decay; discriminative fine-tuning of arXiv:1801.06146.
    """
    return (decay ** (max(heights) - np.asarray(heights, np.float64))).astype(np.float32)


def gradual_multipliers(heights: Sequence[int], total_steps: int) -> Callable[[int], NDArray[np.float32]]:
    """Return the function from a step, counted from 0, to the multipliers of that step, float32, shape (W,).

    The head learns alone at first. In the first half of training the groups join it from the top down, after equal
    numbers of steps; in the second half all learn, each with `GROUP_DECAY` times the rate of the group above.

    Args:
        heights: Of each weight, see `levels` with `most=GROUPS`.
        total_steps: Of training.

    Source: gradual unfreezing of Howard & Ruder, 2018, section 3.3 (arXiv:1801.06146).
    """
    decayed = decayed_multipliers(heights, GROUP_DECAY)
    depth = max(heights) - np.asarray(heights)

    def multipliers(step: int) -> NDArray[np.float32]:
        joined = 2 * step * (int(depth.max()) + 1) // max(1, total_steps)
        return np.where(depth <= joined, decayed, np.float32(0.0))

    return multipliers
