"""Two small networks that begin from nothing: a convolutional one for images and a recurrent one for texts.

Loading a preset of theirs takes this module, which makes their classes known to Keras.
"""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import tensorflow as tf

PAD, START, END, FIRST_WORD = 0, 1, 2, 3
# What is a token of its own: a digit, a sign, and any letter of a script that puts no spaces between words.
ALONE = r"([^\p{L}\p{M}\s]|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"


@keras.saving.register_keras_serializable(package="regraft")
class SmallCNN(keras_hub.models.Backbone):
    """Convolutions of 3x3, half of which halve the picture: float32 (batch, side, side, 3) to (.., side / 16, width).

    GroupNormalization (Wu & He, 2018, arXiv:1803.08494) rather than BatchNormalization, whose statistics this program
    keeps still: of a network from nothing they would stay at what they were before training.

    Args:
        widths: Channels of each stage, multiples of `groups`; a stage halves the picture.
        groups: Of channels that are normalised together.
    """

    def __init__(
        self, widths: Sequence[int] = (24, 48, 96, 192), groups: int = 8, dtype: Any = None, **kwargs: Any
    ) -> None:
        pixels = keras.Input((None, None, 3), name="pixels")
        x = pixels
        for stage, width in enumerate(widths):
            # Early maps are large and dear, so the first two stages have one convolution each.
            for number in range(1 if stage < 2 else 2):
                name = f"stage{stage + 1}_{'ab'[number]}"
                x = keras.layers.Conv2D(
                    width, 3, strides=2 if number == 0 else 1, padding="same", use_bias=False,
                    kernel_initializer="he_normal", dtype=dtype, name=f"{name}_conv",
                )(x)  # fmt: skip
                x = keras.layers.GroupNormalization(groups, dtype=dtype, name=f"{name}_norm")(x)
                x = keras.layers.Activation("relu", dtype=dtype, name=f"{name}_relu")(x)
        super().__init__(inputs=pixels, outputs=x, dtype=dtype, **kwargs)
        self.widths, self.groups = tuple(widths), groups

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this network again."""
        return {**super().get_config(), "widths": list(self.widths), "groups": self.groups}


@keras.saving.register_keras_serializable(package="regraft")
class SmallRNN(keras_hub.models.Backbone):
    """A table of words and a GRU in each direction: int32 (batch, tokens) to float32 (batch, tokens, 2 * hidden_dim).

    Inputs are {"token_ids", "padding_mask"}; neither GRU is moved by tokens whose mask is 0. Their states are scaled to
    a deviation of one, because a head solved on small features has large weights, and is too sure of itself as soon as
    training moves the features. Cho et al., 2014 (arXiv:1406.1078); in both directions, Schuster & Paliwal, 1997.

    Args:
        vocabulary_size: Rows of the table.
        hidden_dim: Columns of the table, and the state of each GRU.
    """

    def __init__(self, vocabulary_size: int = 8192, hidden_dim: int = 64, dtype: Any = None, **kwargs: Any) -> None:
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
        words = WordTable(vocabulary_size, hidden_dim, dtype=dtype, name="words")(token_ids)
        is_real = keras.ops.cast(padding_mask, "bool")
        directions = []
        for name in ("forward", "backward"):
            # Not cuDNN's GRU: a model exported on a machine with a GPU must run on one without.
            gru = keras.layers.GRU(
                hidden_dim, return_sequences=True, go_backwards=name == "backward", use_cudnn=False, dtype=dtype,
                name=name,
            )  # fmt: skip
            states = gru(words, mask=is_real)
            directions.append(keras.ops.flip(states, axis=1) if name == "backward" else states)
        states = keras.ops.concatenate(directions, axis=-1)
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask},
            outputs=keras.layers.LayerNormalization(dtype=dtype, name="norm")(states),
            dtype=dtype,
            **kwargs,
        )
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this network again."""
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size, "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable(package="regraft")
class WordTable(keras.layers.Layer):
    """A row of numbers for each token: int32 (batch, tokens) to float32 (batch, tokens, size).

    It is no `keras.layers.Embedding`, because those are kept as they were pretrained, and this one has to learn.
    """

    def __init__(self, rows: int, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.size = rows, size

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the table."""
        self.table = self.add_weight(
            shape=(self.rows, self.size), initializer=keras.initializers.RandomNormal(stddev=0.1), name="table"
        )

    def call(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Look up the rows."""
        return keras.ops.take(self.table, token_ids, axis=0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of what `call` returns."""
        return (*input_shape, self.size)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again."""
        return {**super().get_config(), "rows": self.rows, "size": self.size}


@keras.saving.register_keras_serializable(package="regraft")
class HashedWords(keras_hub.tokenizers.Tokenizer):
    """Words in lower case become numbers by their hash: strings (batch,) to a ragged int (batch, words).

    There is no vocabulary to learn or to keep, any language will do, and it takes no operations beyond TensorFlow's
    own. Two words may share a number (hashing trick, Weinberger et al., 2009, arXiv:0902.2206).

    Args:
        vocabulary_size: Of the network: numbers 3 and up are words, below stand padding, start and end.
    """

    backbone_cls = SmallRNN

    def __init__(self, vocabulary_size: int = 8192, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "int32"})
        self._vocabulary_size = vocabulary_size
        self.pad_token_id, self.cls_token_id, self.sep_token_id = PAD, START, END

    def vocabulary_size(self) -> int:
        """Return how many different numbers there are."""
        return self._vocabulary_size

    def tokenize(self, inputs: tf.Tensor) -> tf.RaggedTensor:
        """Split and hash."""
        words = tf.strings.split(tf.strings.regex_replace(tf.strings.lower(inputs, "utf-8"), ALONE, r" \1 "))
        buckets = self._vocabulary_size - FIRST_WORD
        return tf.ragged.map_flat_values(lambda word: FIRST_WORD + tf.strings.to_hash_bucket_fast(word, buckets), words)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this tokenizer again."""
        return {**super().get_config(), "vocabulary_size": self._vocabulary_size}

    def save_assets(self, folder: str) -> None:
        """Write nothing: there is no vocabulary."""

    def load_preset_assets(self, preset: str) -> None:
        """Read nothing."""


def tokenizer_of(backbone: keras_hub.models.Backbone) -> HashedWords | None:
    """Return the tokenizer that goes with one of these networks; None for the one that takes images."""
    if not isinstance(backbone, SmallRNN):
        return None
    return HashedWords(backbone.vocabulary_size, name=f"{backbone.name}_tokenizer")
