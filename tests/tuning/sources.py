"""Small sources of examples, in memory."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image


class InMemory:
    """Answers like `regraft.data.records.Split`."""

    def __init__(self, kind, contents, labels):
        self.kind = kind
        self.labels = np.asarray(labels, np.int64)
        self._contents = list(contents)

    def inputs(self, indices):
        return [self._contents[row] for row in indices]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def stripes(rows, *, side=8, seed=0):
    """Noisy pictures with a bright bar that lies (label 0) or stands (label 1) at any place."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    contents = []
    for label in labels:
        pixels = generator.integers(0, 120, (side, side, 3), dtype=np.uint8)
        place = generator.integers(side)
        if label:
            pixels[:, place] = 230
        else:
            pixels[place, :] = 230
        contents.append(png(pixels))
    return InMemory("image", contents, labels)


def prepare_image(content):
    image = tf.io.decode_png(content, channels=3)
    return tf.ensure_shape(tf.cast(image, tf.float32), (8, 8, 3))
