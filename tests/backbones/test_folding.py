"""Normalisation folded into convolutions: the same function, by fewer operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from regraft.backbones.folding import folded_normalization

PIXELS = np.random.default_rng(3).normal(size=(4, 12, 12, 3)).astype("float32")


def network(*, bias: bool) -> keras.Model:
    """Return convolutions of both kinds, one of them with a second reader, and a normalisation that follows none."""
    keras.utils.set_random_seed(5)
    pixels = keras.Input((12, 12, 3))
    shared = keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=bias)(pixels)
    maps = keras.layers.ReLU()(keras.layers.BatchNormalization(name="first")(shared))
    maps = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=bias)(maps)
    maps = keras.layers.BatchNormalization(scale=False, name="second")(maps)
    maps = keras.layers.Concatenate()([keras.layers.ReLU()(maps), shared])
    maps = keras.layers.BatchNormalization(center=False, name="alone")(maps)
    maps = keras.layers.Conv2D(5, 1, activation="relu")(maps)
    maps = keras.layers.BatchNormalization(name="after_relu")(maps)
    model = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(maps))
    random = np.random.default_rng(4)
    for variable in model.variables:
        if variable.path.rsplit("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance", "bias"):
            variable.assign(random.uniform(0.5, 2.0, variable.shape))
    return model


def answers_and_gradients(model: keras.Model, *, training: bool) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        outputs = model(PIXELS, training=training)
        loss = tf.reduce_sum(outputs**2)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    return [np.asarray(outputs), *map(np.asarray, gradients)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_answers_and_gradients_are_the_same(bias: bool, learns: bool) -> None:
    model = network(bias=bias)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = learns
    plain = answers_and_gradients(model, training=False)
    with folded_normalization(model):
        folded = answers_and_gradients(model, training=False)
    assert len(plain) == 1 + len(model.trainable_variables)
    for before, after in zip(plain, folded, strict=True):
        np.testing.assert_allclose(after, before, rtol=2e-4, atol=1e-4 * np.abs(before).max())


def test_what_learns_follows_the_batch_in_training() -> None:
    model, same = network(bias=False), network(bias=False)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = layer.name == "first"
    same.get_layer("first").trainable = True
    with folded_normalization(model):
        model(PIXELS, training=True)
    same(PIXELS, training=True)
    first, expected = (network.get_layer("first").moving_mean.numpy() for network in (model, same))
    np.testing.assert_allclose(first, expected, rtol=1e-5)


def test_graphs_have_fewer_passes_and_the_model_stays_as_it_was() -> None:
    model = network(bias=False)

    def passes(*, fold: bool) -> int:
        def answer(pixels: tf.Tensor) -> tf.Tensor:
            if not fold:
                return model(pixels, training=False)
            with folded_normalization(model):
                return model(pixels, training=False)

        graph = tf.function(answer, autograph=False).get_concrete_function(tf.TensorSpec((None, 12, 12, 3))).graph
        return sum(
            operation.type in ("Mul", "AddV2") and len(operation.outputs[0].shape) == 4
            for operation in graph.get_operations()
        )

    before = passes(fold=False)
    assert passes(fold=True) < before
    assert passes(fold=False) == before
    assert all("call" not in vars(layer) for layer in model.layers)


def test_lower_precision_is_left_alone() -> None:
    model = network(bias=False)
    for layer in model.layers:
        layer.dtype_policy = "mixed_bfloat16"
    plain = np.asarray(model(PIXELS, training=False))
    with folded_normalization(model):
        np.testing.assert_array_equal(np.asarray(model(PIXELS, training=False)), plain)
