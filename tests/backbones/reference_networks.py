"""EfficientNet-Lite0 and BERT written from their definitions in NumPy: what the converted networks are compared with.

Nothing of Keras, TensorFlow or the converters is used, and weights are taken by their names in the published files.
"""

import math
from collections.abc import Mapping

import numpy as np

# EfficientNet-B0's stages (Tan & Le, 2019, table 1): kernel, repeats, channels in and out, expansion, stride.
LITE0_STAGES = (
    (3, 1, 32, 16, 1, 1),
    (3, 2, 16, 24, 6, 2),
    (5, 2, 24, 40, 6, 2),
    (3, 3, 40, 80, 6, 2),
    (5, 3, 80, 112, 6, 1),
    (5, 4, 112, 192, 6, 2),
    (3, 1, 192, 320, 6, 1),
)


def lite0_feature_map(tensors: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Return EfficientNet-Lite0's last feature map for normalised `images`, float64 (batch, height, width, 3)."""

    def norm(x: np.ndarray, prefix: str) -> np.ndarray:
        scale = tensors[f"{prefix}.weight"] / np.sqrt(tensors[f"{prefix}.running_var"].astype(np.float64) + 1e-3)
        return (x - tensors[f"{prefix}.running_mean"]) * scale + tensors[f"{prefix}.bias"]

    def pointwise(x: np.ndarray, prefix: str) -> np.ndarray:
        return x @ tensors[f"{prefix}.weight"][:, :, 0, 0].T.astype(np.float64)

    x = relu6(norm(convolution(images, tensors["_conv_stem.weight"], stride=2), "_bn0"))
    number = 0
    for kernel, repeats, channels_in, channels_out, expansion, first_stride in LITE0_STAGES:
        for repeat in range(repeats):
            stride, prefix, before = (first_stride if repeat == 0 else 1), f"_blocks.{number}.", x
            if expansion != 1:
                x = relu6(norm(pointwise(x, prefix + "_expand_conv"), prefix + "_bn0"))
            weight = tensors[prefix + "_depthwise_conv.weight"]
            assert weight.shape[2:] == (kernel, kernel)
            x = relu6(norm(depthwise(x, weight, stride=stride), prefix + "_bn1"))
            x = norm(pointwise(x, prefix + "_project_conv"), prefix + "_bn2")
            if stride == 1 and (channels_in if repeat == 0 else channels_out) == channels_out:
                x = x + before
            number += 1
    return relu6(norm(pointwise(x, "_conv_head"), "_bn1"))


def relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0.0, 6.0)


def pad_same(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Pad so that ceil(size / stride) positions come out, the odd pixel at the end: "SAME" in TensorFlow."""
    widths = []
    for size in x.shape[1:3]:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        widths.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *widths, (0, 0)))


def taps(x: np.ndarray, kernel: int, stride: int):
    """Yield (row, column, the pixels that this tap of the kernel sees at every position)."""
    height, width = math.ceil(x.shape[1] / stride), math.ceil(x.shape[2] / stride)
    padded = pad_same(x, kernel, stride)
    for row in range(kernel):
        for column in range(kernel):
            rows = slice(row, row + (height - 1) * stride + 1, stride)
            columns = slice(column, column + (width - 1) * stride + 1, stride)
            yield row, column, padded[:, rows, columns]


def convolution(x: np.ndarray, weight: np.ndarray, *, stride: int) -> np.ndarray:
    """Convolve with `weight` (out, in, kernel, kernel)."""
    return sum(
        seen @ weight[:, :, row, column].T.astype(np.float64) for row, column, seen in taps(x, weight.shape[2], stride)
    )


def depthwise(x: np.ndarray, weight: np.ndarray, *, stride: int) -> np.ndarray:
    """Convolve each channel with its own kernel of `weight` (channels, 1, kernel, kernel)."""
    return sum(
        seen * weight[:, 0, row, column].astype(np.float64) for row, column, seen in taps(x, weight.shape[2], stride)
    )


def bert_sequence(
    tensors: Mapping[str, np.ndarray], token_ids: np.ndarray, padding_mask: np.ndarray, *, heads: int, exact_gelu: bool
) -> np.ndarray:
    """Return BERT's last hidden states (Devlin et al., 2018), float64 (batch, tokens, hidden).

    Args:
        tensors: By their names in a Hugging Face `BertModel` file.
        token_ids: int (batch, tokens).
        padding_mask: 1 where a token is real.
        heads: Attention heads.
        exact_gelu: The error function as the original has it, or the tanh formula.
    """
    weights = {name: value.astype(np.float64) for name, value in tensors.items()}

    def dense(x: np.ndarray, prefix: str) -> np.ndarray:
        return x @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]

    def norm(x: np.ndarray, prefix: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]

    def split_heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    length = token_ids.shape[1]
    x = weights["embeddings.word_embeddings.weight"][token_ids]
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))):
        prefix = f"encoder.layer.{number}."
        query, key, value = (
            split_heads(dense(x, f"{prefix}attention.self.{role}")) for role in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
        scores = np.where(padding_mask[:, None, None, :] > 0, scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = (attention @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(x + dense(mixed, f"{prefix}attention.output.dense"), f"{prefix}attention.output.LayerNorm")
        inner = gelu(dense(x, f"{prefix}intermediate.dense"), exact=exact_gelu)
        x = norm(x + dense(inner, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
    return x


def gelu(x: np.ndarray, *, exact: bool) -> np.ndarray:
    if exact:
        return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def masked_mean(sequence: np.ndarray, padding_mask: np.ndarray) -> np.ndarray:
    """Return the mean over real tokens, (batch, hidden)."""
    weights = padding_mask[:, :, None]
    return (sequence * weights).sum(1) / weights.sum(1)
