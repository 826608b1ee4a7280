"""Latency of single requests to `mlflow models serve` beside a compiled call of the same network on decoded input.

python -m benchmarks.serving PROJECT [--requests 200]

PROJECT is one that has run. Its champion is served on this machine by MLflow, with one worker, and asked about examples
of the test split, one a request, over one kept connection of `requests`; in turns with that, the exported network
answers the same example in this process, decoded (or tokenized) before, by `tf.function`. Where the rest of a
request goes is told by its parts, timed in this process: the exported model on raw input, the model as MLflow loads it.
"""

import argparse
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests

from regraft.data.records import open_split
from regraft.paths import Paths
from regraft.registry import tracking
from regraft.registry.predict import open_model
from regraft.registry.serving import load_served
from regraft.settings import load_settings

WARM_UP = 10
START_S = 180.0


def main() -> None:
    """Print the median and the 99th percentile of each, in milliseconds, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    paths = Paths(options.project.resolve())
    settings = load_settings(paths.params)
    test = open_split(paths.prepared, "test")
    with open_model(paths, settings, settings.name) as opened, _served(paths) as url, requests.Session() as session:
        ways = _Ways(paths, opened, session, url)
        taken: dict[str, list[float]] = {}
        for number in range(WARM_UP + options.requests):
            content = test.inputs([number % len(test)])[0]
            for name, call in ways.of(content).items():
                started = time.perf_counter()
                call()
                if number >= WARM_UP:
                    taken.setdefault(name, []).append(1000 * (time.perf_counter() - started))
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    for name, times in taken.items():
        print(f"{name}: p50 {medians[name]:.1f} ms, p99 {np.percentile(times, 99):.1f} ms")
    compiled, *_, request = medians.values()
    print(f"a request takes {request / compiled:.2f} times the compiled call (median of {options.requests})")


class _Ways:
    """The ways to the same answer, from the network alone to the whole request."""

    def __init__(self, paths: Paths, opened: Any, session: requests.Session, url: str) -> None:
        self._served = load_served(paths.serving)
        self._opened, self._session, self._url = opened, session, url

    def of(self, content: bytes | str) -> dict[str, Callable[[], Any]]:
        """Return what to time for one example; all that a client has at hand is made before."""
        import tensorflow as tf

        loaded = self._served.loaded
        raw = tf.constant([content], tf.string)
        prepared = loaded.prepare(raw)
        if self._served.kind != "text":
            prepared = {"pixels": prepared}
        cell = content if isinstance(content, str) else base64.b64encode(content).decode()
        columns = list(self._opened.columns)
        cells = cell.split(" ||| ", 1) if len(columns) == 2 else [cell]
        body = {"dataframe_split": {"columns": columns, "data": [cells]}}
        given = content if len(columns) == 1 else dict(zip(columns, cells, strict=True))
        return {
            "compiled network on decoded input": lambda: _numpy(loaded.answer(**prepared)),
            "exported model on raw input": lambda: _numpy(loaded.serve(raw)),
            "model as MLflow loads it": lambda: self._opened.answer([given]),
            "request": lambda: self._ask(body),
        }

    def _ask(self, body: dict[str, Any]) -> Any:
        answer = self._session.post(self._url, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


def _numpy(reply: dict[str, Any]) -> list[Any]:
    return [tensor.numpy() for tensor in reply.values()]


@contextmanager
def _served(paths: Paths) -> Iterator[str]:
    """Serve the project's champion; give the address to ask."""
    settings = load_settings(paths.params)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{settings.name}@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    uri = tracking.tracking_uri(paths, settings)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            command, cwd=paths.root, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_S
            while not _answers(f"http://127.0.0.1:{port}/ping"):
                if server.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    sys.exit(f"the server did not start:\n{output.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


if __name__ == "__main__":
    main()
