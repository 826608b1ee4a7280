"""From raw input to features: one network with its own preparation of bytes or strings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import keras_hub
import tensorflow as tf

from regraft.backbones import small
from regraft.backbones.card import Card, read_card, stored_backbone, weights_digest
from regraft.backbones.presets import DEFAULT_SIZE_PX, MOST_TOKENS, load_backbone, load_tokenizer
from regraft.backbones.spectrogram import View, as_view, sound_preparation
from regraft.data.pairs import SEPARATOR
from regraft.errors import BackboneError

# Below it the last feature map of most networks is a single cell. MNIST digits, 28 px: at 64 px the fine-tuned model is
# right on 0.9854 of the test split, at 96 px on 0.9864, for one and a half times the processor time of a whole run.
SMALLEST_AUTO_SIZE_PX = 64
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

    def prepare_texts_anew(self) -> tuple[Callable[[tf.Tensor], Any], list[Any]]:
        """Return `prepare` as if it had met no text yet, and the tables that it looks up.

        KerasHub's byte-pair tokenizer keeps the words it has met in a table. An export has to hold the tables, and
        should not hold what happened to be prepared before it was made.
        """
        tokenizer = load_tokenizer(self.preset)
        prepare = text_preparation(tokenizer, self.max_tokens or MOST_TOKENS, self.card.pooling)
        tables = (tf.Module, tf.saved_model.experimental.TrackableResource)
        found = [value for value in vars(tokenizer).values() if isinstance(value, tables)]
        return (pair_preparation(prepare) if self.pair else prepare), found


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


def fixed_size(card: Card, asked_px: Literal["auto"] | int | None) -> int | None:
    """Return the side of pictures of a backbone that takes no other; None if it takes any.

    Raises:
        BackboneError: If another one is asked for.
    """
    if not card.is_fixed_size:
        return None
    if asked_px not in (None, "auto", card.input_size_px):
        raise BackboneError(
            f"embed.image_size_px: {card.name} takes pictures of {card.input_size_px} px alone, got {asked_px}. "
            "Set it to auto, or take another backbone."
        )
    return card.input_size_px


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
        side = fixed_size(card, image_size_px) or image_size_px or card.input_size_px or DEFAULT_SIZE_PX
        if view is not None:
            model = image_model(backbone, card, side, windows=view.windows)
            return Extractor("audio", card, model, sound_preparation(view, side), folder, image_size_px=side, view=view)
        model = image_model(backbone, card, side)
        return Extractor("image", card, model, image_preparation(side), folder, image_size_px=side)
    longest = min(max_tokens or MOST_TOKENS, card.input_tokens or MOST_TOKENS)
    tokenizer = load_tokenizer(folder)
    prepare = text_preparation(tokenizer, longest, card.pooling)
    if pair:
        model, prepare = pair_model(backbone, card.pooling), pair_preparation(prepare)
    else:
        model = text_model(backbone, card.pooling)
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
    tokenizer: keras_hub.tokenizers.Tokenizer, max_tokens: int, pooling: str = "average"
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function from strings (batch,) to {"token_ids", "padding_mask"}, int32 (batch, up to max_tokens).

    A text has a token at its start and one at its end, as in pretraining. Where the last token is to stand for the text
    (`pooling`) there is none at its end, because that one speaks of the text to come.
    """
    start, end, padding = _special_tokens(tokenizer, pooling)
    around = len(start) + len(end)

    def prepare(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        # As BERT does before splitting words: every kind of space is a space, and what cannot be seen is not there.
        cleaned = tf.strings.regex_replace(texts, r"[\t\n\r\p{Zs}]", " ")
        cleaned = tf.strings.regex_replace(cleaned, r"[\p{Cc}\p{Cf}\x{FFFD}]", "")
        tokens = tf.cast(tokenizer(cleaned), tf.int32)[:, : max_tokens - around]
        one_each = tf.ones((tokens.nrows(), 1), tf.int32)
        tokens = tf.concat([*(token * one_each for token in start), tokens, *(token * one_each for token in end)], 1)
        return {"token_ids": tokens.to_tensor(padding), "padding_mask": tf.ones_like(tokens).to_tensor(0)}

    # Called eagerly, a KerasHub tokenizer returns Python lists; inside a function, tensors.
    return tf.function(prepare, input_signature=[tf.TensorSpec([None], tf.string)])


def _special_tokens(
    tokenizer: keras_hub.tokenizers.Tokenizer, pooling: str
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return what stands before a text, what after it, and what fills up the rest of a batch."""
    known = [getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "start", "sep", "end", "pad")]
    cls, start, sep, end, pad = known
    before = [token for token in (cls, start, end) if token is not None]  # an end is that of the text before
    after = [token for token in (sep, end) if token is not None and pooling != "last"]
    return tuple(before[:1]), tuple(after[:1]), pad or 0


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
    """Return the functional model pixels -> normalisation -> `backbone` -> one vector, pooled as the card says.

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
    seen = backbone(normalised)
    if card.pooling == "class":
        features = seen[:, 0]
    elif len(seen.shape) == 3:
        features = keras.layers.GlobalAveragePooling1D(name="pool")(seen)
    else:
        features = keras.layers.GlobalAveragePooling2D(name="pool")(seen)
    if windows > 1:
        features = keras.ops.mean(keras.ops.reshape(features, (-1, windows, features.shape[-1])), axis=1)
    return keras.Model(pixels, features, name="extractor")


def text_model(backbone: keras_hub.models.Backbone, pooling: str = "average") -> keras.Model:
    """Return the functional model tokens -> `backbone` -> one vector of the real tokens, by `pooling` as on a card."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    features = _pooled(backbone, token_ids, padding_mask, _pool(pooling))
    return keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, features, name="extractor")


def pair_model(backbone: keras_hub.models.Backbone, pooling: str = "average") -> keras.Model:
    """Return the functional model tokens of two texts -> `backbone` on each -> how both vectors are alike and differ.

    The features are u, v, |u - v| and u * v, of which a linear head can read both likeness and direction (Conneau et
    al., 2017, section 3.1, arXiv:1705.02364). Reading both texts in one sequence would let words of one attend to those
    of the other, but means over such sequences, of a backbone that has never seen any, tell next to nothing.
    """
    token_ids = keras.Input((2, None), dtype="int32", name="token_ids")
    padding_mask = keras.Input((2, None), dtype="int32", name="padding_mask")
    pool = _pool(pooling)
    first, second = (_pooled(backbone, token_ids[:, side], padding_mask[:, side], pool) for side in (0, 1))
    features = keras.ops.concatenate([first, second, keras.ops.abs(first - second), first * second], axis=-1)
    return keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, features, name="extractor")


def _pooled(
    backbone: keras_hub.models.Backbone,
    token_ids: keras.KerasTensor,
    padding_mask: keras.KerasTensor,
    pool: keras.layers.Layer,
) -> keras.KerasTensor:
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    extra = {"segment_ids": keras.ops.zeros_like(token_ids)} if "segment_ids" in backbone.input else {}
    outputs = backbone({**inputs, **extra})
    sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    return pool(sequence, padding_mask)


def _pool(pooling: str) -> keras.layers.Layer:
    return {"average": MaskedAverage, "last": LastReal}[pooling](name="pool")


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


class LastReal(keras.layers.Layer):
    """The last real token of a sequence, padded on either side: shapes as of `MaskedAverage`.

    Read from left to right, it is the one token that has seen all of the text. The first, if none is real.
    """

    def call(self, sequence: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
        places = keras.ops.arange(keras.ops.shape(padding_mask)[1])
        last = keras.ops.max(places * keras.ops.cast(padding_mask > 0, places.dtype), axis=1)
        return keras.ops.take_along_axis(sequence, last[:, None, None], axis=1)[:, 0]

    def compute_output_shape(
        self, sequence_shape: tuple[int | None, ...], padding_mask_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (sequence_shape[0], sequence_shape[2])
