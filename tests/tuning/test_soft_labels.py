"""Labels spread over classes, inputs mixed in pairs, and rare classes weighted up."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.tuning.class_weights import log_weights
from regraft.tuning.objective import CLASSES, SOFT_CLASSES
from regraft.tuning.soft_labels import mix, smooth

SEED = tf.constant([3, 5], tf.int64)


def test_a_smoothed_class_keeps_its_share_and_spreads_the_rest():
    shares = smooth(tf.constant([2, 0]), 4, 0.2).numpy()
    np.testing.assert_allclose(shares, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], atol=1e-6)


def test_a_smoothed_label_of_several_moves_towards_a_half():
    np.testing.assert_allclose(smooth(tf.constant([[1.0, 0.0]]), 2, 0.2).numpy(), [[0.9, 0.1]], atol=1e-6)


def test_shares_that_are_not_spread_cost_what_the_class_costs():
    logits = tf.constant(np.random.default_rng(0).normal(size=(6, 3)), tf.float32)
    labels = tf.constant([0, 1, 2, 2, 1, 0], tf.int64)
    soft = SOFT_CLASSES.training_loss()(smooth(labels, 3, 0.0), logits)
    np.testing.assert_allclose(soft, CLASSES.training_loss()(labels, logits), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 5.0])
def test_inputs_and_labels_are_mixed_in_the_same_shares(alpha):
    labels = tf.one_hot(tf.range(8), 8)
    inputs = tf.reshape(labels, (8, 2, 4, 1)) * 255.0
    mixed, shares = mix(inputs, labels, SEED, alpha)
    np.testing.assert_allclose(tf.reshape(mixed, (8, 8)) / 255.0, shares, atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(shares, axis=1), np.ones(8), atol=1e-6)
    assert (np.argmax(shares, axis=1) == np.arange(8)).all()
    own = np.diag(shares.numpy())
    if alpha == 0.001:
        np.testing.assert_allclose(own, 1.0, atol=1e-3)
    if alpha == 5.0:
        assert 0.5 <= own.mean() < 0.8
    again = mix(inputs, labels, SEED, alpha)
    np.testing.assert_array_equal(mixed, again[0])
    if alpha > 0.001:
        assert (mix(inputs, labels, SEED + 1, alpha)[0].numpy() != mixed.numpy()).any()


def test_mixed_real_values_are_means_of_two():
    values = tf.constant([[0.0], [10.0]])
    _, shares = mix(tf.zeros((2, 1, 1, 3)), values, SEED, 1.0)
    low, high = shares.numpy()[:, 0]
    assert 0.0 <= low <= 5.0 <= high <= 10.0


def test_weights_turn_the_shares_of_classes_into_equal_ones():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    shares = np.bincount(labels) / len(labels)
    balanced = np.exp(np.log(shares) + log_weights(labels, 3))
    np.testing.assert_allclose(balanced, np.full(3, 1 / 3), rtol=1e-5)
    np.testing.assert_allclose(log_weights(np.array([0, 1, 2]), 3), np.zeros(3), atol=1e-6)


def test_a_class_without_examples_gets_a_finite_weight():
    assert np.isfinite(log_weights(np.array([0, 0, 2]), 3)).all()


def test_weights_of_labels_make_their_odds_even():
    held = np.zeros((100, 2), np.float32)
    held[:20, 0] = 1.0
    held[:, 1] = 1.0
    weights = log_weights(held, 2)
    np.testing.assert_allclose(np.log(20 / 80) + weights[0], 0.0, atol=1e-6)
    assert np.isfinite(weights).all()
