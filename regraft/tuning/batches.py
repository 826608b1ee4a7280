"""Rows of a split become batches of tensors: the same ones, in the same order, for the same seed and epoch."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.tuning.augment import Augment

Rows = NDArray[np.int64]
Batch = tuple[Any, tf.Tensor]  # inputs as a model takes them, and labels

# Texts are sorted by length within runs of this many batches: batches of like lengths waste little on padding,
# while which texts meet in a run is still random.
BATCHES_SORTED_TOGETHER = 16
KEPT_BYTES = 2**29  # of prepared images, kept in memory by all batches of a source
BATCHES_AHEAD = 2
READ_AT_ONCE = 8  # images or recordings, which can be long


class Source(Protocol):
    """What is read: a split of prepared data (`regraft.data.records.Split`) or anything that answers alike."""

    @property
    def kind(self) -> str: ...

    @property
    def labels(self) -> NDArray[Any]: ...

    def inputs(self, indices: Sequence[int]) -> list[Any]: ...


@dataclass(frozen=True)
class Batches:
    """Makes batches of some rows of a split, ready for a model.

    Attributes:
        source: Encoded images, recordings or texts, and their labels.
        rows: The rows to use, int64, shape (N,).
        prepare: `Extractor.prepare`: one encoded image or recording, or a batch of texts, to what the model takes.
        batch_size: Rows in a batch; the last one of an evaluation may be smaller.
        seed: Decides order and augmentation, together with the epoch.
        augment: Maps (images, seeds of shape (B, 2)) to images in training batches; None leaves them alone.
        lengths: Length of every row of `source` (for texts: characters), to batch like with like; None mixes freely.
        in_pairs: Whether training batches are made of pairs of rows of one class, see `paired_order`.
        vary_batch: Maps (inputs, labels, seed of shape (2,)) of a training batch to other ones; None leaves them alone.
    """

    source: Source
    rows: Rows
    prepare: Callable[[tf.Tensor], Any]
    batch_size: int
    seed: int
    augment: Augment | None = None
    lengths: Rows | None = None
    in_pairs: bool = False
    vary_batch: Callable[[Any, tf.Tensor, tf.Tensor], tuple[Any, tf.Tensor]] | None = None
    _pictures: "_Pictures | None" = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # `replace` hands on what the original has, so that all batches of a source share the images they prepared.
        if self.source.kind == "text":
            return
        if self._pictures is None or not self._pictures.are_of(self.source, self.prepare, self.augment):
            object.__setattr__(self, "_pictures", _Pictures(self.source, self.prepare, self.augment))

    def of(self, rows: Rows) -> "Batches":
        """Return the same for other rows of the same source."""
        return replace(self, rows=rows)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return steps_in_epoch(len(self.rows), self.batch_size)

    def training(self, epoch: int, taken: int = 0) -> Iterator[Batch]:
        """Yield shuffled, augmented batches (inputs, labels) of `epoch`, which counts from 1.

        They are `steps_per_epoch`, or the rest of them after the first `taken`.
        """
        return _made_ahead(self._training(epoch, taken))

    def training_steps(self, steps: int, taken: int = 0) -> Iterator[Batch]:
        """Yield `steps` batches as one training run meets them, those of epoch 1, then of epoch 2, and so on.

        Without the first `taken`.
        """
        epoch, within = divmod(taken, self.steps_per_epoch)

        def of_all_epochs() -> Iterator[Batch]:
            yield from self._training(epoch + 1, within)
            for later in itertools.count(epoch + 2):
                yield from self._training(later, 0)

        return _made_ahead(itertools.islice(of_all_epochs(), steps - taken))

    def in_order(self) -> Iterator[Batch]:
        """Yield batches (inputs, labels) of all rows, in the order of `rows`, not augmented."""
        return _made_ahead((inputs, labels) for inputs, labels, _ in self._prepared(self.rows))

    def _training(self, epoch: int, taken: int) -> Iterator[Batch]:
        if self.in_pairs:
            order = paired_order(self.rows, self.source.labels, self.batch_size, seed=self.seed, epoch=epoch)
        else:
            order = epoch_order(self.rows, self.batch_size, seed=self.seed, epoch=epoch, lengths=self.lengths)
        run = tf.constant([self.seed, epoch], tf.int64)
        vary = self._pictures.vary if self._pictures else None
        for number, (made, labels, rows) in enumerate(self._prepared(order[taken * self.batch_size :]), taken):
            inputs = vary(made, rows, run) if vary else made
            if self.vary_batch is None:
                yield inputs, labels
            else:
                # Numbers of rows, which are not negative, are for `augment`.
                yield self.vary_batch(inputs, labels, tf.random.experimental.stateless_fold_in(run, -1 - number))

    def _prepared(self, order: Rows) -> Iterator[tuple[Any, tf.Tensor, Rows]]:
        """Yield inputs, labels and rows of batch after batch."""
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            if self._pictures:
                inputs = tf.constant(self._pictures.of(rows))
            else:
                inputs = self.prepare(tf.constant(self.source.inputs(rows.tolist()), tf.string))
            yield inputs, tf.constant(self.source.labels[rows]), rows


def _made_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield `batches`, made by a thread while those before them are used.

    TensorFlow leaves Python's lock alone while it computes a step, and a thread costs less than a `tf.data` pipeline
    around Python code, whose every batch came 12 ms late: `python -m benchmarks.input_wait`.
    """
    end = object()

    def make() -> Any:
        with tf.device("CPU:0"):
            return next(batches, end)

    with ThreadPoolExecutor(1, "batches") as thread:
        ahead = deque(thread.submit(make) for _ in range(BATCHES_AHEAD))
        try:
            while (batch := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(make))
                yield batch
        finally:
            for future in ahead:
                future.cancel()


class _Pictures:
    """Images or recordings of a source as pictures for a model: prepared once, as far as there is room to keep them.

    Preparing and varying are one graph each for all epochs: tracing them anew would keep each of them waiting.

    Args:
        source: Of which rows are asked for.
        prepare: See `Batches`.
        augment: See `Batches`.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[tf.Tensor], tf.Tensor],
        augment: Augment | None,
    ) -> None:
        self._source, self._made_by = source, (prepare, augment)
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._room_bytes = KEPT_BYTES

        def prepare_all(contents: tf.Tensor) -> tf.Tensor:
            with tf.device("CPU:0"):  # as in a `Dataset.map`
                return tf.map_fn(prepare, contents, fn_output_signature=tf.float32)

        self._prepare = tf.function(prepare_all, input_signature=[tf.TensorSpec((None,), tf.string)])
        shape = self._prepare.get_concrete_function().output_shapes[1:]
        self.vary = _traced(augment, shape) if augment else None

    def are_of(self, source: Source, *made_by: Any) -> bool:
        """Return whether they are those of `source`, prepared and varied by these very functions."""
        return self._source is source and self._made_by == made_by

    def of(self, rows: Rows) -> NDArray[np.float32]:
        """Return the prepared pictures of `rows`, float32, in their order."""
        missing = [row for row in rows.tolist() if row not in self._kept]
        fresh: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(missing), READ_AT_ONCE):
            some = missing[start : start + READ_AT_ONCE]
            fresh.update(zip(some, self._prepare(self._source.inputs(some)).numpy(), strict=True))
        pictures = np.stack([fresh[row] if row in fresh else self._kept[row] for row in rows.tolist()])
        for row, picture in fresh.items():
            if picture.nbytes <= self._room_bytes:
                self._kept[row] = picture.copy()  # a view would hold on to all that were prepared with it
                self._room_bytes -= picture.nbytes
        return pictures


def _traced(augment: Augment, shape: tf.TensorShape) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return the function (pictures, their rows, [seed, epoch]) -> what `augment` makes of them, as one graph."""

    def vary(pictures: tf.Tensor, rows: tf.Tensor, run: tf.Tensor) -> tf.Tensor:
        seeds = tf.map_fn(lambda row: tf.random.experimental.stateless_fold_in(run, row), rows)
        return augment(pictures, seeds)

    numbers = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((2,), tf.int64)]
    graph: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] = tf.function(
        vary, input_signature=[tf.TensorSpec((None, *shape), tf.float32), *numbers]
    )
    return graph


def steps_in_epoch(examples: int, batch_size: int) -> int:
    """Return the optimizer steps in an epoch: the rows that fill no whole batch wait for another epoch's order."""
    return max(1, examples // batch_size)


def epoch_order(rows: Rows, batch_size: int, *, seed: int, epoch: int, lengths: Rows | None = None) -> Rows:
    """Return the rows of one training epoch in order: a permutation of `rows`, cut to whole batches.

    A pure function of its arguments, so a run that was interrupted continues with the batches it would have seen.

    Args:
        rows: Shape (N,).
        batch_size: With fewer rows than this, all of them make the only batch.
        seed: Of the run.
        epoch: Counts from 1.
        lengths: Length of every row of the source (indexed by row number); rows of like length then share a batch.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(rows)
    if len(order) >= batch_size:
        order = order[: len(order) // batch_size * batch_size]
    if lengths is None or len(order) < batch_size:
        return order
    run = batch_size * BATCHES_SORTED_TOGETHER
    parts = [order[start : start + run] for start in range(0, len(order), run)]
    in_runs = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = in_runs.reshape(-1, batch_size)
    return batches[generator.permutation(len(batches))].reshape(-1)


def paired_order(rows: Rows, labels: NDArray[Any], batch_size: int, *, seed: int, epoch: int) -> Rows:
    """Return the rows of one training epoch so that rows 0 and 1, 2 and 3, ... are of one class, cut to whole batches.

    A class with an odd number of rows meets one of them twice. A pure function of its arguments, like `epoch_order`.

    Args:
        rows: Shape (N,).
        labels: The class of every row of the source (indexed by row number).
        batch_size: With fewer rows than this, all of them make the only batch.
        seed: Of the run.
        epoch: Counts from 1.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(rows)
    of_class = [shuffled[labels[shuffled] == label] for label in np.unique(labels[rows])]
    pairs = np.concatenate([np.append(held, held[: len(held) % 2]).reshape(-1, 2) for held in of_class])
    order = pairs[generator.permutation(len(pairs))].reshape(-1)
    return order[: max(1, len(rows) // batch_size) * batch_size]


def text_lengths(source: Source, *, rows_at_once: int = 1024) -> Rows:
    """Return the length in characters of every text of `source`, int64, shape (N,)."""
    total = len(source.labels)
    lengths = np.empty(total, np.int64)
    for start in range(0, total, rows_at_once):
        rows = range(start, min(start + rows_at_once, total))
        lengths[rows.start : rows.stop] = [len(text) for text in source.inputs(rows)]
    return lengths
