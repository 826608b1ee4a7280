"""Small real models, the reports of their stages, and a real MLflow server on the loopback interface."""

import csv
import dataclasses
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from regraft.data.records import Example
from regraft.errors import ResourceError
from regraft.files import write_json, write_text
from regraft.paths import Paths
from regraft.registry import tracking
from regraft.settings import Settings

COLOURS = ("blue", "green", "red")
LINEAGE = {"regraft.code_commit": "c0ffee", "regraft.data_md5": "0123456789abcdef0123456789abcdef.dir"}


@dataclasses.dataclass(frozen=True)
class Project:
    """A project whose stages have run, and the fingerprint of what they made."""

    paths: Paths
    settings: Settings
    fingerprint: str

    def named(self, name: str) -> "Project":
        return dataclasses.replace(self, settings=self.settings.model_copy(update={"name": name}))


def picture(colour: str, shade: int, form: str = "PNG") -> bytes:
    """Return an 8x8 image of one colour, as a file."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., ("red", "green", "blue").index(colour)] = shade
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


class ColourModel(tf.Module):
    """Names the strongest colour of an encoded image; `order` says which channel stands for which class."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = tf.constant(order)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        def mean(encoded: tf.Tensor) -> tf.Tensor:
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(pixels, tf.float32), axis=(0, 1))

        means = tf.map_fn(mean, image, fn_output_signature=tf.TensorSpec((3,), tf.float32))
        return {"probabilities": tf.nn.softmax(tf.gather(means, self.order, axis=1) / 50.0)}


class LengthModel(tf.Module):
    """Calls a text of at least 10 bytes long, another one short."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.cast(tf.strings.length(text), tf.float32)
        return {"probabilities": tf.nn.softmax(tf.stack([length, 19.0 - length], axis=1))}


RIGHT = (2, 1, 0)  # classes are blue, green, red; channels are red, green, blue
ALWAYS_WRONG = (0, 2, 1)
NEVER_RED = (2, 1, 1)  # for a red image all three scores are 0, and the first class wins


def write_reports(
    paths: Paths, kind: str, examples: Sequence[Example], predicted: Sequence[str], probability: np.ndarray
) -> None:
    """Write what the stages report, with one real number: the accuracy."""
    accuracy = float(np.mean([example.label == guess for example, guess in zip(examples, predicted, strict=True)]))
    numbers = {"value": accuracy, "low": accuracy, "high": accuracy}
    test = dict.fromkeys(("accuracy", "precision", "recall", "f1"), numbers)
    labels = sorted({example.label for example in examples})
    write_json(paths.reports / "metrics.json", {"test": test, "probe": {"test": test}, "shipped": "lp_ft"})
    write_text(paths.model_card, "# A small model\n")
    epochs = [{"epoch": n, "train_loss": 1.0 / n, "validation": {"log_loss": 0.5 / n}} for n in (1, 2, 3)]
    write_json(paths.reports / "training.json", {"history": epochs})
    write_json(paths.reports / "data.json", {"kind": kind, "labels": labels, "examples": {"test": len(examples)}})
    write_json(paths.reports / "download.json", {"digest": hashlib.sha256(b"colours").hexdigest()})
    write_json(paths.reports / "backbone.json", {"weights_sha256": "ab" * 32})
    with (paths.reports / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "label", "predicted", "probability"])
        for example, guess, value in zip(examples, predicted, probability, strict=True):
            writer.writerow([example.id, example.name, example.label, guess, f"{value:.6f}"])


class Server:
    """A real `mlflow server` process that keeps everything in one folder, so it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "files")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                tracking.check_reachable(self.uri)
            except ResourceError:
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"the MLflow server did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill the server and its workers, as a machine that loses power would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
