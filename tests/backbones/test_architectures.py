"""Every network of the catalogue can be made anew, of the shape it was published with."""

import keras
import pytest

from regraft.backbones import catalogue
from regraft.backbones.architectures import architectures, build
from regraft.backbones.arithmetic import operations
from regraft.backbones.card import weights_digest


@pytest.mark.parametrize("name", ["cnn_small", "rnn_small"])
def test_the_seed_decides_the_weights(name):
    keras.utils.set_random_seed(123)  # what went before does not matter
    first = weights_digest(build(name, 7))
    assert weights_digest(build(name, 7)) == first
    assert weights_digest(build(name, 8)) != first


@pytest.mark.parametrize(
    ("name", "first"), [("cnn_small", (-0.46499658, -0.05912777)), ("rnn_small", (-0.15028462, -0.01910981))]
)
def test_the_small_networks_begin_with_the_weights_they_always_had(name, first):
    weights = keras.ops.convert_to_numpy(build(name, 7).weights[0])
    assert weights.ravel()[:2] == pytest.approx(first, rel=1e-5)


def test_every_network_of_the_catalogue_has_a_shape_of_its_kind():
    assert set(architectures()) == set(catalogue.entries())
    for name, shape in architectures().items():
        assert ("vocabulary_size" in shape.config) == (catalogue.find(name).kind == "text")


# The others, which take seconds each: tests/backbones/test_families_*.py, marked slow.
@pytest.mark.parametrize("name", ["mobilenet_v3_small_100_imagenet", "bert_tiny_en_uncased", "cnn_small", "rnn_small"])
def test_parameters_and_operations_are_those_of_the_catalogue(name):
    entry, backbone = catalogue.find(name), build(name, 7)
    assert backbone.count_params() == entry.parameters
    assert operations(backbone, side_px=entry.input_size_px) == entry.flops


def test_operations_are_two_for_each_weight_at_each_place_and_matrix_products_count_too():
    pixels = keras.Input((8, 8, 3))
    net = keras.layers.Conv2D(5, 3, strides=2, padding="same")(pixels)  # at 4 x 4 places 3 * 3 * 3 * 5 weights
    net = keras.layers.DepthwiseConv2D(3, padding="same")(net)  # at 4 x 4 places 3 * 3 * 5
    net = keras.layers.Dense(7)(keras.layers.Flatten()(net))  # 4 * 4 * 5 * 7
    expected = 2 * (16 * 135 + 16 * 45 + 560)
    assert operations(keras.Model(pixels, net), side_px=8) == expected
