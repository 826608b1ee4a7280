"""Tiny random backbones as KerasHub presets, made in about a second: for any test that needs a whole pipeline."""

import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
from safetensors.numpy import save_file

WORDS = tuple(
    "the a my is was not and card bank money cash sent late lost good bad film loved hated food great awful very "  # noqa: SIM905
    "where when how why please help price offer win free call now today tomorrow home work".split()
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    *LETTERS[1:],
    *(f"##{letter}" for letter in LETTERS),
    *".,!?",
]


IMAGE_FEATURES = 1280  # KerasHub 0.32 forgets any other width of the last layer when it saves an EfficientNet
TEXT_FEATURES = 32  # widths that fill whole vector registers, as real networks have, give the same bits in any row


def make_image_preset(folder: Path, *, seed: int = 0) -> Path:
    """Write an EfficientNet of 24 thousand random weights (BatchNorm and both kinds of block in it) to `folder`."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0, 1.0],
        stackwise_depth_coefficients=[1.0, 1.0],
        stackwise_kernel_sizes=[3, 5],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0, 0],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "unfused"],
        include_stem_padding=False,
        stem_conv_padding="same",
        dropout=0.0,
        activation="relu6",
        input_shape=(None, None, 3),
        name=folder.name,
    )
    backbone.save_to_preset(str(folder))
    return folder


def make_text_preset(folder: Path, *, seed: int = 0) -> Path:
    """Write a BERT of one random layer, with a vocabulary of a few words and every letter, to `folder`."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=TEXT_FEATURES,
        intermediate_dim=2 * TEXT_FEATURES,
        max_sequence_length=64,
        name=folder.name,
    )
    backbone.save_to_preset(str(folder))
    tokenizer = keras_hub.tokenizers.BertTokenizer(
        vocabulary=VOCABULARY, lowercase=True, strip_accents=True, name=f"{folder.name}_tokenizer"
    )
    tokenizer.save_to_preset(str(folder))
    return folder


def make_hugging_face_folder(folder: Path, *, layers: int = 2, hidden: int = 8) -> Path:
    """Write a random BERT as Hugging Face publishes one: config, tokenizer, weights, vocabulary."""
    random = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), hidden),
        "embeddings.position_embeddings.weight": (32, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
        "pooler.dense.weight": (hidden, hidden),
        "pooler.dense.bias": (hidden,),
    }
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        for role in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{prefix}{role}.weight": (hidden, hidden), f"{prefix}{role}.bias": (hidden,)}
        shapes |= {f"{prefix}intermediate.dense.weight": (3 * hidden, hidden)}
        shapes |= {f"{prefix}intermediate.dense.bias": (3 * hidden,)}
        shapes |= {f"{prefix}output.dense.weight": (hidden, 3 * hidden), f"{prefix}output.dense.bias": (hidden,)}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{norm}.weight": (hidden,), f"{prefix}{norm}.bias": (hidden,)}
    folder.mkdir()
    tensors = {name: random.normal(0, 0.7, shape).astype("float32") for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "bert", "vocab_size": len(VOCABULARY), "num_hidden_layers": layers}
    config |= {"num_attention_heads": 2, "hidden_size": hidden, "intermediate_size": 3 * hidden}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    how = {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(how))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    return folder
