"""Let a registered model answer the present test split: `python -m regraft.registry.rescore MODEL PREPARED ANSWERS`.

A process of its own, because the flow must not load TensorFlow, and through MLflow's model format, because the champion
may have been made by an older version of this code: what is compared is what consumers get.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.data import pairs
from regraft.data.records import Split, open_split
from regraft.data.targets import CLASSIFICATION, MULTILABEL, REGRESSION
from regraft.errors import RegistryError
from regraft.registry import tracking
from regraft.registry.promotion import PREDICTED, PROBABILITY, TRUE

BATCH_ROWS = 256


def rescore(model: Path, prepared: Path, answers: Path) -> None:
    """Write `answers`, a CSV file that `promotion.read_answers` reads, one row for each test example in order.

    Args:
        model: A folder in MLflow's model format, as downloaded from the registry.
        prepared: The prepared data.
        answers: File to write.

    Raises:
        RegistryError: If the model takes another kind of input than the data holds.
    """
    tracking.prepare_environment()
    import mlflow.pyfunc
    import pandas as pd

    split = open_split(prepared, "test")
    loaded = mlflow.pyfunc.load_model(str(model))
    columns = loaded.metadata.get_input_schema().input_names()
    if columns != [split.kind] and not (split.kind == "text" and len(columns) == 2):
        raise RegistryError(f"the model takes {', '.join(columns)}, the test data holds {split.kind}s")
    header, cells = _LAYOUTS[split.task](split)
    with answers.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *header])
        for start in range(0, len(split), BATCH_ROWS):
            rows = range(start, min(start + BATCH_ROWS, len(split)))
            contents = split.inputs(rows)
            given = {split.kind: contents} if len(columns) == 1 else pairs.as_columns(columns, contents)
            answered = loaded.predict(pd.DataFrame(given)).to_dict("records")
            for row, answer in zip(rows, answered, strict=True):
                writer.writerow([split.ids[row], *cells(row, answer)])


Layout = tuple[list[str], Callable[[int, dict[str, Any]], list[str]]]


def _classes(split: Split) -> Layout:
    """Return the header, and a function of row number and answer to its cells, for models of classes."""
    return ["label", "predicted"], lambda row, answer: [split.class_names[split.labels[row]], answer["label"]]


def _values(split: Split) -> Layout:
    names = split.class_names
    columns = names if len(names) > 1 else ("value",)
    header = [part + name for name in names for part in (TRUE, PREDICTED)]

    def cells(row: int, answer: dict[str, Any]) -> list[str]:
        pairs = zip(split.labels[row], (answer[column] for column in columns), strict=True)
        return [f"{value:.9g}" for pair in pairs for value in pair]

    return header, cells


def _label_sets(split: Split) -> Layout:
    names = split.class_names
    header = [part + name for name in names for part in (TRUE, PREDICTED, PROBABILITY)]

    def cells(row: int, answer: dict[str, Any]) -> list[str]:
        written: list[str] = []
        for name, true in zip(names, split.labels[row], strict=True):
            written += [f"{true:.0f}", str(int(name in answer["labels"])), f"{answer['probabilities'][name]:.6f}"]
        return written

    return header, cells


_LAYOUTS: dict[str, Callable[[Split], Layout]] = {
    CLASSIFICATION: _classes,
    MULTILABEL: _label_sets,
    REGRESSION: _values,
}


if __name__ == "__main__":
    rescore(*(Path(argument) for argument in sys.argv[1:4]))
