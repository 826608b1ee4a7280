"""Features by content: what the frozen backbone says of an example is computed once and then looked up."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from regraft.backbones import extractor as extractor_module
from regraft.backbones import folding, small, spectrogram
from regraft.backbones.extractor import Extractor
from regraft.backbones.presets import MOST_TOKENS
from regraft.backbones.weights import CARD, sha256
from regraft.data import audio, images, waveform
from regraft.files import write_json

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 512  # what a crash loses at most
TOKENS_PER_BATCH_ROW = 128  # a batch of short texts has more rows, so that the cores stay busy
TOKEN_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Compute = Callable[[Any], tf.Tensor]


class Rows(Protocol):
    """What is asked of a split: contents by row number, and the id of each."""

    @property
    def ids(self) -> list[str]: ...

    def inputs(self, indices: Sequence[int]) -> list[Any]: ...


@dataclass(frozen=True)
class Embedded:
    """Features of several splits.

    Attributes:
        features: By split name, float32 (rows, features), in row order.
        forward_passes: Examples that went through the backbone.
        from_cache: Rows that did not, because their content was known already.
    """

    features: dict[str, np.ndarray]
    forward_passes: int
    from_cache: int


def describe(extractor: Extractor, batch_size: int) -> dict[str, Any]:
    """Return all that a feature depends on apart from the example itself; equal descriptions share a cache.

    The batch size is part of it, because another batch shape may round the last bits otherwise; so are the versions of
    the libraries that compute, the code that prepares examples, and every file in the backbone's folder but weights:
    their bytes vary where their numbers, which `weights_sha256` is of, do not.
    """
    card, preset = extractor.card, extractor.preset
    own = (small,) if any(type(layer).__module__ == small.__name__ for layer in extractor.model.layers) else ()
    return {
        "weights_sha256": card.weights_sha256,
        "kind": extractor.kind,
        "image_size_px": extractor.image_size_px,
        "max_tokens": extractor.max_tokens,
        "view": extractor.view and dataclasses.asdict(extractor.view),
        "offset": list(card.offset),
        "divisor": list(card.divisor),
        "pooling": card.pooling,
        "feature_size": extractor.feature_size,
        "pair": list(extractor.pair) or None,
        "batch_size": batch_size,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras_hub": version("keras-hub"),
        "tensorflow_text": version("tensorflow-text"),
        "preset": {
            path.relative_to(preset).as_posix(): sha256(path)
            for path in sorted(preset.rglob("*"))
            if path.is_file() and path.name != CARD and not path.name.endswith(".weights.h5")
        },
        "code": [
            sha256(Path(str(module.__file__)))
            for module in (
                extractor_module,
                folding,
                *own,
                images,
                *((spectrogram, waveform, audio) if extractor.view else ()),
            )
        ]
        + [sha256(Path(__file__))],
    }


class FeatureCache:
    """Features on disk by example id, for one description, in shards that are written whole or not at all."""

    def __init__(self, root: Path, description: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        self.folder = root / digest[:16]
        self._size = int(description["feature_size"])
        write_json(self.folder / "description.json", dict(description))

    def read(self, ids: set[str]) -> dict[str, np.ndarray]:
        """Return the features, float32 (features,), of those of `ids` that are known.

        A shard that cannot be read is deleted with a warning, and its examples count as unknown.
        """
        known: dict[str, np.ndarray] = {}
        for shard in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(shard) as arrays:  # reading a member whole checks its CRC
                    names, features = arrays["ids"], arrays["features"]
                if features.shape != (len(names), self._size) or features.dtype != np.float32:
                    raise ValueError(f"features have shape {features.shape} and type {features.dtype}")
            except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
                log.warning(
                    "dropping damaged feature shard %s (%s); its examples are computed again", shard.name, error
                )
                shard.unlink()
                continue
            known |= {name: row for name, row in zip(names.tolist(), features, strict=True) if name in ids}
        return known

    def add(self, ids: Sequence[str], features: np.ndarray) -> None:
        """Store `features`, float32 (rows, features), of `ids` as one shard."""
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:24]
        temporary = self.folder / f"{name}.part"
        with temporary.open("wb") as file:
            np.savez(file, ids=np.array(ids, dtype=np.str_), features=features.astype(np.float32, copy=False))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / f"{name}.npz")


def embed_splits(
    splits: Mapping[str, Rows],
    extractor: Extractor,
    cache: FeatureCache,
    *,
    batch_size: int,
    advance: Callable[[int, int], None],
) -> Embedded:
    """Return the features of every row of `splits`, sending only examples the cache does not know through the backbone.

    Args:
        splits: By name; rows with the same id have the same content.
        extractor: The frozen backbone.
        cache: Of this extractor and batch size (see `describe`).
        batch_size: Images that go through the backbone at once; for texts, the number of texts of 128 tokens.
        advance: Called as (examples done since the last call, examples to do in all).
    """
    known = cache.read({id_ for split in splits.values() for id_ in split.ids})
    from_cache = sum(id_ in known for split in splits.values() for id_ in split.ids)
    unknown: dict[str, tuple[Rows, int]] = {}
    for split in splits.values():
        for row, id_ in enumerate(split.ids):
            if id_ not in known:
                unknown.setdefault(id_, (split, row))

    run = _text_features if extractor.kind == "text" else _image_features
    ids: list[str] = []
    rows: list[np.ndarray] = []
    for batch_ids, batch in run(unknown, extractor, batch_size):
        known |= zip(batch_ids, batch, strict=True)
        ids += batch_ids
        rows += list(batch)
        if len(ids) >= ROWS_PER_SHARD:
            cache.add(ids, np.stack(rows))
            ids, rows = [], []
        advance(len(batch_ids), len(unknown))
    if ids:
        cache.add(ids, np.stack(rows))

    size = extractor.feature_size
    features = {
        name: np.stack([known[id_] for id_ in split.ids]) if split.ids else np.zeros((0, size), np.float32)
        for name, split in splits.items()
    }
    return Embedded(features, len(unknown), from_cache)


def _image_features(
    unknown: Mapping[str, tuple[Rows, int]], extractor: Extractor, batch_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield ids and features batch by batch.

    Every batch has the same shape, the last one filled up with black images: then the same instructions compute each
    image, and its features do not depend on how many there are or which stand beside it. The last place is always
    filled up, because processors with vectors of 256 bits multiply the last row of a matrix by other instructions.
    """
    if not unknown:
        return
    shape = extractor.model.input_shape[1:]
    places = batch_size + 1
    forward = _compiled(extractor, tf.TensorSpec((places, *shape), tf.float32))
    pixels = tf.data.Dataset.from_generator(
        lambda: _contents(unknown), output_signature=tf.TensorSpec((), tf.string)
    ).map(extractor.prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    ids = iter(unknown)
    for batch in pixels.batch(batch_size).prefetch(2):
        rows = batch.shape[0]
        filled = tf.pad(batch, [[0, places - rows], *([0, 0] for _ in shape)])
        yield [next(ids) for _ in range(rows)], forward(filled).numpy()[:rows]


def _text_features(
    unknown: Mapping[str, tuple[Rows, int]], extractor: Extractor, batch_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield ids and features batch by batch, texts of about the same number of tokens together.

    A text, or the longer one of a pair, is padded to the bucket of its own length, and each bucket has batches of one
    shape, for the reason given in `_image_features`; grouping also spares most of the work that padding to the longest
    would cost.
    """
    sides = (2,) if extractor.pair else ()
    tokens = tf.TensorSpec((None, *sides, None), tf.int32)
    forward = _compiled(extractor, {"token_ids": tokens, "padding_mask": tokens})
    longest = extractor.max_tokens or MOST_TOKENS
    buckets: dict[int, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    contents = zip(unknown, _contents(unknown), strict=True)
    while chunk := list(itertools.islice(contents, ROWS_PER_SHARD)):
        prepared = extractor.prepare(tf.constant([text for _, text in chunk], tf.string))
        for (id_, _), row, mask in zip(
            chunk, prepared["token_ids"].numpy(), prepared["padding_mask"].numpy(), strict=True
        ):
            length = int(mask.sum(axis=-1).max())
            bucket = min(next(size for size in TOKEN_BUCKETS if size >= length), longest)
            buckets.setdefault(bucket, []).append((id_, row[..., :length], mask[..., :length]))
    for bucket, members in sorted(buckets.items()):
        rows = max(1, batch_size * TOKENS_PER_BATCH_ROW // bucket)
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            token_ids = np.zeros((rows + 1, *sides, bucket), np.int32)
            padding_mask = np.zeros_like(token_ids)
            padding_mask[..., 0] = 1  # rows that fill up the batch attend to something, so that they compute no NaN
            for place, (_, own, mask) in enumerate(batch):
                token_ids[place, ..., : own.shape[-1]] = own
                padding_mask[place, ..., : own.shape[-1]] = mask
            features = forward({"token_ids": tf.constant(token_ids), "padding_mask": tf.constant(padding_mask)})
            yield [id_ for id_, _, _ in batch], features.numpy()[: len(batch)]


def _contents(unknown: Mapping[str, tuple[Rows, int]]) -> Iterator[Any]:
    """Yield the contents of `unknown` in order, read from disk a few hundred at a time."""
    places = list(unknown.values())
    start = 0
    while start < len(places):
        split = places[start][0]
        end = start + 1
        while end < min(len(places), start + ROWS_PER_SHARD) and places[end][0] is split:
            end += 1
        yield from split.inputs([row for _, row in places[start:end]])
        start = end


def _compiled(extractor: Extractor, specification: Any) -> Compute:
    """Return the frozen forward pass as one graph; eager calls of a Keras model are several times slower.

    The input is specified, with unknown sizes where they vary: a graph traced anew for a shape would be optimised for
    it, and round otherwise depending on which shape came first.
    """

    def features_of(prepared: Any) -> tf.Tensor:
        with folding.folded_normalization(extractor.model):
            return extractor.model(prepared, training=False)

    return tf.function(features_of, input_signature=[specification], autograph=False)
