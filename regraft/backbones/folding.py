"""Batch normalisation that stands still, folded into the convolution before it.

Normalising a feature map by fixed numbers is a pass over memory that costs about as much as the convolution before it,
and a second one on the way back. `conv(x) * scale + shift` is also `conv(x)` with every filter of the kernel times its
`scale`, plus `shift`: the same function of input and kernel, gradients included, up to rounding (Jacob et al., 2018,
section 3.2, arXiv:1712.05877).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

# What came out of a convolution, by the identity of the tensor, which is kept lest another takes its place in memory.
Seen = dict[int, tuple[Any, keras.layers.Layer, Any]]


@contextmanager
def folded_normalization(model: keras.Model) -> Iterator[None]:
    """Have `model` compute folded for a while: in all operations traced, or run, meanwhile.

    That is each BatchNormalization directly after a Conv2D or DepthwiseConv2D, in float32, unless it learns and the
    call is one of training. All others compute as ever, and the model's variables stay what they are.
    """
    seen: Seen = {}
    changed: dict[keras.layers.Layer, Callable[..., Any]] = {}
    for layer in model._flatten_layers():
        if type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D) and _is_plain(layer):
            changed[layer] = _remembering(layer, seen)
        elif type(layer) is keras.layers.BatchNormalization and layer.axis in (-1, 3):
            changed[layer] = _folding(layer, seen)
    try:
        for layer, call in changed.items():
            layer.call = call
        yield
    finally:
        for layer in changed:
            del layer.call


def _is_plain(layer: keras.layers.Layer) -> bool:
    """Return whether a convolution is nothing but that: no activation, channels last, float32."""
    linear = layer.activation is keras.activations.linear
    return linear and layer.data_format == "channels_last" and layer.compute_dtype == "float32"


def _remembering(layer: keras.layers.Layer, seen: Seen) -> Callable[..., Any]:
    """Return `layer.call` that notes what came out of it: not computed after all, if it is only normalised."""
    call = layer.call

    @tf.autograph.experimental.do_not_convert
    def remember(inputs: Any) -> Any:
        outputs = call(inputs)
        seen[id(outputs)] = (outputs, layer, inputs)
        return outputs

    return remember


def _folding(layer: keras.layers.BatchNormalization, seen: Seen) -> Callable[..., Any]:
    """Return `layer.call` that convolves by the folded kernel, where it is given what a convolution made."""
    call = layer.call

    @tf.autograph.experimental.do_not_convert
    def fold(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if id(inputs) not in seen or (training and layer.trainable):
            return call(inputs, training=training, mask=mask)
        _, convolution, convolved = seen[id(inputs)]
        scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
        if layer.scale:
            scale *= layer.gamma
        shift = -layer.moving_mean * scale
        if layer.center:
            shift += layer.beta
        if convolution.use_bias:
            shift += convolution.bias * scale
        return tf.nn.bias_add(_convolve(convolution, convolved, scale), shift)

    return fold


def _convolve(layer: keras.layers.Layer, inputs: Any, scale: tf.Tensor) -> tf.Tensor:
    """Return what `layer` makes of `inputs` without its bias, each channel times its number in `scale`."""
    if isinstance(layer, keras.layers.Conv2D):
        return layer.convolution_op(inputs, layer.kernel * scale)
    kernel = layer.kernel * tf.reshape(scale, layer.kernel.shape[2:])
    return keras.ops.depthwise_conv(
        inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
    )
