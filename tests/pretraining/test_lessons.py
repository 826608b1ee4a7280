"""What is asked of a network in pretraining: hidden tokens, the next token, turned pictures."""

import numpy as np
import tensorflow as tf

from regraft.pretraining.pictures import _turned
from regraft.pretraining.texts import Special, TokenLosses, hide, pack

SPECIAL = Special(start=(2,), end=3, mask=4, others=(0, 1))


def test_a_stream_is_cut_into_sequences_with_start_and_end():
    assert pack(np.arange(10, 18, dtype=np.int32), 5, SPECIAL).tolist() == [[2, 10, 11, 12, 3], [2, 13, 14, 15, 3]]
    plain = Special(start=(), end=3, mask=-1, others=())
    assert pack(np.arange(10, 18, dtype=np.int32), 4, plain).tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]


def test_fifteen_percent_are_asked_for_of_which_four_fifths_are_hidden_and_a_tenth_replaced():
    tokens = pack(np.random.default_rng(0).integers(5, 1000, 98 * 400).astype(np.int32), 100, SPECIAL)
    asked = hide(tokens, np.random.default_rng(1), special=SPECIAL, words=1000)
    assert asked["places"].shape == (400, 15)
    shown = np.take_along_axis(asked["token_ids"], asked["places"], axis=1)
    true = np.take_along_axis(tokens, asked["places"], axis=1)
    assert (asked["answers"] == true).all()
    assert (asked["counted"] == 1.0).all()
    # 6,000 draws: a standard error of half a percent.
    assert abs((shown == 4).mean() - 0.8) < 0.02
    assert abs(((shown != 4) & (shown != true)).mean() - 0.1) < 0.02
    elsewhere = np.ones(tokens.shape, bool)
    np.put_along_axis(elsewhere, asked["places"], values=False, axis=1)
    assert (asked["token_ids"][elsewhere] == tokens[elsewhere]).all()
    assert elsewhere[:, [0, 99]].all()  # start and end are never asked for


def test_places_without_a_word_do_not_count():
    tokens = np.array([[2, 7, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]], np.int32)
    asked = hide(tokens, np.random.default_rng(0), special=SPECIAL, words=9)
    assert asked["counted"].sum() == 1.0
    assert asked["answers"][asked["counted"] == 1.0].tolist() == [7]


def test_losses_of_tokens_are_means_over_those_that_count():
    logits = np.log(np.array([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]], np.float32))
    losses = TokenLosses()(logits, np.array([[0, 0, 1]]), np.array([[1.0, 1.0, 0.0]], np.float32)).numpy()
    assert np.allclose(losses, [[(np.log(2) + np.log(4)) / 2, 0.5]])


def test_each_picture_is_turned_by_its_own_quarters():
    pictures = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    turned = _turned(tf.constant(pictures), tf.constant([3, 1])).numpy()
    assert (turned[0] == np.rot90(pictures[0], 3)).all()
    assert (turned[1] == np.rot90(pictures[1], 1)).all()
