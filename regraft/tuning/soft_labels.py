"""Labels that are shares of several classes, and inputs that are mixtures to match: for training batches only."""

import tensorflow as tf


def smooth(labels: tf.Tensor, classes: int, amount: float) -> tf.Tensor:
    """Return labels as shares, float32, shape (B, K), of which `amount` is spread evenly.

    Args:
        labels: Classes, integers, shape (B,), whose share goes over all K; or labels of 0 and 1, float32, shape (B, K),
            each of which has a share that goes over its own two answers.
        classes: K.
        amount: In [0, 1).

    Source: Szegedy et al., 2016, section 7 (arXiv:1512.00567).
    """
    if labels.dtype.is_integer:
        return tf.one_hot(labels, classes) * (1.0 - amount) + amount / classes
    return labels * (1.0 - amount) + amount / 2.0


def mix(inputs: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, alpha: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Return every input mixed with that of the row opposite it in the batch, and labels mixed alike.

    Each row has a share of its own, drawn from Beta(alpha, alpha), and keeps the larger part of itself.

    Args:
        inputs: float32, shape (B, ...).
        labels: float32, shape (B, K): shares of classes, labels, or real values.
        seed: Integers, shape (2,); equal seeds give equal mixtures.
        alpha: Above 0; small values leave most inputs nearly pure.

    Source: Zhang et al., mixup, 2018, equation 1 (arXiv:1710.09412).
    """
    gammas = tf.random.stateless_gamma((2, tf.shape(labels)[0]), seed, alpha)
    # Both gammas of a small alpha may underflow, to the smallest number there is: then the input stays pure.
    total = gammas[0] + gammas[1]
    share = tf.where(total > 1.0e-36, gammas[0] / total, 1.0)
    share = tf.maximum(share, 1.0 - share)

    def blend(tensor: tf.Tensor) -> tf.Tensor:
        weight = tf.reshape(share, [-1, *[1] * (tensor.shape.rank - 1)])
        return weight * tensor + (1.0 - weight) * tf.reverse(tensor, [0])

    return blend(inputs), blend(labels)
