"""How the examples of a project enter a backbone, where settings leave it open."""

from collections.abc import Mapping
from typing import Any

from regraft.backbones.card import Card
from regraft.backbones.extractor import choose_image_size, fixed_size
from regraft.backbones.spectrogram import View, choose_sound_size, choose_view
from regraft.settings import EmbedSettings


def image_size(embed: EmbedSettings, data: Mapping[str, Any], card: Card, seen: View | None) -> int | None:
    """Return the side in pixels at which images, or the pictures of recordings, enter the backbone; None for text.

    Args:
        embed: What a person set.
        data: reports/data.json.
        card: Of the backbone.
        seen: How recordings are looked at; None for images and text.

    Raises:
        BackboneError: If the size that was set is not one that the backbone takes.
    """
    if card.input_size_px is None:
        return None
    if (side := fixed_size(card, embed.image_size_px)) is not None:
        return side
    if seen is not None:
        return choose_sound_size(embed.image_size_px, seen)
    return choose_image_size(embed.image_size_px, data["median_short_side_px"], card.input_size_px)


def view(embed: EmbedSettings, data: Mapping[str, Any]) -> View:
    """Return what part of a recording the backbone sees, and at which sampling rate; `data` is reports/data.json."""
    return choose_view(embed.audio_seconds, data["audio_seconds"], data["audio_rates_hz"])
