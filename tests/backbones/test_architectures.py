"""Every network of the catalogue can be made anew, of the shape it was published with."""

import keras
import numpy as np
import pytest

from regraft.backbones.architectures import build
from regraft.backbones.card import weights_digest
from regraft.errors import BackboneError


@pytest.mark.parametrize("name", ["cnn_small", "bert_tiny_en_uncased"])
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


def test_a_text_network_takes_a_vocabulary_of_another_size():
    theirs, ours = (
        build("bert_tiny_en_uncased", 7),
        build("bert_tiny_en_uncased", 7, vocabulary_size=100, called="mine"),
    )
    assert ours.name == "mine"
    assert ours.vocabulary_size == 100
    assert theirs.count_params() - ours.count_params() == (30522 - 100) * 128
    tokens = {name: np.ones((1, 3), "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    assert ours(tokens)["sequence_output"].shape == (1, 3, 128)


def test_images_have_no_vocabulary_and_unknown_names_no_shape():
    with pytest.raises(BackboneError, match="cnn_small takes images"):
        build("cnn_small", 7, vocabulary_size=100)
    with pytest.raises(BackboneError, match="no architecture 'alexnet'"):
        build("alexnet", 7)
