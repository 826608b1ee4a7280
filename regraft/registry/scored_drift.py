"""Whether what was scored looks like what the model learned from, and is answered as its test examples were."""

import csv
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data import drift
from regraft.data.records import read_info
from regraft.data.targets import CLASSIFICATION
from regraft.errors import RegistryError
from regraft.paths import Paths
from regraft.registry import promotion, scoring, tracking
from regraft.registry.scoring import Inputs
from regraft.settings import Settings

log = logging.getLogger(__name__)

SAMPLE = 1000  # scored inputs that are measured, evenly spread


def find_drift(
    paths: Paths, settings: Settings, outcome: dict[str, Any], inputs: Inputs, *, out: Path, prepared: Path
) -> list[dict[str, Any]]:
    """Compare scored inputs with the data the model was made from, and its answers with those to its test examples.

    Args:
        paths: The project.
        settings: Its settings.
        outcome: What `scoring.score` returned.
        inputs: What was scored.
        out: Where the answers are.
        prepared: The data that the model was made from.

    Returns:
        Rows as `drift.compare` has them: each input statistic; then for classes how often each is answered and how
        probable answers are, for real values the values of each target. The test split stands for answers as they
        should be, because a model's own errors shift them too.

    Raises:
        RegistryError: If MLflow no longer has the answers to the test examples.
        ResourceError: If it does not answer.
    """
    log.info("comparing inputs with the data that version %d was made from", outcome["version"])
    before = drift.read_version(prepared)
    measured = drift.measure(before.kind, _sample(inputs.givens), are_texts=inputs.are_texts)
    rows = [drift.numeric_drift(name, before.measures[name], measured[name]) for name in measured]
    task = read_info(prepared).task
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        predictions = _predictions(paths, settings, outcome, Path(folder))
        if task == CLASSIFICATION:
            with predictions.open(newline="", encoding="utf-8") as file:
                tested = list(csv.DictReader(file))
            answered = _read(out, ["label", "probability"])
            rows.append(
                drift.label_drift(Counter(row["predicted"] for row in tested), Counter(answered["label"]))
                | {"what": "answers"}
            )
            rows.append(
                drift.numeric_drift(
                    "probability of the answer",
                    np.array([float(row["probability"]) for row in tested]),
                    np.array(answered["probability"], np.float64),
                )
            )
            return rows
        test = promotion.read_answers(predictions)
    names = test.names
    if task == "multilabel":
        answered_sets = _read(out, ["labels"])["labels"]
        given = np.array([len(held) for held in answered_sets], np.float64)
        return [*rows, drift.numeric_drift("number of labels", np.array(test.predicted).sum(axis=1), given)]
    columns = [scoring.column_of(name) for name in names] if len(names) > 1 else ["value"]
    answered = _read(out, columns)
    for place, (name, column) in enumerate(zip(names, columns, strict=True)):
        expected = np.array([row[place] for row in test.predicted])
        rows.append(drift.numeric_drift(f"answered {name}", expected, np.array(answered[column], np.float64)))
    return rows


def _sample(givens: Sequence[str]) -> list[str]:
    places = np.unique(np.linspace(0, len(givens) - 1, SAMPLE).astype(np.int64))
    return [givens[place] for place in places]


def _predictions(paths: Paths, settings: Settings, outcome: dict[str, Any], folder: Path) -> Path:
    """Return the file of answers to test examples that was registered with the version, fetched into `folder`."""
    client, uri = tracking.connect(paths, settings), tracking.tracking_uri(paths, settings)
    name, number = outcome["model"], outcome["version"]
    with tracking.plain_errors(uri, f"reading what {name} version {number} answered in its test"):
        run_id = client.get_model_version(name, str(number)).run_id
        if not run_id:
            raise RegistryError(f"{name} version {number} belongs to no MLflow run, so its test answers are not known.")
        return Path(client.download_artifacts(run_id, "reports/predictions.csv", str(folder)))


def _read(out: Path, columns: list[str]) -> dict[str, list[Any]]:
    """Return these columns of all inputs that were answered."""
    import pyarrow.dataset

    answered = pyarrow.dataset.dataset(sorted(map(str, out.glob("part-*.parquet"))))
    table = answered.to_table(columns=columns, filter=pyarrow.dataset.field("error").is_null())
    held: dict[str, list[Any]] = table.to_pydict()
    return held
