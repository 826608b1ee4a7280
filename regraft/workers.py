"""Which of several processes that train one model this one is, read from TF_CONFIG without importing TensorFlow."""

import json
import os
from dataclasses import dataclass

from regraft.errors import SettingsError


@dataclass(frozen=True)
class Worker:
    """A place among the workers.

    Attributes:
        number: 0 is the chief, which alone writes models, reports and checkpoints.
        count: Of all workers; 1 if this process works alone.
    """

    number: int = 0
    count: int = 1


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
        places = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, ())))]
        number = places.index((task["type"], int(task["index"])))
        known = set(cluster) <= {"chief", "worker"}
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise SettingsError(
            'the environment variable TF_CONFIG must be like {"cluster": {"worker": ["host:port", "host:port"]}, '
            '"task": {"type": "worker", "index": 0}}, with no tasks but chief and worker; '
            f"got {said}"
        )
    return Worker(number, len(places))
