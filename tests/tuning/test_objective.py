"""What training aims at for several labels and for real values: right solvers, right losses, right verdicts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.metrics import f1_score, log_loss, r2_score

from regraft.tuning.objective import OBJECTIVES
from regraft.tuning.probe import assign_folds, fit_probe
from regraft.tuning.scores import label_losses, score_labels, score_values
from regraft.tuning.solvers import Ridge, solve_labels
from regraft.tuning.target_scale import TargetScale
from regraft.tuning.verdict import compare

REAL, LABELS = OBJECTIVES["regression"], OBJECTIVES["multilabel"]


def linear(rows, *, size=8, outputs=2, noise=0.5, seed=0):
    """Features of very different scales and offsets, and values that are a linear function of them with noise."""
    weights = np.random.default_rng(99).normal(size=(size, outputs))
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, size))
    values = features @ weights + noise * generator.normal(size=(rows, outputs))
    return (features * np.logspace(-2, 2, size) + 5.0).astype(np.float32), values.astype(np.float32)


def standardised(features):
    return ((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_ridge_is_that_of_scikit_learn(penalty):
    features, values = linear(150)
    features = standardised(features)
    ours = Ridge(features, values).solve(penalty)
    theirs = TheirRidge(alpha=penalty * len(values)).fit(features.astype(np.float64), values.astype(np.float64))
    np.testing.assert_allclose(ours[:-1], theirs.coef_.T, atol=1e-6)
    np.testing.assert_allclose(ours[-1], theirs.intercept_, atol=1e-6)


def test_ridge_with_more_features_than_examples_is_finite_and_right():
    features, values = linear(20, size=50)
    ours = Ridge(features, values).solve(0.01)
    theirs = TheirRidge(alpha=0.01 * 20).fit(features.astype(np.float64), values.astype(np.float64))
    np.testing.assert_allclose(features @ ours[:-1] + ours[-1], theirs.predict(features), atol=1e-3)


def test_one_logistic_regression_a_label_is_that_of_scikit_learn():
    features, values = linear(300, outputs=3, noise=2.0)
    features, labels = standardised(features), (values > 0.3).astype(np.float32)
    penalty = 0.01
    ours = solve_labels(features, labels, penalty=penalty, start=np.zeros((9, 3)))
    for place in range(3):
        theirs = LogisticRegression(C=1 / (penalty * 300), tol=1e-8, max_iter=1000).fit(features, labels[:, place])
        np.testing.assert_allclose(ours[:-1, place], theirs.coef_[0], atol=3e-3)
        np.testing.assert_allclose(ours[-1, place], theirs.intercept_[0], atol=3e-3)


def test_the_loss_of_labels_is_the_log_loss_of_each_and_survives_huge_logits():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 3)), generator.integers(0, 2, (40, 3)).astype(np.float32)
    theirs = [log_loss(labels[:, k], 1 / (1 + np.exp(-logits[:, k]))) for k in range(3)]
    assert label_losses(logits, labels).mean() == pytest.approx(np.mean(theirs))
    assert label_losses(np.array([[1e4, -1e4]]), np.array([[1.0, 1.0]])) == pytest.approx([5e3])
    score = score_labels(logits, labels)
    assert score.accuracy == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert score.refined_log_loss <= score.log_loss


def test_the_score_of_values_is_their_squared_error_and_r2():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 2))
    answers = values + generator.normal(size=(50, 2))
    score = score_values(answers, values)
    assert score.log_loss == score.refined_log_loss == pytest.approx(((answers - values) ** 2).mean())
    assert score.accuracy == pytest.approx(r2_score(values, answers))
    assert len(score.refined_log_losses) == 50


@pytest.mark.parametrize("objective", [REAL, LABELS])
def test_the_loss_of_a_step_is_the_mean_of_the_losses_of_its_examples(objective):
    generator = np.random.default_rng(0)
    outputs = generator.normal(size=(16, 3)).astype(np.float32)
    labels = generator.integers(0, 2, (16, 3)).astype(np.float32)
    step = float(objective.training_loss()(tf.constant(labels), tf.constant(outputs)))
    assert step == pytest.approx(objective.losses(outputs, labels).mean(), rel=1e-5)


@pytest.mark.parametrize("objective", [REAL, LABELS])
def test_the_probe_of_columns_takes_features_as_they_come(objective):
    train, values = linear(300)
    held_out, held_out_values = linear(300, seed=1)
    if objective is LABELS:
        values, held_out_values = ((part > 0.0).astype(np.float32) for part in (values, held_out_values))
    probe = fit_probe(train, values, held_out, held_out_values, classes=2, objective=objective)
    again = fit_probe(train, values, held_out, held_out_values, classes=2, objective=objective)
    assert probe.kernel.tobytes() == again.kernel.tobytes()
    assert probe.kernel.dtype == probe.bias.dtype == np.float32
    assert objective.score(probe.logits(held_out), held_out_values).accuracy == probe.validation.accuracy > 0.85


def test_noisy_values_get_a_stronger_penalty_than_clean_ones():
    chosen = []
    for noise in (0.1, 12.0):
        (train, values), (held_out, judged) = (linear(60, size=30, noise=noise, seed=seed) for seed in (0, 1))
        chosen.append(fit_probe(train, values, held_out, judged, classes=2, objective=REAL).penalty)
    assert chosen[0] < chosen[1]


def test_values_learned_standardised_are_answered_in_their_own_unit():
    features, values = linear(200)
    values = values * np.array([1e-3, 5e4], np.float32) + np.array([7.0, -3e5], np.float32)
    scale = TargetScale.of(values)
    assert scale.apply(values).mean(axis=0) == pytest.approx([0, 0], abs=1e-3)
    assert scale.apply(values).std(axis=0) == pytest.approx([1, 1], rel=1e-3)
    inside = Ridge(features, scale.apply(values)).solve(1e-6).astype(np.float32)
    kernel, bias = scale.fold_into(inside[:-1], inside[-1])
    assert r2_score(values, features @ kernel + bias) > 0.95


def test_folds_have_a_share_of_every_quarter_and_of_every_label():
    values = np.random.default_rng(0).normal(size=(80, 1)).astype(np.float32)
    fold_of = assign_folds(REAL.groupings(values)[0], 4)
    quarters = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values[:, 0])
    assert all(((fold_of == fold) & (quarters == quarter)).sum() == 5 for fold in range(4) for quarter in range(4))
    labels = np.zeros((80, 2), np.float32)
    labels[:, 0] = 1.0
    labels[:8, 1] = 1.0
    fold_of = assign_folds(LABELS.groupings(labels)[0], 4)
    assert [(labels[fold_of == fold, 1]).sum() for fold in range(4)] == [2.0] * 4


def test_answers_that_are_nearer_are_preferred_and_noise_is_not():
    values = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(100, 1)).astype(np.float32)
    verdict = compare(values + noise, values + 0.5 * noise, values, REAL)
    assert verdict.prefers_tuned
    assert (verdict.gained, verdict.lost, verdict.examples) == (100, 0, 100)
    assert "nearer on 100 and further off on 0 of 100" in verdict.sentence(2, REAL)
    assert not compare(values + noise, values + noise, values, REAL).prefers_tuned


def test_one_outlier_mended_does_not_excuse_many_answers_that_got_worse():
    values = np.zeros((100, 1), np.float32)
    before, after = np.full((100, 1), 0.1), np.full((100, 1), 0.2)
    before[0] = 50.0
    verdict = compare(before, after, values, REAL)
    assert verdict.tuned_log_loss < verdict.probe_log_loss
    assert not verdict.prefers_tuned


def test_label_sets_are_compared_by_how_many_of_their_labels_are_right():
    labels = np.tile([[1.0, 0.0, 1.0]], (40, 1)).astype(np.float32)
    good, poor = (labels * 2 - 1) * 3.0, (labels * 2 - 1) * 3.0
    poor[:10, 0] = -3.0
    verdict = compare(poor, good, labels, LABELS)
    assert (verdict.gained, verdict.lost, verdict.prefers_tuned) == (10, 0, True)


def test_reports_call_losses_and_measures_by_their_names():
    facts = {"validation": {"log_loss": 1.0, "accuracy": 0.5}, "history": [{"validation_refined_log_loss": 2.0}]}
    assert REAL.reported(facts) == {
        "validation": {"squared_error": 1.0, "r2": 0.5},
        "history": [{"validation_refined_squared_error": 2.0}],
    }
    assert OBJECTIVES["classification"].reported(facts) == facts


def test_a_place_in_a_picture_is_told_from_its_mirror_image_although_the_data_as_a_whole_are_symmetric():
    from regraft.tuning.mirrors import chirality

    generator = np.random.default_rng(0)
    places = generator.uniform(-1.0, 1.0, (400, 1)).astype(np.float32)
    differences = generator.normal(size=(400, 10)).astype(np.float32) + 2.0 * places
    whole = chirality(differences, np.zeros(400, np.int64))
    quarters = max(chirality(differences, group) for group in REAL.groupings(places))
    assert whole < 0.6
    assert quarters > 0.7


def test_keras_and_the_loop_take_columns_of_labels():
    from regraft.tuning.loop import Trainer

    keras.utils.set_random_seed(3)
    given = keras.Input((4,))
    trainer = Trainer(keras.Model(given, keras.layers.Dense(2)(given)), REAL)
    inputs, values = tf.random.normal((32, 4), seed=1), tf.ones((32, 2))
    losses = [trainer.step(inputs, values, 0.05) for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
