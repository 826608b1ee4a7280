"""Which devices train, how a batch is dealt out to them, and how precisely they compute.

Written and tested on logical CPU devices and two local processes; not run on a GPU.
"""

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.errors import ResourceError, TrainingError
from regraft.workers import this_worker, wait_for_others

log = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16", "float16"]

# Longest wait of a worker for the others in one step of communication. It has to outlast what one does and the others
# do not: the chief's writing of a checkpoint.
WORKER_TIMEOUT_S = 600.0
WORKER_IS_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


@dataclass(frozen=True)
class Devices:
    """What trains: by default the one device TensorFlow takes by itself, in float32.

    A replica is a copy of the model on a device. Every process is given all of each batch, and each replica takes its
    own rows of it, so the order of the data is that of one device.

    Attributes:
        strategy: A `tf.distribute.Strategy` that mirrors variables across devices; None where there is but one.
        precision: Of the backbone in training steps, see `lower_precision`.
        is_chief: Whether this process writes what training leaves behind; false in all but one worker.
    """

    strategy: Any = None
    precision: Precision = "float32"
    is_chief: bool = True

    @property
    def replicas(self) -> int:
        """Copies of the model that share a batch, over all workers."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy else 1

    def facts(self) -> dict[str, Any]:
        """Return, ready for JSON, what of all this the last digits of results depend on."""
        return {"precision": self.precision, "replicas": self.replicas}

    @property
    def names(self) -> list[str]:
        """What the devices of this process are called."""
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            details = [tf.config.experimental.get_device_details(gpu) for gpu in (gpus if self.strategy else gpus[:1])]
            return [detail.get("device_name", "GPU") for detail in details]
        return list(self.strategy.extended.worker_devices) if self.strategy else ["CPU"]

    @property
    def span_processes(self) -> bool:
        """Whether other workers take part."""
        return isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which models, optimizers and other variables must be made."""
        context: AbstractContextManager[Any] = self.strategy.scope() if self.strategy else nullcontext()
        return context

    def deal(self, values: Any, part: Callable[[Any, int], Any]) -> Any:
        """Return for each replica of this process `part(values, number of the replica)`, cut out by the processor."""

        def cut(context: tf.distribute.experimental.ValueContext) -> Any:
            with tf.device("CPU:0"):
                return part(values, context.replica_id_in_sync_group)

        return self.strategy.experimental_distribute_values_from_function(cut)

    def from_chief(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the chief's `value`, to the bit, in every worker; its shape and type must be the same in all."""
        if not self.span_processes:
            return value
        content = np.ascontiguousarray(value).tobytes()
        words = np.frombuffer(content + b"\0" * (-len(content) % 4), np.int32)
        # The replica that is the chief's first one says what it has, all the others say zero.
        said = self.deal(
            words if self.is_chief else np.zeros_like(words),
            lambda mine, replica: tf.constant(mine if replica == 0 else np.zeros_like(mine)),
        )
        total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, said, axis=None).numpy()
        return np.frombuffer(total.tobytes()[: len(content)], value.dtype).reshape(value.shape)

    def copy_from_chief(self, file: Path) -> None:
        """Make `file`, which may be missing, what it is where the chief runs."""
        if not self.span_processes:
            return
        content = np.frombuffer(file.read_bytes() if file.exists() else b"", np.uint8)
        (length,) = self.from_chief(np.array([len(content)], np.int64))
        if not length:
            file.unlink(missing_ok=True)
            return
        received = self.from_chief(content if self.is_chief else np.zeros(length, np.uint8))
        if not self.is_chief:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(received.tobytes())


ONE_DEVICE = Devices()


def find_devices(precision: Literal["auto"] | Precision = "float32") -> Devices:
    """Return what there is to train on; to be called before TensorFlow's first operation of the process.

    The workers of TF_CONFIG if it is set, else all GPUs if there are several, else one device.

    Raises:
        SettingsError: If TF_CONFIG does not say who the workers are.
        ResourceError: If one of them does not come.
    """
    worker = this_worker()
    gpus = tf.config.list_physical_devices("GPU")
    strategy = None
    if worker.count > 1:
        log.info("worker %d of %d: waiting for the others", worker.number + 1, worker.count)
        wait_for_others(worker, timeout_s=WORKER_TIMEOUT_S)
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=WORKER_TIMEOUT_S)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which TensorFlow has just begun to note down and ignore
    elif len(tf.config.list_logical_devices("GPU")) > 1:
        strategy = tf.distribute.MirroredStrategy()
    if precision == "auto":
        precision = best_precision([_compute_capability(gpu) for gpu in gpus])
    devices = Devices(strategy, precision, is_chief=worker.number == 0)
    if devices.replicas > 1 or devices.precision != "float32":
        log.info("training on %d replica(s), here %s, in %s", devices.replicas, ", ".join(devices.names), precision)
    return devices


def best_precision(capabilities: Iterable[tuple[int, int]]) -> Precision:
    """Return the precision in which GPUs of these compute capabilities, all of them, are fastest; of none, float32.

    Tensor cores compute in float16 from 7.0 on and in bfloat16, which has the range of float32, from 8.0 on.
    """
    lowest = min(capabilities, default=(0, 0))
    if lowest >= (8, 0):
        return "bfloat16"
    return "float16" if lowest >= (7, 0) else "float32"


def _compute_capability(gpu: Any) -> tuple[int, int]:
    """Return it as (major, minor); (0, 0) of a GPU that has none, such as one that is not NVIDIA's."""
    capability: tuple[int, int] = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return capability


@contextmanager
def lower_precision(model: keras.Model, precision: Precision) -> Iterator[None]:
    """Have the backbone inside `model` compute in `precision` for a while: that of operations traced meanwhile.

    The backbone is what lies in models inside the model. Around it pixels are normalised, features pooled, and the head
    and the loss computed, all in float32. Weights stay float32, and a graph traced before or after computes as it did,
    so validation scores what ships: a model in float32, like the probe's features.
    """
    if precision == "float32":
        yield
        return
    inside = {
        id(layer): layer for part in model.layers if isinstance(part, keras.Model) for layer in part._flatten_layers()
    }
    policies = [(layer, layer.dtype_policy) for layer in inside.values()]
    try:
        for layer, _ in policies:
            layer.dtype_policy = f"mixed_{precision}"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


class LocalAdamW(keras.optimizers.AdamW):
    """AdamW for gradients that have been summed over replicas already, as they must be before they are clipped."""

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


def rows_of(part: int, parts: int, total: Any) -> tuple[Any, Any]:
    """Return first row and end of one of `parts` parts, as equal as can be, of `total` rows (a number or a tensor)."""
    return part * total // parts, (part + 1) * total // parts


@contextmanager
def failures_explained(
    devices: Devices, *, batch_size: int, accumulate: int, image_size_px: int | None, remedy: str | None = None
) -> Iterator[None]:
    """Say in words what to do where TensorFlow runs out of memory or loses another worker.

    Args:
        devices: What trains.
        batch_size: `finetune.batch_size`.
        accumulate: `finetune.accumulate`.
        image_size_px: Side of the images; None for texts.
        remedy: What to do if memory ran out; None means what there is to do in fine-tuning.

    Raises:
        TrainingError: In place of TensorFlow's or Python's error, if memory ran out: another attempt would end so too.
        ResourceError: In its place, if another worker is gone.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        size = f", image size {image_size_px} px" if image_size_px else ""
        setting = "embed.image_size_px" if image_size_px else "embed.max_tokens"
        raise TrainingError(
            f"out of memory in training at batch size {batch_size}{size}. "
            + (
                remedy
                or f"Set finetune.accumulate: {2 * accumulate} (the same results with less memory; not for strategy "
                f"contrastive), or a smaller finetune.batch_size or {setting}."
            )
        ) from error
    except WORKER_IS_GONE as error:
        if not devices.span_processes:
            raise
        raise ResourceError(
            f"training stopped because another worker is gone or did not answer for {WORKER_TIMEOUT_S:.0f} s "
            f"({type(error).__name__}). Start all workers again: they go on from the checkpoint."
        ) from error
