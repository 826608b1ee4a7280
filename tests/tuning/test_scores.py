"""Log loss, refined log loss and accuracy of logits."""

import math

import numpy as np
import pytest

from regraft.tuning.scores import log_losses, refined_log_losses, score


def test_log_loss_of_equal_logits_is_the_logarithm_of_the_number_of_classes():
    assert log_losses(np.full((2, 4), 7.0), np.array([0, 3])) == pytest.approx([math.log(4), math.log(4)])


def test_log_loss_of_huge_logits_is_finite_and_exact():
    assert log_losses(np.array([[1e4, 0.0], [1e4, 0.0]]), np.array([0, 1])) == pytest.approx([0.0, 1e4])


def test_being_too_sure_does_not_change_the_refined_log_loss_but_being_wrong_does():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 3)) * 2
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)  # so that softmax(logits) is the truth
    refined = refined_log_losses(logits, labels).mean()
    assert refined == pytest.approx(log_losses(logits, labels).mean(), rel=0.02)
    assert refined_log_losses(8 * logits, labels).mean() == pytest.approx(refined, rel=1e-6)
    assert log_losses(8 * logits, labels).mean() > 3 * refined
    assert refined_log_losses(logits[::-1], labels).mean() > 1.5 * refined


def test_perfect_logits_have_a_refined_log_loss_near_zero():
    assert refined_log_losses(np.eye(4) * 5.0, np.arange(4)).max() < 1e-20


def test_a_score_says_accuracy_and_has_a_loss_for_every_example():
    scored = score(np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]]), np.array([0, 1, 1, 1]))
    assert (scored.accuracy, len(scored.refined_log_losses)) == (0.75, 4)


def test_logits_that_are_not_numbers_score_a_log_loss_that_is_none():
    assert math.isnan(score(np.array([[np.nan, 1.0]]), np.array([1])).refined_log_loss)


def test_nothing_cannot_be_scored():
    with pytest.raises(ValueError, match="no examples"):
        score(np.zeros((0, 2)), np.zeros(0, np.int64))
