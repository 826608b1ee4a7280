"""A registered model's network in another format, with the proof that it answers the same, and its speed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, r2_score
from tensorflow.lite.python.convert_phase import ConverterError

from regraft.data.records import Split, open_split
from regraft.data.targets import CLASSIFICATION, MULTILABEL
from regraft.errors import RegistryError
from regraft.files import write_json
from regraft.measures import LEADING
from regraft.registry.formats import Answer, Format, Prepared, network_of, quiet
from regraft.registry.serving import PIXELS

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 8, 32)
CHUNK = 32
REPRESENTATIVES = 128  # training examples that the range of integers is read off
ROUNDS, ROUND_S = 5, 0.4
FACTS = "export.json"
# What converters raise over a network that they cannot hold.
_CONVERTERS_RAISE = (ConverterError, tf.errors.OpError, RuntimeError, ValueError, KeyError)


def export(
    loaded: Any,
    wanted: Format,
    folder: Path,
    *,
    prepared: Path,
    labels: Sequence[str],
    task: str,
    examples: int,
    tolerance: float,
) -> dict[str, Any]:
    """Write the network of `loaded` as `wanted` into `folder`, and beside it export.json: what it takes, and the proof.

    Args:
        loaded: The SavedModel of a registered version.
        wanted: The format.
        folder: An empty folder.
        prepared: The data that the version was made from: its training split tells a quantising format the range of
            activations, its test split proves.
        labels: Names of the outputs.
        task: "classification", "multilabel" or "regression".
        examples: At most so many test examples.
        tolerance: The measure (accuracy, micro F1, R2) on them may fall by so much.

    Returns:
        The content of export.json.

    Raises:
        RegistryError: If the version was exported before networks were; if the format cannot hold this network; or if
            the measure falls by more than `tolerance`.
    """
    if not hasattr(loaded, "answer"):
        raise RegistryError(
            "this version was registered by an earlier version of this program, without its network apart from the "
            "decoding of files. Run `regraft run` and export the version that it registers."
        )
    train, test = open_split(prepared, "train"), open_split(prepared, "test")
    chosen = np.linspace(0, len(train) - 1, min(REPRESENTATIVES, len(train))).astype(int)
    file = folder / wanted.file
    log.info("writing %s", wanted.file)
    known = _prepare(loaded, train, chosen.tolist())
    try:
        with quiet():
            wanted.write(loaded, file, known)
    except _CONVERTERS_RAISE as error:
        raise RegistryError(
            f"this network cannot be written as {wanted.name}: {type(error).__name__}: {str(error)[:300]}. "
            "Try another format."
        ) from error
    with quiet():
        answer = wanted.load(file)
    rows = np.linspace(0, len(test) - 1, min(examples, len(test))).astype(int).tolist()
    log.info("answering %d test examples with both", len(rows))
    registered = _registered(loaded)
    before, after = _answers(loaded, (registered, answer), test, rows)
    if not np.isfinite(after).all():
        raise RegistryError(f"as {wanted.name} the model answers what is no number. Try another format.")
    measures = [_measure(task, np.asarray(test.labels)[rows], answers) for answers in (before, after)]
    facts: dict[str, Any] = {
        "format": wanted.name,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "inputs": _inputs_in_words(loaded),
        "labels": list(labels),
        "task": task,
        "proof": {
            "test_examples": len(rows),
            "largest_difference": float(np.abs(after - before).max()),
            **_agreement(task, before, after),
            "measure": LEADING[task],
            "registered": measures[0],
            "exported": measures[1],
        },
    }
    if not measures[1] >= measures[0] - tolerance:  # true for NaN as well
        raise RegistryError(
            f"as {wanted.name} the model's {LEADING[task]} on {len(rows)} test examples is {measures[1]:.4f}, and it "
            f"was {measures[0]:.4f}: more is lost than --tolerance {tolerance:g} allows. Nothing was written."
        )
    log.info("measuring speed")
    facts["speed"] = _speed(registered, answer, _prepare(loaded, test, rows[:CHUNK]))
    write_json(folder / FACTS, facts)
    return facts


def _prepare(loaded: Any, split: Split, rows: Sequence[int]) -> Prepared:
    """Return the examples in `rows` as the network takes them."""
    prepared = loaded.prepare(tf.constant(split.inputs(rows)))
    named = prepared if isinstance(prepared, Mapping) else {PIXELS: prepared}
    return {name: tensor.numpy() for name, tensor in named.items()}


def _answers(loaded: Any, networks: Sequence[Answer], test: Split, rows: Sequence[int]) -> list[NDArray[np.float32]]:
    """Return what each of `networks` answers to `rows`."""
    answers: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    for start in range(0, len(rows), CHUNK):
        prepared = _prepare(loaded, test, rows[start : start + CHUNK])
        for network, answered in zip(networks, answers, strict=True):
            answered.append(network(prepared))
    return [np.concatenate(answered) for answered in answers]


def _registered(loaded: Any) -> Answer:
    """Return the function that answers with the registered network."""
    network = network_of(loaded)
    return lambda prepared: np.asarray(
        next(iter(network(**{name: tf.constant(values) for name, values in prepared.items()}).values()))
    )


def _measure(task: str, labels: NDArray[Any], answers: NDArray[np.float32]) -> float:
    """Return accuracy, micro F1 or R2, as `measures.LEADING` has it."""
    if task == CLASSIFICATION:
        return float(accuracy_score(labels, answers.argmax(1)))
    if task == MULTILABEL:
        return float(f1_score(labels, answers >= 0.5, average="micro", zero_division=0.0))
    return float(r2_score(labels, answers))


def _agreement(task: str, before: NDArray[np.float32], after: NDArray[np.float32]) -> dict[str, float]:
    """Return which share of answers is the same, where answers are classes or labels."""
    if task == CLASSIFICATION:
        return {"same_answers": float((before.argmax(1) == after.argmax(1)).mean())}
    if task == MULTILABEL:
        return {"same_answers": float(((before >= 0.5) == (after >= 0.5)).all(axis=1).mean())}
    return {}


def _inputs_in_words(loaded: Any) -> dict[str, str]:
    said = {
        PIXELS: "RGB in [0, 255], resized to this size (bilinear, antialiased)",
        "token_ids": "of the tokens of each text",
        "padding_mask": "1 where a token is real, 0 after the end",
    }
    shown = {}
    for name, tensor in network_of(loaded).structured_input_signature[1].items():
        shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
        shown[name] = f"{tensor.dtype.name} ({shape}): {said[name]}; `prepare` of the registered SavedModel makes it"
    return shown


def _speed(registered: Answer, exported: Answer, inputs: Prepared) -> dict[str, Any]:
    """Time both on the same inputs in turns, so that a machine that slows down slows down both."""
    networks = {"registered": registered, "exported": exported}
    by_size: dict[str, Any] = {}
    for size in BATCH_SIZES:
        batch = {name: np.resize(values, (size, *values.shape[1:])) for name, values in inputs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(ROUNDS):
            for name, network in networks.items():
                seconds[name].append(_seconds_a_call(network, batch))
        medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
        by_size[str(size)] = {
            **{f"{name}_ms": round(1000.0 * median, 3) for name, median in medians.items()},
            "speed_up": round(medians["registered"] / medians["exported"], 2),
        }

    def best(name: str) -> float:
        return max(int(size) / facts[f"{name}_ms"] for size, facts in by_size.items())

    return {"batch_sizes": by_size, "throughput_speed_up": round(best("exported") / best("registered"), 2)}


def _seconds_a_call(network: Callable[[Prepared], Any], batch: Prepared) -> float:
    network(batch)
    calls, began = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - began < ROUND_S / len(BATCH_SIZES):
        network(batch)
        calls += 1
    return (time.perf_counter() - began) / calls
