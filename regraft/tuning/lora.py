"""LoRA: small matrices that learn beside frozen attention."""

from typing import Any

import keras

from regraft.errors import TrainingError


def enable_lora(model: keras.Model, rank: int) -> None:
    """Freeze the backbone inside `model` and give its attention layers LoRA matrices of `rank`, which leave the head.

    Saving the model's weights stores each kernel with its matrices merged in, so a plain model loads them.

    Raises:
        TrainingError: If the backbone has no attention layers.
    """
    backbone = kerashub_backbone(model)
    if backbone is not None:
        backbone.enable_lora(rank)
    if backbone is None or not any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers()):
        raise TrainingError(
            "finetune.strategy: lora needs a backbone with attention (a transformer), such as one for texts; this one "
            f"({'unknown' if backbone is None else type(backbone).__name__}) has none. "
            "Use auto, lp_ft, gradual, full or probe."
        )


def has_attention(model: keras.Model) -> bool:
    """Return whether the backbone inside `model` has layers that LoRA can be added to."""
    backbone = kerashub_backbone(model)
    if backbone is None:
        return False
    names = set(backbone.default_lora_layer_names())
    return any(layer.name in names and hasattr(layer, "enable_lora") for layer in backbone._flatten_layers())


def kerashub_backbone(model: keras.Model) -> Any:
    """Return the KerasHub backbone inside `model`, or None."""
    import keras_hub

    inside = (layer for layer in model._flatten_layers() if isinstance(layer, keras_hub.models.Backbone))
    return next(inside, None)
