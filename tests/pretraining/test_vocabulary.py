"""Vocabularies that are learned from a text."""

import subprocess
import sys

import keras_hub
import pytest

from regraft.errors import BackboneError
from regraft.pretraining.vocabulary import END_OF_TEXT, _byte_pairs, _word_pieces, learn_tokenizer
from tests.pretraining.small import BOOK, tiny_bert, tiny_gpt2

DUMP = """
from regraft.pretraining.vocabulary import _byte_pairs, _word_pieces
from tests.pretraining.small import BOOK
print(_word_pieces(BOOK, 400), _byte_pairs(BOOK, 400))
"""


def test_word_pieces_spell_their_text():
    tokenizer = learn_tokenizer(tiny_bert(), BOOK, 400)
    tokens = tokenizer("The Bank sent CASH")
    assert isinstance(tokenizer, keras_hub.tokenizers.BertTokenizer)
    assert tokenizer.token_to_id("[UNK]") not in list(tokens)
    assert tokenizer.detokenize(tokens) == "the bank sent cash"


def test_byte_pairs_spell_any_text():
    tokenizer = learn_tokenizer(tiny_gpt2(), BOOK, 300)
    assert tokenizer.vocabulary_size() <= 300
    assert tokenizer.detokenize(tokenizer("The bank – für 3 €")) == "The bank – für 3 €"
    assert tokenizer.end_token_id == tokenizer.token_to_id(END_OF_TEXT)


def test_vocabularies_are_the_same_in_every_process():
    command = [sys.executable, "-c", DUMP]
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{_word_pieces(BOOK, 400)} {_byte_pairs(BOOK, 400)}\n"


def test_a_network_with_another_kind_of_vocabulary_is_told_what_to_do():
    class XLNetBackbone:
        name = "x"

    with pytest.raises(BackboneError, match=r"no vocabulary can be learned here for XLNet.*start: weights"):
        learn_tokenizer(XLNetBackbone(), BOOK, 400)
