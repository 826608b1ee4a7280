"""Let a registered model answer the present test split: `python -m regraft.registry.rescore MODEL PREPARED ANSWERS`.

A process of its own, because the flow must not load TensorFlow, and through MLflow's model format, because the champion
may have been made by an older version of this code: what is compared is what consumers get.
"""

import csv
import sys
from pathlib import Path

from regraft.data.records import open_split
from regraft.errors import RegistryError
from regraft.registry import tracking

BATCH_ROWS = 256


def rescore(model: Path, prepared: Path, answers: Path) -> None:
    """Write `answers`, a CSV file with the columns id, label and predicted, one row for each test example in order.

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
    if columns != [split.kind]:
        raise RegistryError(f"the model takes {', '.join(columns)}, the test data holds {split.kind}s")
    with answers.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "predicted"])
        for start in range(0, len(split), BATCH_ROWS):
            rows = range(start, min(start + BATCH_ROWS, len(split)))
            predicted = loaded.predict(pd.DataFrame({split.kind: split.inputs(rows)}))["label"]
            for row, label in zip(rows, predicted, strict=True):
                writer.writerow([split.ids[row], split.class_names[split.labels[row]], label])


if __name__ == "__main__":
    rescore(*(Path(argument) for argument in sys.argv[1:4]))
