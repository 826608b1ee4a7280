"""How much arithmetic a network takes, counted from its graph without running it."""

import math
from typing import Any

import keras
import tensorflow as tf

TOKENS = 128  # of the text that operations are counted for


def operations(backbone: keras.Model, *, side_px: int | None, tokens: int = TOKENS) -> int:
    """Return the floating-point operations of `backbone` on one image of `side_px`, or on one text of `tokens`.

    Two for each multiplication with an addition in convolutions and matrix products; all else is not counted. A text
    is no longer than the backbone takes.
    """
    if isinstance(backbone.input, dict):
        tokens = min(tokens, getattr(backbone, "max_sequence_length", None) or tokens)
        inputs: Any = {name: tf.TensorSpec((1, tokens), tf.int32) for name in backbone.input}
    else:
        inputs = tf.TensorSpec((1, side_px, side_px, 3), tf.float32)
    traced = tf.function(lambda example: backbone(example, training=False)).get_concrete_function(inputs)
    return _count(traced.graph, tokens)


def _count(graph: Any, turns: int) -> int:
    """Return the operations in `graph`; a loop in it, which is one over the tokens of a text, goes round `turns` times.

    What has no fixed shape, which is nothing in networks whose input has one, is left out.
    """
    total = 0
    for operation in graph.get_operations():
        if operation.type in {"Conv2D", "DepthwiseConv2dNative"}:
            kernel = operation.inputs[1].shape
            positions = operation.outputs[0].shape[:3].num_elements() or 0
            total += 2 * positions * math.prod(kernel)
        elif operation.type in {"MatMul", "BatchMatMulV2"}:
            is_transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
            summed = operation.inputs[0].shape[-2 if is_transposed else -1] or 0
            total += 2 * summed * (operation.outputs[0].shape.num_elements() or 0)
        elif operation.type == "Einsum":
            indices = operation.get_attr("equation").decode().partition("->")[0].split(",")
            sizes: dict[str, int] = {}
            for names, tensor in zip(indices, operation.inputs, strict=True):
                sizes |= zip(names, (size or 0 for size in tensor.shape), strict=True)
            total += 2 * math.prod(sizes.values())
        elif operation.type in {"While", "StatelessWhile"}:
            total += turns * _count(graph._get_function(operation.get_attr("body").name).graph, turns)
        elif operation.type in {"PartitionedCall", "StatefulPartitionedCall"}:
            total += _count(graph._get_function(operation.get_attr("f").name).graph, turns)
    return total
