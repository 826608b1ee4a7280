"""Lessons on texts: which token was hidden (masked), or which comes next (causal)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.data.splits import place
from regraft.errors import BackboneError, DataError
from regraft.pretraining.beginning import Beginning
from regraft.pretraining.lesson import Lesson
from regraft.settings import PretrainSettings
from regraft.tuning.loop import Trainer
from regraft.tuning.objective import Aim
from regraft.tuning.scores import Score

Tokens = NDArray[np.int32]
Inputs = dict[str, NDArray[Any]]

HELD_OUT = 0.05
MASKED_SHARE = 0.15
# Of the tokens to be guessed: so many are hidden, so many replaced by another; the rest stand as they were.
HIDDEN, REPLACED = 0.8, 0.1
TOKENIZED_TOGETHER = 512


@dataclass(frozen=True)
class Special:
    """The numbers of tokens that are no words."""

    start: tuple[int, ...]
    end: int
    mask: int
    others: tuple[int, ...]


class NextToken(Aim):
    """The log loss of tokens; outputs are that of each sequence, and the share of its tokens that were guessed right.

    The model computes them, so that logits of all tokens are never held together.
    """

    labels_are_indices = True
    loss_name = "log loss (a token)"
    measure_name = "accuracy"

    def training_loss(self) -> Callable[[Any, Any], Any]:
        return lambda labels, outputs: tf.reduce_mean(outputs[:, 0])

    def score(self, outputs: NDArray[np.floating]) -> Score:
        """Return the score of `outputs` (N, 2)."""
        losses = outputs[:, 0].astype(np.float64)
        return Score(float(losses.mean()), float(losses.mean()), float(outputs[:, 1].mean(dtype=np.float64)), losses)


TOKENS = NextToken()


def masked(paragraphs: Sequence[str], beginning: Beginning, settings: PretrainSettings, *, seed: int) -> Lesson:
    """Return the lesson of hidden tokens: 15% are to be guessed, of which 80% are hidden and 10% replaced by others.

    Which ones is drawn anew in every epoch. Source: Devlin et al., 2018, section 3.1 (arXiv:1810.04805).

    Args:
        paragraphs: The text.
        beginning: A network that sees a sequence as a whole, and its tokenizer.
        settings: As a person set them.
        seed: Of order and of what is hidden.

    Raises:
        DataError: If there is too little text.
        BackboneError: If sequences are longer than the network takes.
    """
    backbone, tokenizer = beginning.backbone, beginning.tokenizer
    hidden = getattr(tokenizer, "mask_token_id", None)
    special = Special(
        start=(tokenizer.cls_token_id,),
        end=tokenizer.sep_token_id,
        # A tokenizer without it has one for padding, which stands nowhere in a packed sequence.
        mask=tokenizer.pad_token_id if hidden is None else hidden,
        others=(tokenizer.pad_token_id,),
    )
    table = getattr(backbone, "token_embedding", None)
    words = backbone.vocabulary_size

    def losses(sequence: Any, places: Any, answers: Any, counted: Any) -> Any:
        head = keras_hub.layers.MaskedLMHead(
            vocabulary_size=words,
            token_embedding=table,
            intermediate_activation="gelu",
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="guess",
        )
        return TokenLosses(name="losses")(head(sequence, places), answers, counted)

    def ask(tokens: Tokens, generator: np.random.Generator) -> Inputs:
        return hide(tokens, generator, special=special, words=words)

    return _lesson(paragraphs, beginning, settings, special=special, losses=losses, ask=ask, seed=seed)


def causal(paragraphs: Sequence[str], beginning: Beginning, settings: PretrainSettings, *, seed: int) -> Lesson:
    """Return the lesson of the next token, for networks that see only what came before.

    Source: Radford et al., 2019, Language Models are Unsupervised Multitask Learners. Arguments and errors as for
    `masked`.
    """
    special = Special(start=(), end=beginning.tokenizer.end_token_id, mask=-1, others=())

    def losses(sequence: Any, places: Any, answers: Any, counted: Any) -> Any:
        logits = beginning.backbone.token_embedding(sequence, reverse=True)
        return TokenLosses(name="losses")(logits, answers, counted)

    def ask(tokens: Tokens, generator: np.random.Generator) -> Inputs:
        answers = np.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        counted = np.ones(tokens.shape, np.float32)
        counted[:, -1] = 0.0
        return {"token_ids": tokens, "places": np.zeros_like(tokens), "answers": answers, "counted": counted}

    return _lesson(paragraphs, beginning, settings, special=special, losses=losses, ask=ask, seed=seed)


def hide(tokens: Tokens, generator: np.random.Generator, *, special: Special, words: int) -> Inputs:
    """Return `tokens` (batch, length) with some hidden, and at which places, with what true tokens.

    Returns:
        "token_ids" int32 (batch, length); "places" and "answers" int32 (batch, guesses); "counted" float32 (batch,
        guesses), 0 for places that hold no word.
    """
    guesses = max(1, round(MASKED_SHARE * tokens.shape[1]))
    is_word = ~np.isin(tokens, [*special.start, special.end, special.mask, *special.others])
    order = np.where(is_word, generator.random(tokens.shape), 2.0).argsort(axis=1, kind="stable")
    places = np.sort(order[:, :guesses], axis=1)
    answers = np.take_along_axis(tokens, places, axis=1)
    counted = np.take_along_axis(is_word, places, axis=1)
    what = generator.random(places.shape)
    others = generator.integers(0, words, places.shape)
    shown = np.where(what < HIDDEN, special.mask, np.where(what < HIDDEN + REPLACED, others, answers))
    asked = tokens.copy()
    np.put_along_axis(asked, places, np.where(counted, shown, answers).astype(np.int32), axis=1)
    return {
        "token_ids": asked,
        "places": places.astype(np.int32),
        "answers": answers,
        "counted": counted.astype(np.float32),
    }


def pack(tokens: Tokens, length: int, special: Special) -> Tokens:
    """Cut a stream of tokens into sequences of `length`, start and end tokens included: int32 (sequences, length).

    What is left over at the end is dropped.
    """
    start = np.array(special.start, np.int32)
    end = np.array([special.end] if special.start else [], np.int32)
    inside = length - len(start) - len(end)
    count = len(tokens) // inside
    rows = tokens[: count * inside].reshape(count, inside)
    return np.concatenate([np.tile(start, (count, 1)), rows, np.tile(end, (count, 1))], axis=1).astype(np.int32)


class TokenLosses(keras.layers.Layer):
    """Logits (batch, guesses, words), answers and weights (batch, guesses) to (batch, 2): log loss, share right."""

    def call(self, logits: Any, answers: Any, counted: Any) -> Any:
        """Average over the guesses that count."""
        logits = keras.ops.cast(logits, "float32")
        losses = keras.losses.sparse_categorical_crossentropy(answers, logits, from_logits=True)
        right = keras.ops.cast(keras.ops.equal(keras.ops.argmax(logits, axis=-1), answers), "float32")
        total = keras.ops.maximum(keras.ops.sum(counted, axis=1), 1.0)
        return keras.ops.stack(
            [keras.ops.sum(losses * counted, axis=1) / total, keras.ops.sum(right * counted, axis=1) / total], axis=1
        )

    def compute_output_shape(self, logits_shape: Any, answers_shape: Any, counted_shape: Any) -> Any:
        """Return the shape of what `call` returns."""
        return (logits_shape[0], 2)


def _lesson(
    paragraphs: Sequence[str],
    beginning: Beginning,
    settings: PretrainSettings,
    *,
    special: Special,
    losses: Callable[[Any, Any, Any, Any], Any],
    ask: Callable[[Tokens, np.random.Generator], Inputs],
    seed: int,
) -> Lesson:
    backbone, tokenizer = beginning.backbone, beginning.tokenizer
    longest = getattr(backbone, "max_sequence_length", None)
    full = settings.max_tokens
    if longest is not None and full > longest:
        raise BackboneError(
            f"backbone.pretrain.max_tokens is {full}, and {beginning.card.name} takes at most {longest}."
        )
    short = max(8, full // 2) if settings.progressive else full
    parts = _held_out(paragraphs)
    learned, judged = (_stream(part, tokenizer, special) for part in parts)
    # In half as long sequences twice as many make a batch, so that a batch is as much text, and an epoch as many steps.
    rows = {size: (pack(learned, size, special), settings.batch_size * full // size) for size in (short, full)}
    seen = pack(judged, full, special)
    if not len(seen) or any(not len(sequences) for sequences, _ in rows.values()):
        raise DataError(
            f"backbone.pretrain.source holds {len(learned)} tokens to learn from and {len(judged)} to judge by, and a "
            f"sequence takes {full}. Add text, or set a smaller backbone.pretrain.max_tokens."
        )
    steps = max(1, min(len(sequences) // batch for sequences, batch in rows.values()))

    def batches(size: int, epoch: int, taken: int) -> Iterator[tuple[Any, Any]]:
        sequences, batch = rows[size]
        order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
        for step in range(taken, steps):
            chosen = order[step * batch : (step + 1) * batch]
            yield _batch(ask(sequences[chosen], np.random.default_rng([seed, epoch, step])))

    def judge(trainer: Trainer) -> Score:
        batch = settings.batch_size
        starts = range(0, len(seen), batch)
        asked = (_batch(ask(seen[start : start + batch], np.random.default_rng([0, start]))) for start in starts)
        return TOKENS.score(trainer.logits(asked))

    return Lesson(
        model=_model(backbone, losses),
        aim=TOKENS,
        steps_per_epoch=steps,
        sizes=(short, full),
        batches=batches,
        judge=judge,
        unit="sequences",
        held_out=len(seen),
        seen=[_identity(paragraph) for paragraph in parts[0]],
        facts={
            "paragraphs": len(parts[0]),
            "tokens": len(learned),
            "vocabulary": tokenizer.vocabulary_size(),
            "max_tokens": full,
        },
    )


def _model(backbone: keras_hub.models.Backbone, losses: Callable[[Any, Any, Any, Any], Any]) -> keras.Model:
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "places", "answers")}
    inputs["counted"] = keras.Input((None,), dtype="float32", name="counted")
    tokens = inputs["token_ids"]
    taken = {"token_ids": tokens, "padding_mask": keras.ops.ones_like(tokens)}
    if "segment_ids" in backbone.input:
        taken["segment_ids"] = keras.ops.zeros_like(tokens)
    outputs = backbone(taken)
    sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    return keras.Model(inputs, losses(sequence, inputs["places"], inputs["answers"], inputs["counted"]))


def _batch(inputs: Inputs) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Return `inputs` as tensors, and labels that nobody reads: the answers are among the inputs."""
    return {name: tf.constant(value) for name, value in inputs.items()}, tf.zeros(len(inputs["token_ids"]), tf.int64)


def _held_out(paragraphs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return paragraphs to learn from and to judge by; each has its fixed place, so copies stand on one side."""
    judged: list[str] = []
    learned: list[str] = []
    for paragraph in paragraphs:
        (judged if place(_identity(paragraph)) < HELD_OUT else learned).append(paragraph)
    return learned, judged


def _identity(paragraph: str) -> str:
    return hashlib.sha256(paragraph.encode()).hexdigest()


def _stream(paragraphs: Sequence[str], tokenizer: Any, special: Special) -> Tokens:
    """Return the tokens of all `paragraphs`, one after another, with an end token after each."""
    tokenize = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
    parts = [np.zeros(0, np.int32)]
    for start in range(0, len(paragraphs), TOKENIZED_TOGETHER):
        tokens = tf.cast(tokenize(tf.constant(paragraphs[start : start + TOKENIZED_TOGETHER])), tf.int32)
        ends = tf.fill((tokens.nrows(), 1), special.end)
        parts.append(tf.concat([tokens, ends], axis=1).values.numpy())
    return np.concatenate(parts)
