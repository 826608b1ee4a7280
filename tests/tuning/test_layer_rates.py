"""Which rate each layer gets."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from regraft.backbones.architectures import Architecture, architectures
from regraft.tuning.layers import GROUP_DECAY, GROUPS, decayed_multipliers, gradual_multipliers, levels
from tests.backbones.family import SMALLER


def tower(depth):
    """`depth` dense layers, nested in a model as a backbone is, and a head."""
    inner = keras.Sequential([keras.Input((3,)), *(layers.Dense(3) for _ in range(depth))], name="backbone")
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2, name="head")(inner(inputs)))


def test_levels_rise_from_the_input_to_the_head_and_a_kernel_stands_with_its_bias():
    assert levels(tower(3), most=12) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_many_layers_share_few_levels_evenly_and_the_head_has_its_own():
    assert levels(tower(8), most=4)[::2] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_frozen_layers_have_no_level():
    model = tower(3)
    model.get_layer("backbone").layers[0].trainable = False
    assert levels(model, most=12) == [0, 0, 1, 1, 2, 2]


def test_the_rate_falls_by_the_decay_from_level_to_level():
    np.testing.assert_allclose(decayed_multipliers([0, 1, 2], 0.5), [0.25, 0.5, 1.0])


@pytest.mark.parametrize(("step", "learning"), [(0, 1), (19, 1), (20, 2), (40, 3), (60, 4), (80, 5), (199, 5)])
def test_layers_join_from_the_top_down_until_half_of_training_is_over(step, learning):
    heights = [0, 1, 2, 3, 4]  # four groups and the head
    multipliers = gradual_multipliers(heights, 200)(step)
    expected = [GROUP_DECAY ** (GROUPS - height) if height > GROUPS - learning else 0.0 for height in heights]
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["vit_base_patch16_224_imagenet", "gpt2_base_en"])
def test_each_block_of_a_transformer_stands_on_a_level_of_its_own(name):
    row = architectures()[name]
    config = {**row.config, **SMALLER[row.class_name], "num_layers": 3}
    backbone = Architecture(row.class_name, config).make(called="net")
    sequence = backbone.output["sequence_output"] if isinstance(backbone.output, dict) else backbone.output
    model = keras.Model(backbone.input, layers.Dense(2)(sequence[:, 0]))
    heights = levels(model, most=12)
    assert heights == sorted(heights)
    of_block: dict[str, set[int]] = {}
    for weight, height in zip(model.trainable_variables, heights, strict=True):
        block = re.search(r"transformer_(?:block|layer)_(\d)", weight.path)
        if block:
            of_block.setdefault(block[1], set()).add(height)
    assert len(of_block) == 3
    assert all(len(found) == 1 for found in of_block.values())
    assert len(set.union(*of_block.values())) == 3
