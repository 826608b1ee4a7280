"""One call that makes TensorFlow repeat itself to the bit."""

import keras
import tensorflow as tf


def set_up(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow with `seed`, and choose only operations that give the same bits every time.

    Call once, before the first operation of the process.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
