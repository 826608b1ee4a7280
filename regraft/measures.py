"""What a model is measured by, for each task: names, which of them lead, and which way is better. Imports nothing."""

from collections.abc import Callable, Mapping
from typing import Any

METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "precision", "recall", "f1"),
    "multilabel": (
        "subset_accuracy", "micro_f1", "macro_f1", "micro_precision", "macro_precision", "micro_recall",
        "macro_recall", "hamming_loss",
    ),
    "regression": ("r2", "pearson", "spearman", "rmse", "mae", "mse"),
}  # fmt: skip
ALL_METRICS = tuple(metric for metrics in METRICS.values() for metric in metrics)
# What the evaluation reports besides, of probabilities that predictions.csv does not hold: no gate decides by them.
BESIDES: Mapping[str, tuple[str, ...]] = {
    "classification": ("balanced_accuracy", "mcc", "top_5_accuracy", "roc_auc", "pr_auc", "log_loss", "brier"),
    "multilabel": ("roc_auc", "pr_auc", "log_loss", "brier"),
    "regression": (),
}
LOWER_IS_BETTER = ("hamming_loss", "rmse", "mae", "mse")
# What decides about promotion unless the settings say otherwise, and what a line about a model says first.
LEADING = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "r2"}
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "multilabel": ("micro_f1", "subset_accuracy"),
    "regression": ("r2", "pearson", "rmse"),
}
# What slices of the test split are compared by. R2 would not do: it hangs on how much the targets of a slice differ.
SLICED = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "rmse"}
# What a list of models has room for.
SHOWN = ("accuracy", "f1", "subset_accuracy", "micro_f1", "r2", "pearson", "rmse")
# What `promote.minimum: auto` asks for; where nothing stands, beating a constant answer is enough.
MINIMUM = {"classification": 0.5}
# What reports/training.json calls the loss and the measure on validation data.
VALIDATION = {
    "classification": ("log_loss", "accuracy"),
    "multilabel": ("log_loss", "micro_f1"),
    "regression": ("squared_error", "r2"),
}
_WORDS = {
    "f1": "F1", "r2": "R2", "pearson": "Pearson r", "spearman": "Spearman rho", "rmse": "RMSE", "mae": "MAE",
    "mse": "MSE", "mcc": "Matthews correlation", "roc_auc": "ROC AUC", "pr_auc": "PR AUC",
    "top_5_accuracy": "top-5 accuracy", "brier": "Brier score",
}  # fmt: skip


def task_of(facts: Mapping[str, Any]) -> str:
    """Return the task that a report names; one written before there were several is about classes."""
    return str(facts.get("task", "classification"))


def words(metric: str) -> str:
    """Return the name of a metric for people: `micro F1` for `micro_f1`."""
    return _WORDS.get(metric, metric.replace("_", " ").replace(" f1", " F1"))


def slice_words(row: Mapping[str, Any], number: Callable[[float], str]) -> str:
    """Return which examples a row of `slices` is about: `length (s): 0.4 to 1.2`, `speaker: ann`."""
    if "is" in row:
        return f"{row['by']}: {row['is'] or '(empty)'}"
    return f"{row['by']}: {number(row['from'])} to {number(row['to'])}"


def headline(task: str, test: Mapping[str, Any], *, interval: float = 0.95) -> str:
    """Return the test numbers that come first, in words: `accuracy 0.9812 (95% interval 0.9723 to 0.9891)`.

    Args:
        task: One of METRICS.
        test: {metric: {"value", "low", "high"}}.
        interval: Coverage of the intervals.
    """
    return ", ".join(
        f"{words(metric)} {test[metric]['value']:.4f} "
        f"({interval:.0%} interval {test[metric]['low']:.4f} to {test[metric]['high']:.4f})"
        for metric in HEADLINES[task]
    )
