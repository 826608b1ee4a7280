"""From raw input to features: one network with its own preparation of bytes or strings."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import keras_hub
import tensorflow as tf

from regraft.backbones import small  # also makes its classes known to `from_preset`
from regraft.backbones.card import Card, read_card, stored_backbone, weights_digest
from regraft.backbones.spectrogram import View, as_view, sound_preparation
from regraft.data.pairs import SEPARATOR
from regraft.errors import BackboneError

# Below it the last feature map of most networks is a single cell. MNIST digits, 28 px: at 64 px the fine-tuned model is
# right on 0.9854 of the test split, at 96 px on 0.9864, for one and a half times the processor time of a whole run.
SMALLEST_AUTO_SIZE_PX = 64
DEFAULT_SIZE_PX = 224
MOST_TOKENS = 512
PAIR_FEATURES = 4  # see `pair_model`: as many times those of a text


@dataclass(frozen=True)
class Extractor:
    """A backbone that maps prepared input to features, and the preparation that belongs to it.

    Attributes:
        kind: "image", "text" or "audio" (recordings as pictures, for a backbone of images).
        card: What is known of the backbone.
        model: Image: float32 (batch, side, side, 3) in [0, 255] to float32 (batch, features); normalisation is inside.
            Audio: the same, or (batch, windows, side, side, 3) if recordings are seen in several windows.
            Text: {"token_ids": int32 (batch, tokens), "padding_mask": int32 (batch, tokens), 1 where a token is real},
            any number of tokens up to `max_tokens`, to float32 (batch, features). Pairs of texts: the same of shape
            (batch, 2, tokens).
        prepare: Turns raw input into what `model` takes, by TensorFlow operations alone, so it may be part of an
            exported graph. Image: ONE encoded picture (JPEG, PNG, GIF or BMP; a string scalar) to float32
            (side, side, 3) in [0, 255], stretched to the square. Audio: ONE WAV file, see
            `spectrogram.sound_preparation`. Text: strings (batch,) to a dict as `model` takes it,
            padded to the longest text of the batch.
        image_size_px: Side of the square image the model takes; None for text.
        max_tokens: Longest prepared text, start and end tokens included; None for images.
        view: How recordings are looked at; None for images and text.
        preset: The folder the backbone was loaded from.
        pair: Names of the two texts, if it takes pairs of them (as one string, see `regraft.data.pairs`).
        needs_tensorflow_text: Whether `prepare` has operations of that library in it.
    """

    kind: Literal["image", "text", "audio"]
    card: Card
    model: keras.Model
    prepare: Callable[[tf.Tensor], Any]
    preset: Path
    image_size_px: int | None = None
    max_tokens: int | None = None
    view: View | None = None
    pair: tuple[str, ...] = ()
    needs_tensorflow_text: bool = False

    @property
    def feature_size(self) -> int:
        """How many numbers the features of an example are."""
        return self.card.feature_size * (PAIR_FEATURES if self.pair else 1)


def choose_image_size(setting: Literal["auto"] | int, median_short_side_px: float, native_px: int) -> int:
    """Return the side, in pixels, at which images enter the backbone.

    "auto" is twice the median shorter side of the images, rounded up to a multiple of 32 (the stride of the networks),
    at least 64 and at most `native_px`: enlarging small pictures helps (their strokes then fit the network's filters),
    but beyond some size it only costs time.

    Args:
        setting: "auto", or the side itself.
        median_short_side_px: Of the training images, as they came.
        native_px: The side the backbone was trained at.
    """
    if setting != "auto":
        return setting
    wanted = 32 * math.ceil(2 * median_short_side_px / 32)
    return min(max(wanted, SMALLEST_AUTO_SIZE_PX), native_px)


def build_extractor(
    backbones: Path,
    *,
    image_size_px: int | None = None,
    max_tokens: int | None = None,
    view: View | None = None,
    pair: Sequence[str] | None = None,
) -> Extractor:
    """Load the backbone stored in `backbones` as an extractor.

    Args:
        backbones: Holds one preset folder, as the backbone stage writes it.
        image_size_px: Side of the images; None takes the side the backbone was trained at. Ignored for text.
        max_tokens: Longest text; None, or more than the backbone takes, means what it takes. Ignored for images.
        view: For recordings: how a backbone of images is to look at them. None for images and text.
        pair: For pairs of texts: the names of the two. None for all else.

    Raises:
        BackboneError: If there is not exactly one backbone, or its weights are not those on its card.
    """
    folder = stored_backbone(backbones)
    card = read_card(folder)
    backbone = load_backbone(folder)
    found = weights_digest(backbone)
    if found != card.weights_sha256:
        raise BackboneError(
            f"the weights in {folder} are not what its card says (sha256 {card.weights_sha256}, found {found}): they "
            "were changed after they were fetched. Run the backbone stage again."
        )
    if card.kind == "image":
        side = image_size_px or card.input_size_px or DEFAULT_SIZE_PX
        if view is not None:
            model = image_model(backbone, card, side, windows=view.windows)
            return Extractor("audio", card, model, sound_preparation(view, side), folder, image_size_px=side, view=view)
        model = image_model(backbone, card, side)
        return Extractor("image", card, model, image_preparation(side), folder, image_size_px=side)
    longest = min(max_tokens or MOST_TOKENS, card.input_tokens or MOST_TOKENS)
    tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(str(folder))
    prepare = text_preparation(tokenizer, longest)
    if pair:
        model, prepare = pair_model(backbone), pair_preparation(prepare)
    else:
        model = text_model(backbone)
    needs = not isinstance(tokenizer, small.HashedWords)
    return Extractor(
        "text", card, model, prepare, folder, max_tokens=longest, pair=tuple(pair or ()), needs_tensorflow_text=needs
    )


def extractor_as(backbones: Path, said: Mapping[str, Any]) -> Extractor:
    """Return the extractor that features or a model were made with.

    Args:
        backbones: As for `build_extractor`.
        said: features.json, or the card of a model: sizes, view and pair under the names they have there.
    """
    return build_extractor(
        backbones,
        image_size_px=said["image_size_px"],
        max_tokens=said["max_tokens"],
        view=as_view(said.get("view")),
        pair=said.get("pair"),
    )


def load_backbone(folder: Path) -> keras_hub.models.Backbone:
    """Load the backbone of a KerasHub preset folder.

    Raises:
        BackboneError: If its configuration or weights cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # Keras also looks for weights in its own list of operations, finds none there, and warns that they will
            # stay as initialised. They were read from the list of layers; `weights_digest` proves it.
            warnings.filterwarnings("ignore", "Skipping nested container at '_operations_by_depth")
            return keras_hub.models.Backbone.from_preset(str(folder))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BackboneError(f"{folder} cannot be loaded as a KerasHub preset: {str(error)[:500]}") from error


def image_preparation(side: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function from one encoded picture to float32 (side, side, 3) in [0, 255]."""

    def prepare(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        # Antialiasing matters when a large photo shrinks; it changes nothing when a small picture grows.
        resized = tf.image.resize(image, (side, side), method="bilinear", antialias=True)
        return tf.clip_by_value(tf.ensure_shape(resized, (side, side, 3)), 0.0, 255.0)

    return prepare


def text_preparation(
    tokenizer: keras_hub.tokenizers.Tokenizer, max_tokens: int
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from strings (batch,) to {"token_ids", "padding_mask"}, int32 (batch, up to max_tokens)."""
    start, end, padding = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    def prepare(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        # As BERT does before splitting words: every kind of space is a space, and what cannot be seen is not there.
        cleaned = tf.strings.regex_replace(texts, r"[\t\n\r\p{Zs}]", " ")
        cleaned = tf.strings.regex_replace(cleaned, r"[\p{Cc}\p{Cf}\x{FFFD}]", "")
        tokens = tf.cast(tokenizer(cleaned), tf.int32)[:, : max_tokens - 2]
        one_each = tf.ones((tokens.nrows(), 1), tf.int32)
        tokens = tf.concat([start * one_each, tokens, end * one_each], axis=1)
        return {"token_ids": tokens.to_tensor(padding), "padding_mask": tf.ones_like(tokens).to_tensor(0)}

    # Called eagerly, a KerasHub tokenizer returns Python lists; inside a function, tensors.
    return tf.function(prepare, input_signature=[tf.TensorSpec([None], tf.string)])


def pair_preparation(
    prepare: Callable[[tf.Tensor], dict[str, tf.Tensor]],
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from pairs, each one string, (batch,), to what `prepare` makes of both texts.

    Its tensors have the shape (batch, 2, up to max_tokens): `max_tokens` is of each text, and both are padded alike. A
    string without a separator is a pair whose second text is empty.
    """

    def prepare_pairs(joined: tf.Tensor) -> dict[str, tf.Tensor]:
        both = tf.strings.split(joined, SEPARATOR, maxsplit=1).to_tensor("", shape=(None, 2))
        prepared = prepare(tf.reshape(both, (-1,)))
        return {name: tf.reshape(tokens, (-1, 2, tf.shape(tokens)[1])) for name, tokens in prepared.items()}

    return tf.function(prepare_pairs, input_signature=[tf.TensorSpec([None], tf.string)])


def image_model(backbone: keras_hub.models.Backbone, card: Card, side: int | None, *, windows: int = 1) -> keras.Model:
    """Return the functional model pixels -> normalisation -> `backbone` -> mean over positions.

    With several `windows`, an example is as many pictures, and its features are the mean of theirs. Where `side` is
    None, it takes pictures of any size.
    """
    shape = (side, side, 3)
    pixels = keras.Input(shape if windows == 1 else (windows, *shape), dtype="float32", name="image")
    scale = [1.0 / divisor for divisor in card.divisor]
    shift = [-offset / divisor for offset, divisor in zip(card.offset, card.divisor, strict=True)]
    normalised = keras.layers.Rescaling(scale, shift, name="normalise")(pixels)
    if windows > 1:
        normalised = keras.ops.reshape(normalised, (-1, *shape))
    features = keras.layers.GlobalAveragePooling2D(name="pool")(backbone(normalised))
    if windows > 1:
        features = keras.ops.mean(keras.ops.reshape(features, (-1, windows, features.shape[-1])), axis=1)
    return keras.Model(pixels, features, name="extractor")


def text_model(backbone: keras_hub.models.Backbone) -> keras.Model:
    """Return the functional model tokens -> `backbone` -> mean over the real tokens."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    features = _pooled(backbone, token_ids, padding_mask, MaskedAverage(name="pool"))
    return keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, features, name="extractor")


def pair_model(backbone: keras_hub.models.Backbone) -> keras.Model:
    """Return the functional model tokens of two texts -> `backbone` on each -> how the two means are alike and differ.

    The features are u, v, |u - v| and u * v, of which a linear head can read both likeness and direction (Conneau et
    al., 2017, section 3.1, arXiv:1705.02364). Reading both texts in one sequence would let words of one attend to those
    of the other, but means over such sequences, of a backbone that has never seen any, tell next to nothing.
    """
    token_ids = keras.Input((2, None), dtype="int32", name="token_ids")
    padding_mask = keras.Input((2, None), dtype="int32", name="padding_mask")
    pool = MaskedAverage(name="pool")
    first, second = (_pooled(backbone, token_ids[:, side], padding_mask[:, side], pool) for side in (0, 1))
    features = keras.ops.concatenate([first, second, keras.ops.abs(first - second), first * second], axis=-1)
    return keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, features, name="extractor")


def _pooled(
    backbone: keras_hub.models.Backbone,
    token_ids: keras.KerasTensor,
    padding_mask: keras.KerasTensor,
    pool: "MaskedAverage",
) -> keras.KerasTensor:
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    extra = {"segment_ids": keras.ops.zeros_like(token_ids)} if "segment_ids" in backbone.input else {}
    outputs = backbone({**inputs, **extra})
    sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    return pool(sequence, padding_mask)


class MaskedAverage(keras.layers.Layer):
    """The mean of a sequence over its real tokens: (batch, tokens, features), (batch, tokens) -> (batch, features)."""

    def call(self, sequence: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
        weights = keras.ops.expand_dims(keras.ops.cast(padding_mask, sequence.dtype), -1)
        total = keras.ops.sum(sequence * weights, axis=1)
        return total / keras.ops.maximum(keras.ops.sum(weights, axis=1), 1.0)

    def compute_output_shape(
        self, sequence_shape: tuple[int | None, ...], padding_mask_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (sequence_shape[0], sequence_shape[2])
