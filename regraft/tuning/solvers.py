"""Solvers of a head on frozen features: the same solution for the same numbers, on any number of cores."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Values = NDArray[np.float32]
Vector = NDArray[np.float64]


def solve(features: Features, labels: Labels, *, penalty: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise mean log loss + penalty / 2 * sum(kernel ** 2) by L-BFGS.

    Args:
        features: Standardised, float32, shape (N, D).
        labels: Shape (N,), in [0, K).
        penalty: Weight of the squared kernel; the bias is free.
        start: Where to begin, float64, shape (D + 1, K).

    Returns:
        Kernel and, as its last row, bias: float64, shape (D + 1, K).
    """
    rows = np.arange(len(labels))

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(start.shape)
        logits = features @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        totals = probabilities.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0], dtype=np.float64) - logits[rows, labels]).mean())
        probabilities /= totals
        probabilities[rows, labels] -= 1.0
        probabilities /= len(labels)
        gradient = np.empty_like(weights)
        gradient[:-1] = features.T @ probabilities + penalty * weights[:-1]
        gradient[-1] = probabilities.sum(axis=0)
        return loss + 0.5 * penalty * float((weights[:-1] ** 2).sum()), gradient.ravel()

    # One thread: sums then do not depend on the number of cores, and on cores that other work shares, BLAS threads
    # that wait for each other at every small product are far slower than one alone.
    with threadpool_limits(1, user_api="blas"):
        return minimise(loss_and_gradient, start.ravel()).reshape(start.shape)


def solve_labels(features: Features, labels: Values, *, penalty: float, start: Vector) -> Vector:
    """Minimise, for each of K labels on its own, mean log loss + penalty / 2 * sum(kernel ** 2) by L-BFGS.

    Args:
        features: Standardised, float32, shape (N, D).
        labels: 1 for a label that holds and 0 for one that does not, float32, shape (N, K).
        penalty: Weight of the squared kernel; the bias is free.
        start: Where to begin, float64, shape (D + 1, K).

    Returns:
        Kernel and, as its last row, bias: float64, shape (D + 1, K).
    """

    def loss_and_gradient(flat: Vector) -> tuple[float, Vector]:
        weights = flat.reshape(start.shape)
        logits = features @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
        # log(1 + exp(z)) - y z, and its slope, without overflow for large |z|.
        decay = np.exp(-np.abs(logits))
        losses = np.maximum(logits, 0.0) - labels * logits + np.log1p(decay)
        slopes = (np.where(logits >= 0.0, 1.0, decay) / (1.0 + decay) - labels) / np.float32(len(labels))
        gradient = np.empty_like(weights)
        gradient[:-1] = features.T @ slopes + penalty * weights[:-1]
        gradient[-1] = slopes.sum(axis=0)
        loss = float(losses.sum(dtype=np.float64)) / len(labels)
        return loss + 0.5 * penalty * float((weights[:-1] ** 2).sum()), gradient.ravel()

    with threadpool_limits(1, user_api="blas"):
        return minimise(loss_and_gradient, start.ravel()).reshape(start.shape)


class Ridge:
    """Solves mean squared error + penalty * sum(kernel ** 2), the bias free, exactly, for one penalty after another.

    The features' covariance is decomposed once, so a penalty costs two small products.

    Args:
        features: Standardised, float32, shape (N, D).
        values: float32, shape (N, K).
    """

    def __init__(self, features: Features, values: Values) -> None:
        wide, targets = features.astype(np.float64), values.astype(np.float64)
        self._centre, self._level = wide.mean(axis=0), targets.mean(axis=0)
        wide -= self._centre
        with threadpool_limits(1, user_api="blas"):
            self._variances, self._axes = np.linalg.eigh(wide.T @ wide / len(wide))
            self._along_axes = self._axes.T @ (wide.T @ (targets - self._level) / len(wide))

    def solve(self, penalty: float) -> Vector:
        """Return kernel and, as its last row, bias: float64, shape (D + 1, K)."""
        with threadpool_limits(1, user_api="blas"):
            kernel = self._axes @ (self._along_axes / (np.maximum(self._variances, 0.0) + penalty)[:, None])
            return np.vstack([kernel, self._level - self._centre @ kernel])


def minimise(
    loss_and_gradient: Callable[[Vector], tuple[float, Vector]],
    start: Vector,
    *,
    iterations: int = 300,
    gradient_tolerance: float = 1e-5,
    loss_tolerance: float = 1e-7,
    memory: int = 10,
) -> Vector:
    """Return a minimum of a smooth convex function by L-BFGS with a backtracking line search.

    SciPy's L-BFGS-B finds the same minima, but version 1.17 spends 90 ms an iteration on its own bookkeeping for
    12,810 unknowns (20 times what the function costs), because it is written for bounds that there are none of here.

    Args:
        loss_and_gradient: At a point of shape (n,): the value, and the gradient of shape (n,).
        start: Shape (n,), float64.
        iterations: Stop after so many.
        gradient_tolerance: Stop when no component of the gradient is larger. The function's float32 products leave
            about 1e-6 of
            noise: asking for less would only spend iterations on it.
        loss_tolerance: Stop when a step lowers the loss by less than this fraction of it (of 1, if the loss is
            smaller).
        memory: Pairs of steps and gradient changes kept.

    Source: Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithms 7.4 and 3.1.
    """
    point = start.copy()
    loss, gradient = loss_and_gradient(point)
    pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=memory)
    for _ in range(iterations):
        if np.abs(gradient).max() <= gradient_tolerance:
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = float(direction @ gradient)
        if slope >= 0.0:
            break  # rounding has used up the curvature information: this is as low as float32 gets
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(20):
            candidate = point + length * direction
            new_loss, new_gradient = loss_and_gradient(candidate)
            if new_loss <= loss + 1e-4 * length * slope:
                break
            length *= 0.5
        else:
            break
        step, change = candidate - point, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-12 * float(step @ step):
            pairs.append((step, change, curvature))
        fell = loss - new_loss
        point, loss, gradient = candidate, new_loss, new_gradient
        if fell <= loss_tolerance * max(1.0, abs(loss)):
            break
    return point


def _inverse_hessian_times(vector: Vector, pairs: Sequence[tuple[Vector, Vector, float]]) -> Vector:
    """Return the L-BFGS approximation of the inverse Hessian times `vector`, shape (n,)."""
    result = vector.copy()
    shares = []
    for step, change, curvature in reversed(pairs):
        share = float(step @ result) / curvature
        result -= share * change
        shares.append(share)
    if pairs:
        _, change, curvature = pairs[-1]
        result *= curvature / float(change @ change)
    for (step, change, curvature), share in zip(pairs, reversed(shares), strict=True):
        result += step * (share - float(change @ result) / curvature)
    return result
