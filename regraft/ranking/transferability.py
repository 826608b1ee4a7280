"""Scores of how well frozen features fit labels, in closed form: LogME and the regularised H-score.

Both say which of several backbones suits a task, the higher the better, without solving a head. N examples, D features.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

Matrix = NDArray[np.floating]

LOGME_ROUNDS, LOGME_TOLERANCE = 11, 1.0e-3
TINY = 1.0e-5  # added to denominators, as the authors' code does


def log_maximum_evidence(features: Matrix, targets: Matrix) -> float:
    """Return LogME: the log evidence of a Bayesian linear model of `targets`, per example, mean over their columns.

    Each column is y = F w + noise with w ~ N(0, I / alpha) and noise ~ N(0, 1 / beta); alpha and beta are those that
    make it most likely, found by the fixed point of You et al., 2021, algorithm 1 (arXiv:2102.11005).

    Args:
        features: Shape (N, D), finite.
        targets: Shape (N, K): columns of real values, or of 0 and 1 for classes (see `one_hot`).

    Raises:
        ValueError: If there are no examples, or features are not finite.
    """
    f, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    _require_finite(f)
    examples = len(f)
    sigma, projected = _squared_singular_values(f, y)
    rank = len(sigma)
    sigma = sigma[:, None]
    squares = projected**2
    outside = np.maximum((y**2).sum(axis=0) - squares.sum(axis=0), 0.0)  # what no combination of features reaches

    def spread(ratio: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        gamma = (sigma / (sigma + ratio)).sum(axis=0)
        weights = (sigma * squares / (sigma + ratio) ** 2).sum(axis=0)
        residuals = (squares / (1.0 + sigma / ratio) ** 2).sum(axis=0) + outside
        return gamma, weights, residuals

    alpha, beta = np.ones(y.shape[1]), np.ones(y.shape[1])
    moving = np.ones(y.shape[1], bool)
    for _ in range(LOGME_ROUNDS):
        ratio = alpha / beta
        gamma, weights, residuals = spread(ratio)
        alpha = np.where(moving, np.maximum(gamma, TINY) / (weights + TINY), alpha)
        beta = np.where(moving, (examples - gamma) / (residuals + TINY), beta)
        moving &= np.abs(alpha / beta - ratio) / ratio > LOGME_TOLERANCE
        if not moving.any():
            break
    _, weights, residuals = spread(alpha / beta)
    evidence = (
        rank * np.log(alpha) + examples * np.log(beta) - np.log(alpha + beta * sigma).sum(axis=0)
        - beta * residuals - alpha * weights - examples * np.log(2.0 * np.pi)
    )  # fmt: skip
    return float((evidence / (2.0 * examples)).mean())


def regularised_h_score(features: Matrix, labels: NDArray[np.integer]) -> float:
    """Return the H-score with a shrunk covariance: how much of the spread of features is between classes.

    tr(S_a^-1 (1 - a) B), with B the covariance of the class means that stand in place of features, and S_a = (1 - a) S
    + a tr(S) / D I shrunk by Ledoit and Wolf's a, without which it prefers wide features on small data. Source:
    Ibrahim, Ponomareva & Mazumder, 2021, section 3 (arXiv:2110.06893), after Bao et al., 2019.

    Args:
        features: Shape (N, D), finite.
        labels: Shape (N,), the class of each.

    Raises:
        ValueError: If there are no examples, or features are not finite.
    """
    f = np.asarray(features, np.float64)
    _require_finite(f)
    f = f - f.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(f, assume_centered=True)
    if not np.trace(covariance) > 0.0:
        return 0.0
    present, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members)
    sums = np.zeros((len(present), f.shape[1]))
    np.add.at(sums, members, f)
    means = sums / np.sqrt(counts)[:, None] / np.sqrt(len(f))  # means.T @ means is B
    return float((1.0 - shrinkage) * np.sum(means.T * np.linalg.solve(covariance, means.T)))


def one_hot(labels: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Return columns of 0 and 1, shape (N, K), for `labels`, shape (N,), each in [0, classes)."""
    return np.eye(classes)[labels]


def _squared_singular_values(f: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    """Return the squared singular values of F that are not zero, and y in the basis of its left singular vectors.

    They come from the smaller one of F^T F and F F^T, which is many times faster than a decomposition of F itself.
    """
    is_tall = f.shape[0] > f.shape[1]
    gram = f.T @ f if is_tall else f @ f.T
    sigma, vectors = np.linalg.eigh(gram)
    kept = sigma > max(float(sigma[-1]), 0.0) * len(sigma) * np.finfo(np.float64).eps
    sigma, vectors = sigma[kept], vectors[:, kept]
    projected = (vectors.T @ (f.T @ y)) / np.sqrt(sigma)[:, None] if is_tall else vectors.T @ y
    return sigma, projected


def _require_finite(features: Matrix) -> None:
    if not len(features):
        raise ValueError("there are no examples to score")
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite numbers")
