"""Settings that follow from the data, the ways that fit it, and what contrastive learning asks for."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.tuning.batches import paired_order
from regraft.tuning.objective import LIKENESS, OBJECTIVES
from regraft.tuning.recipes import (
    RATES,
    WAYS,
    Data,
    batch_size_for,
    competitors,
    epochs_for,
    folds_to_judge,
    from_nothing,
    patience_for,
)
from tests.tuning.sources import InMemory


@pytest.mark.parametrize(("examples", "size"), [(3, 16), (66, 16), (255, 16), (256, 32), (9000, 32)])
def test_few_examples_make_small_batches(examples, size):
    assert batch_size_for(examples) == size
    assert batch_size_for(examples, pretrained=False) == 32


@pytest.mark.parametrize(("examples", "epochs"), [(16, 100), (66, 100), (320, 20), (640, 10), (1600, 4), (100_000, 4)])
def test_few_examples_get_more_epochs_within_limits(examples, epochs):
    assert epochs_for(examples, 32) == epochs


@pytest.mark.parametrize(("examples", "epochs"), [(16, 50), (66, 25), (640, 3), (1600, 2), (100_000, 2)])
def test_patience_is_a_matter_of_steps_where_epochs_are_short(examples, epochs):
    assert patience_for(examples, 32) == epochs


@pytest.mark.parametrize(("examples", "epochs"), [(16, 100), (1600, 30), (16_000, 4)])
def test_a_network_from_nothing_gets_more_steps(examples, epochs):
    assert epochs_for(examples, 32, pretrained=False) == epochs


def test_a_network_from_nothing_learns_at_higher_rates_and_else_alike():
    for way in WAYS.values():
        bold = from_nothing(way)
        assert (bold.name, bold.head, bold.gradual) == (way.name, way.head, way.gradual)
        assert max(bold.rates) > max(RATES)


@pytest.mark.parametrize(
    ("train", "validation", "folds"), [(80, 20, 3), (800, 200, 0), (600, 100, 1), (360, 40, 2), (16, 3, 3)]
)
def test_folds_judge_where_validation_is_too_small_to(train, validation, folds):
    assert folds_to_judge(train, validation) == folds


def names(kind, *, per_class, task="classification", has_attention=True):
    train = InMemory(kind, [], np.arange(per_class * 3) % 3)
    features = np.zeros((3 * per_class, 2), np.float32)
    data = Data(train, train, features, features, lambda content: content, 3, OBJECTIVES[task])
    return [way.name for way in competitors(data, has_attention=has_attention)]


def test_what_competes_depends_on_kind_task_and_examples_a_class():
    assert names("text", per_class=64) == ["lp_ft", "full", "gradual", "contrastive"]
    assert names("text", per_class=65) == ["lp_ft", "full", "gradual", "lora"]
    assert names("text", per_class=8, task="regression") == ["lp_ft", "full", "gradual"]
    assert names("image", per_class=8, has_attention=False) == ["lp_ft", "full", "gradual"]


LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 9, 9])
ROWS = np.arange(8)  # the nines take no part


def test_neighbours_are_of_one_class_and_every_row_is_met():
    order = paired_order(ROWS, LABELS, 100, seed=1, epoch=1)
    assert (LABELS[order[::2]] == LABELS[order[1::2]]).all()
    assert set(order) == set(ROWS)
    assert len(order) == 10  # the odd one of class 0 and the only one of class 2 are met twice


def test_pairs_are_cut_to_whole_batches_and_change_with_the_epoch():
    first, second = (paired_order(ROWS, LABELS, 4, seed=1, epoch=epoch) for epoch in (1, 2))
    assert len(first) == len(second) == 8
    assert (first != second).any()
    assert (first == paired_order(ROWS, LABELS, 4, seed=1, epoch=1)).all()


def test_the_loss_of_likeness_by_hand():
    # Two alike that point the same way, one other at a right angle to them and one other that points along with them.
    features = tf.constant([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    loss = LIKENESS.training_loss()
    assert float(loss(tf.constant([0, 0, 1]), features)) == pytest.approx(0.0)
    # Now the pair of one class is at a right angle (error 1), and of the two others one is parallel (error 1, and 0).
    assert float(loss(tf.constant([0, 1, 0]), features)) == pytest.approx(0.5 * (1.0 + 0.5))


def test_a_batch_of_one_class_has_a_loss():
    assert float(LIKENESS.training_loss()(tf.constant([1, 1]), tf.constant([[1.0, 0.0], [1.0, 0.0]]))) == 0.0
