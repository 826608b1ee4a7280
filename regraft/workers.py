"""Which of several processes that train one model this one is, read from TF_CONFIG without importing TensorFlow."""

import json
import os
import socket
import time
from dataclasses import dataclass

from regraft.errors import ResourceError, SettingsError


@dataclass(frozen=True)
class Worker:
    """A place among the workers.

    Attributes:
        number: 0 is the chief, which alone writes models, reports and checkpoints.
        addresses: Of all workers, as "host:port"; none if this process works alone.
    """

    number: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return max(1, len(self.addresses))


def this_worker() -> Worker:
    """Return which worker the environment variable TF_CONFIG says this process is; without it, it works alone.

    TF_CONFIG is TensorFlow's: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. The
    first worker is the chief, unless the cluster names one: {"chief": ["host:port"], "worker": ...}.

    Raises:
        SettingsError: If it does not have that form.
    """
    said = os.environ.get("TF_CONFIG")
    if not said:
        return Worker()
    try:
        config = json.loads(said)
        cluster, task = config["cluster"], config["task"]
        places = {(kind, index): at for kind in ("chief", "worker") for index, at in enumerate(cluster.get(kind, ()))}
        number = list(places).index((task["type"], int(task["index"])))
        addresses = tuple(places.values())
        known = set(cluster) <= {"chief", "worker"} and all(at.rpartition(":")[2].isdecimal() for at in addresses)
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise SettingsError(
            'the environment variable TF_CONFIG must be like {"cluster": {"worker": ["host:port", "host:port"]}, '
            '"task": {"type": "worker", "index": 0}}, with no tasks but chief and worker, or unset to train alone; '
            f"got {said}"
        )
    return Worker(number, addresses)


def wait_for_others(worker: Worker, *, timeout_s: float) -> None:
    """Return as soon as all other workers have begun to listen at their addresses, as this one does meanwhile.

    TensorFlow would wait for them for ever, and deaf to signals.

    Raises:
        ResourceError: If one does not within `timeout_s`, or this worker's own port is taken.
    """
    missing = [address for number, address in enumerate(worker.addresses) if number != worker.number]
    deadline = time.monotonic() + timeout_s
    own = worker.addresses[worker.number]
    try:
        listener = socket.create_server(("", int(own.rpartition(":")[2])))
    except OSError as error:
        raise ResourceError(
            f"this worker cannot listen at {own}, which TF_CONFIG gives it: {error.strerror}."
        ) from None
    with listener:
        while missing:
            host, _, port = missing[0].rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=5.0).close()
                missing.pop(0)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ResourceError(
                        f"no worker has answered at {missing[0]} for {timeout_s:.0f} s ({error}). Start all workers "
                        "that TF_CONFIG names, with the same list in the same order."
                    ) from None
                time.sleep(0.2)
