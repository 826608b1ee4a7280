"""The solved head: right solution, right penalty, right scale."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from regraft.tuning.objective import CLASSES
from regraft.tuning.probe import FOLDS, START_FACTORS, assign_folds, fit_probe, refit_probe, start_penalty
from regraft.tuning.solvers import minimise, solve


def clouds(rows, *, classes=3, size=6, spread=1.0, seed=0):
    """Gaussian clouds around fixed centres, on axes of very different scales and offsets."""
    centres = np.random.default_rng(99).normal(size=(classes, size))
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    features = centres[labels] + spread * generator.normal(size=(rows, size))
    return (features * np.logspace(-2, 2, size) + 5.0).astype(np.float32), labels


def test_the_solution_is_that_of_scikit_learn():
    features, labels = clouds(200)
    standardised = ((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32)
    penalty = 0.01
    ours = solve(standardised, labels, penalty=penalty, start=np.zeros((7, 3)))
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=1000).fit(standardised, labels)
    np.testing.assert_allclose(ours[:-1], theirs.coef_.T, atol=2e-3)
    np.testing.assert_allclose(ours[-1] - ours[-1].mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_the_minimum_of_an_ill_conditioned_bowl_is_found():
    scales = np.logspace(0, 4, 30)
    found = minimise(
        lambda x: (float(0.5 * (scales * (x - 1.0) ** 2).sum()), scales * (x - 1.0)),
        np.zeros(30),
        loss_tolerance=0.0,
        iterations=1000,
    )
    np.testing.assert_allclose(found, np.ones(30), atol=1e-4)


def test_the_probe_takes_features_as_they_come_although_it_is_solved_on_standardised_ones():
    train, labels = clouds(300)
    held_out, held_out_labels = clouds(600, seed=1)
    probe = fit_probe(train, labels, held_out, held_out_labels, classes=3)
    assert probe.kernel.shape == (6, 3)
    assert probe.kernel.dtype == probe.bias.dtype == np.float32
    right = (held_out @ probe.kernel + probe.bias).argmax(axis=1) == held_out_labels
    assert probe.validation.accuracy == right.mean() > 0.7


def test_noisy_features_get_a_stronger_penalty_than_clean_ones():
    chosen = []
    for spread in (0.2, 6.0):
        train, labels = clouds(60, spread=spread, size=30)
        held_out, held_out_labels = clouds(600, spread=spread, size=30, seed=1)
        chosen.append(fit_probe(train, labels, held_out, held_out_labels, classes=3).penalty)
    assert chosen[0] < chosen[1]


def test_folds_help_to_choose_only_while_the_validation_split_is_small():
    train, labels = clouds(90)
    few, few_labels = clouds(30, seed=1)
    many, many_labels = clouds(600, seed=1)
    assert fit_probe(train, labels, few, few_labels, classes=3).folds == FOLDS
    assert fit_probe(train, labels, many, many_labels, classes=3).folds == 0


def test_a_class_with_one_training_example_is_learned_and_never_held_out():
    train, labels = clouds(60)
    features = np.vstack([train, train.max(axis=0) * 4]).astype(np.float32)
    labels = np.append(labels, 3)
    held_out, held_out_labels = clouds(30, seed=1)
    probe = fit_probe(features, labels, held_out, held_out_labels, classes=4)
    assert (features[-1] @ probe.kernel + probe.bias).argmax() == 3
    assert assign_folds(labels, 4)[-1] == -1


def test_folds_share_every_class_evenly():
    labels = np.repeat([0, 1, 2], [40, 10, 6])
    fold_of = assign_folds(labels, 4)
    counts = np.array([[(fold_of[labels == label] == fold).sum() for fold in range(4)] for label in range(3)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


def test_a_constant_feature_does_no_harm():
    train, labels = clouds(90)
    train[:, 2] = 3.0
    probe = fit_probe(train, labels, train, labels, classes=3)
    assert np.isfinite(probe.kernel).all()
    assert probe.kernel[2] == pytest.approx(np.zeros(3))


def test_a_feature_that_is_almost_dead_in_training_decides_nothing_where_it_fires():
    train, labels = clouds(90)
    train[:, 2] = 1e-6 * labels
    held_out, held_out_labels = clouds(90, seed=1)
    probe = fit_probe(train, labels, train, labels, classes=3)
    assert np.abs(probe.kernel[2]).max() < np.abs(probe.kernel[:2]).max()
    held_out[:, 2] = 1.0
    calm = held_out.copy()
    calm[:, 2] = 0.0
    assert (probe.logits(held_out).argmax(axis=1) == probe.logits(calm).argmax(axis=1)).mean() > 0.95
    assert (probe.logits(calm).argmax(axis=1) == held_out_labels).mean() > 0.8


def test_the_probe_is_the_same_twice_and_refitting_at_its_penalty_gives_about_it():
    train, labels = clouds(90)
    held_out, held_out_labels = clouds(90, seed=1)
    first, second = (fit_probe(train, labels, held_out, held_out_labels, classes=3) for _ in range(2))
    assert first.kernel.tobytes() == second.kernel.tobytes()
    kernel, bias = refit_probe(train, labels, classes=3, penalty=first.penalty)
    np.testing.assert_allclose(held_out @ kernel + bias, first.logits(held_out), atol=0.05)


def test_features_that_are_not_numbers_are_refused():
    train, labels = clouds(30)
    broken = train.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="training features hold values that are not finite"):
        fit_probe(broken, labels, train, labels, classes=3)


def test_an_empty_validation_split_is_refused():
    train, labels = clouds(30)
    with pytest.raises(ValueError, match="validation split is empty"):
        fit_probe(train, labels, train[:0], labels[:0], classes=3)


def test_folds_keep_groups_whole_and_hold_out_no_group_that_has_all_of_a_class():
    labels = np.repeat([0, 1, 2], [40, 20, 6])
    groups = np.concatenate([np.arange(60) // 4, np.full(6, 99)])
    fold_of = assign_folds(labels, 4, groups)
    assert (fold_of[60:] == -1).all()
    for group in range(15):
        assert len(set(fold_of[groups == group])) == 1
    assert set(fold_of[:60]) == {0, 1, 2, 3}
    assert (assign_folds(labels, 4, np.zeros(66)) == -1).all()
    assert set(assign_folds(labels[:60], 4, np.arange(60) // 40 + np.arange(60) // 20 % 2)) <= {-1, 0, 1}


def test_where_no_fold_can_be_held_out_validation_alone_chooses_the_penalty():
    train, labels = clouds(60)
    held_out, held_out_labels = clouds(30, seed=1)
    probe = fit_probe(train, labels, held_out, held_out_labels, classes=3, groups=np.zeros(len(labels)))
    assert probe.folds == 0


def test_the_more_a_probe_knows_by_heart_the_softer_the_head_that_fine_tuning_starts_from():
    factors = []
    for rows in (2000, 24):
        train, labels = clouds(rows, size=400, spread=3.0)
        held_out, held_out_labels = clouds(600, size=400, spread=3.0, seed=1)
        probe = fit_probe(train, labels, held_out, held_out_labels, classes=3)
        factors.append(start_penalty(probe, train, labels, classes=3) / probe.penalty)
    assert factors == pytest.approx([START_FACTORS[0], START_FACTORS[-1]])


def test_fine_tuning_starts_no_more_unsure_of_its_examples_than_the_probe_is_of_others():
    train, labels = clouds(30, size=100)
    held_out, held_out_labels = clouds(600, size=100, seed=1)
    probe = fit_probe(train, labels, held_out, held_out_labels, classes=3)
    penalty = start_penalty(probe, train, labels, classes=3)
    losses = []
    for each in (penalty, 10 * penalty):
        kernel, bias = refit_probe(train, labels, classes=3, penalty=each)
        losses.append(CLASSES.losses(train @ kernel + bias, labels).mean())
    assert losses[0] <= min(loss for _, loss in probe.path) < losses[1]


def test_folds_of_examples_of_which_few_are_copies_are_as_even_as_without():
    labels = np.arange(400) % 7
    groups = np.arange(400)
    groups[1], groups[50] = groups[0], groups[57]
    fold_of = assign_folds(labels, 4, groups)
    assert fold_of[0] == fold_of[1]
    assert fold_of[50] == fold_of[57]
    counts = np.array([[(fold_of[labels == label] == fold).sum() for fold in range(4)] for label in range(7)])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert np.ptp(counts.sum(axis=0)) <= 1
