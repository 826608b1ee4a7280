"""Tokenizers of a text: learned from it, of the kind that a network was published with."""

import logging
from collections.abc import Sequence
from typing import Any

import keras_hub
import tensorflow as tf

from regraft.backbones import small
from regraft.errors import BackboneError

log = logging.getLogger(__name__)

RESERVED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END_OF_TEXT = "<|endoftext|>"


def learn_tokenizer(backbone: keras_hub.models.Backbone, paragraphs: Sequence[str], most_tokens: int) -> Any:
    """Return a tokenizer for networks like `backbone`, with a vocabulary learned from `paragraphs`.

    BERT and its like take word pieces, in lower case (Wu et al., 2016, arXiv:1609.08144), GPT-2 pieces of bytes
    (Sennrich et al., 2016, arXiv:1508.07909); the recurrent network takes hashed words, for which nothing is learned.

    Args:
        backbone: Decides the kind of tokenizer.
        paragraphs: Not empty.
        most_tokens: Size of the vocabulary, which a small text may not fill.

    Raises:
        BackboneError: If the network takes a vocabulary of another kind.
    """
    if isinstance(backbone, small.SmallRNN):
        return small.tokenizer_of(backbone)
    kind = type(backbone).__name__.removesuffix("Backbone")
    made_by = getattr(keras_hub.tokenizers, f"{kind}Tokenizer", None)
    log.info("learning a vocabulary from %d paragraphs", len(paragraphs))
    if made_by is not None and issubclass(made_by, keras_hub.tokenizers.WordPieceTokenizer):
        pieces = _word_pieces(paragraphs, most_tokens)
        log.info("learned a vocabulary of %d word pieces", len(pieces))
        return made_by(vocabulary=pieces, lowercase=True, strip_accents=True, name=f"{backbone.name}_tokenizer")
    if made_by is not None and made_by is keras_hub.tokenizers.GPT2Tokenizer:
        vocabulary, merges = _byte_pairs(paragraphs, most_tokens)
        log.info("learned a vocabulary of %d pieces of bytes", len(vocabulary))
        return made_by(vocabulary=vocabulary, merges=merges, name=f"{backbone.name}_tokenizer")
    raise BackboneError(
        f"backbone.pretrain: no vocabulary can be learned here for {kind}: only for BERT, DistilBERT, GPT-2 and "
        "rnn_small. Set backbone.pretrain.start: weights, which keeps its own."
    )


def _word_pieces(paragraphs: Sequence[str], most_tokens: int) -> list[str]:
    texts = tf.data.Dataset.from_tensor_slices(list(paragraphs)).batch(256)
    learned: list[str] = keras_hub.tokenizers.compute_word_piece_vocabulary(
        texts, most_tokens, lowercase=True, strip_accents=True, reserved_tokens=RESERVED
    )
    return learned


def _byte_pairs(paragraphs: Sequence[str], most_tokens: int) -> tuple[dict[str, int], list[str]]:
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    # All bytes are in the alphabet, so that there is no text it cannot spell.
    trainer = trainers.BpeTrainer(
        vocab_size=most_tokens,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(paragraphs, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return dict(sorted(model["vocab"].items(), key=lambda item: item[1])), merges
