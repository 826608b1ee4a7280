"""Rare classes that are to count as much as common ones."""

import numpy as np
from numpy.typing import NDArray


def log_weights(labels: NDArray[np.generic], classes: int) -> NDArray[np.float32]:
    """Return what to add to each calibrated logit to answer as if classes were equally common, float32, shape (K,).

    That is minus the log of a class's share among K equal ones; for labels that may hold at once, minus the log of its
    odds. A model that fits its training data gives probabilities p(class) p(input | class); without the first factor
    it errs least on the average over classes, which is what weights in the loss aim at too, but those are forgotten by
    a network that fits all its examples. To logits that are surer, or less sure, than they are right, add as many times
    as much as their temperature is. Source: Menon et al., Long-tail learning via logit adjustment, 2021,
    equation 9 (arXiv:2007.07314).

    Args:
        labels: Of the training split: classes, integers, shape (N,); or 0 and 1, shape (N, K).
        classes: K. One without examples counts as if it had one.
    """
    if labels.ndim == 1:
        counts = np.maximum(np.bincount(labels, minlength=classes), 1)
        return -np.log(counts * classes / len(labels)).astype(np.float32)
    held = labels.sum(axis=0, dtype=np.float64)
    return -np.log(np.maximum(held, 1.0) / np.maximum(len(labels) - held, 1.0)).astype(np.float32)
