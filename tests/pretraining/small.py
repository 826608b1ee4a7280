"""A book of a few hundred short paragraphs, and networks small enough to be pretrained in seconds."""

import random

import keras_hub

from regraft.backbones.presets import save
from regraft.pretraining.vocabulary import learn_tokenizer
from tests.backbones.tiny import WORDS

_RANDOM = random.Random(0)  # noqa: S311
BOOK = [" ".join(_RANDOM.choice(WORDS) for _ in range(20)) for _ in range(150)]


def write_book(folder):
    folder.mkdir()
    (folder / "book.txt").write_text("\n\n".join(BOOK), "utf-8")


SHAPE = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64, "max_sequence_length": 32}


def tiny_bert(vocabulary_size=400):
    return keras_hub.models.BertBackbone(vocabulary_size, **SHAPE, name="bert")


def tiny_gpt2(vocabulary_size=400):
    return keras_hub.models.GPT2Backbone(vocabulary_size, **SHAPE, name="gpt2")


def write_preset(network, folder):
    """Write `network` as a preset, with a tokenizer learned from the book, and a table of as many rows."""
    tokenizer = learn_tokenizer(network, BOOK, network.vocabulary_size)
    network = type(network).from_config({**network.get_config(), "vocabulary_size": tokenizer.vocabulary_size()})
    save(network, tokenizer, folder)
    return folder
