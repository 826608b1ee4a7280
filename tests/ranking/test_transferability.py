"""LogME and the H-score against slow, literal versions of their definitions."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn.covariance import ledoit_wolf

from regraft.ranking.transferability import log_maximum_evidence, one_hot, regularised_h_score


def features_and_labels(
    examples: int, size: int, *, signal: float, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, examples)
    centres = random.normal(size=(3, size))
    return signal * centres[labels] + random.normal(size=(examples, size)), labels


@pytest.mark.parametrize(("examples", "size"), [(60, 8), (20, 40)])
def test_the_evidence_is_that_of_the_gaussian_it_stands_for(examples: int, size: int) -> None:
    f, labels = features_and_labels(examples, size, signal=0.3)
    y = one_hot(labels, 3)

    def evidence(log_alpha_beta: NDArray[np.float64], target: NDArray[np.float64]) -> float:
        alpha, beta = np.exp(log_alpha_beta)
        covariance = np.eye(examples) / beta + f @ f.T / alpha
        return float(stats.multivariate_normal.logpdf(target, np.zeros(examples), covariance)) / examples

    best = [
        -optimize.minimize(lambda at, t=target: -evidence(at, t), np.zeros(2), method="Nelder-Mead").fun
        for target in y.T
    ]
    assert log_maximum_evidence(f, y) == pytest.approx(np.mean(best), abs=2e-3)
    assert log_maximum_evidence(f, y) <= np.mean(best) + 1e-6


def test_features_that_repeat_each_other_are_no_better_than_once() -> None:
    f, labels = features_and_labels(100, 6, signal=1.0)
    y = one_hot(labels, 3)
    twice = np.concatenate([f, f], axis=1) / np.sqrt(2.0)
    assert log_maximum_evidence(twice, y) == pytest.approx(log_maximum_evidence(f, y), abs=1e-6)


def test_the_h_score_is_its_definition() -> None:
    f, labels = features_and_labels(80, 10, signal=1.0)
    means = np.stack([f[labels == label].mean(axis=0) for label in labels])
    between = np.cov(means.T, bias=True)
    covariance, shrinkage = ledoit_wolf(f)
    expected = np.trace(np.linalg.inv(covariance) @ ((1.0 - shrinkage) * between))
    assert regularised_h_score(f, labels) == pytest.approx(expected, rel=1e-9)


def test_both_prefer_features_that_tell_classes_apart() -> None:
    good, labels = features_and_labels(200, 16, signal=1.0)
    poor, _ = features_and_labels(200, 16, signal=0.1)
    y = one_hot(labels, 3)
    assert log_maximum_evidence(good, y) > log_maximum_evidence(poor, y)
    assert regularised_h_score(good, labels) > regularised_h_score(poor, labels)


def test_constant_features_say_nothing() -> None:
    labels = np.array([0, 1, 0, 1])
    constant = np.ones((4, 3))
    assert regularised_h_score(constant, labels) == 0.0
    assert np.isfinite(log_maximum_evidence(constant, one_hot(labels, 2)))
    assert np.isfinite(log_maximum_evidence(np.zeros((4, 3)), one_hot(labels, 2)))


def test_what_is_no_number_is_refused() -> None:
    features = np.ones((4, 3))
    features[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        log_maximum_evidence(features, np.ones((4, 1)))
    with pytest.raises(ValueError, match="no examples"):
        regularised_h_score(np.ones((0, 3)), np.array([], np.int64))
