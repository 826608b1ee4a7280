"""Tiny networks of the class that each row of the catalogue has: a second or two each, from preset to export."""

from typing import Any

import keras

from benchmarks.families import Proof, prove, write_preset
from regraft.backbones import catalogue
from regraft.backbones.architectures import Architecture, architectures

_SIDE = 32
_TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64}
_TEXT = {**_TRANSFORMER, "vocabulary_size": 100, "max_sequence_length": 24}
_EFFICIENT: dict[str, Any] = {
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_num_repeats": [1, 1],
    "stackwise_input_filters": [8, 8],
    "stackwise_output_filters": [8, 16],
    "stackwise_expansion_ratios": [1, 2],
    "stackwise_strides": [1, 2],
    "stackwise_width_coefficients": [1.0, 1.0],
    "stackwise_depth_coefficients": [1.0, 1.0],
}
# What makes a network of each class small; all else is as in the row.
SMALLER: dict[str, dict[str, Any]] = {
    "VGGBackbone": {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [8, 16]},
    "ResNetBackbone": {
        "stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2],
    },
    "MobileNetBackbone": {
        "stackwise_num_blocks": [1, 1], "stackwise_expansion": [[16], [16]], "stackwise_num_filters": [[8], [16]],
        "stackwise_kernel_size": [[3], [5]], "stackwise_num_strides": [[2], [2]],
        "stackwise_se_ratio": [[None], [0.25]], "stackwise_activation": [["relu"], ["hard_swish"]],
        "stackwise_padding": [[1], [2]], "output_num_filters": 32, "last_layer_filter": 32,
    },
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 2], "growth_rate": 8},
    "DeiTBackbone": {**_TRANSFORMER, "image_shape": (_SIDE, _SIDE, 3), "patch_size": 8},
    "ViTBackbone": {
        "image_shape": (_SIDE, _SIDE, 3), "patch_size": (8, 8), "num_layers": 1, "num_heads": 2, "hidden_dim": 32,
        "mlp_dim": 64,
    },
    "BertBackbone": _TEXT,
    "DistilBertBackbone": _TEXT,
    "GPT2Backbone": _TEXT,
    "SmallCNN": {"widths": [8, 16]},
    "SmallRNN": {"vocabulary_size": 100, "hidden_dim": 16},
}  # fmt: skip
# The blocks of these two rows are of different kinds, the last of which differ most.
SMALLER_ROWS: dict[str, dict[str, Any]] = {
    "efficientnet_lite0_imagenet": {
        **_EFFICIENT, "stackwise_squeeze_and_excite_ratios": [0, 0], "stackwise_block_types": ["v1", "unfused"],
    },
    "efficientnet_b0_ra_imagenet": {
        **_EFFICIENT, "stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_block_types": ["v1", "v1"],
    },
    "efficientnet2_rw_t_ra2_imagenet": {
        **_EFFICIENT, "stackwise_squeeze_and_excite_ratios": [0, 0.25], "stackwise_block_types": ["fused", "unfused"],
        "stackwise_force_input_filters": [0, 0], "stackwise_nores_option": [False, False],
    },
}  # fmt: skip


BY_LORA = ("deit_tiny_distilled_patch16_224_imagenet", "gpt2_base_en")


def smaller(name: str) -> Architecture:
    """Return the shape of a small network of the class of the row `name`."""
    row = architectures()[name]
    changes = SMALLER_ROWS.get(name) or SMALLER[row.class_name]
    return Architecture(row.class_name, {**row.config, **changes})


def prove_tiny(name: str, folder, monkeypatch) -> Proof:
    """Take a small network from its preset to an export, fine-tuned by LoRA if it is one of `BY_LORA`."""
    monkeypatch.setenv("REGRAFT_CACHE", str(folder / "cache"))
    keras.utils.set_random_seed(3)
    write_preset(smaller(name).make(called="tiny"), folder / "preset", catalogue.find(name).kind)
    return prove("mine", folder / "preset", folder, side_px=_SIDE, rate=1e-3, lora=name in BY_LORA)


def rows(kind: str) -> list[str]:
    """Return the names of the catalogue that take data of `kind`."""
    return [name for name, entry in catalogue.entries().items() if entry.kind == kind]


def different_rows(kind: str) -> list[str]:
    """Return those of `rows` that are not just another size: when made small, they would be the same."""
    return list({str(smaller(name)): name for name in reversed(rows(kind))}.values())[::-1]
