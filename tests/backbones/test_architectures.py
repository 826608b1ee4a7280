"""Every network of the catalogue can be made anew, of the shape it was published with."""

import keras
import pytest

from regraft.backbones import catalogue
from regraft.backbones.architectures import architectures, build
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


def test_every_network_of_the_catalogue_has_a_shape_of_its_kind_and_as_many_parameters():
    assert set(architectures()) == set(catalogue.entries())
    for name, entry in catalogue.entries().items():
        backbone = build(name, 7)
        assert backbone.count_params() == entry.parameters
        assert ("vocabulary_size" in backbone.get_config()) == (entry.kind == "text")
