"""The curve of a pretraining, as a picture."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAINING, HELD_OUT, TARGET = "#5f6872", "#2b6cb0", "#b7791f"


def draw_curve(facts: Mapping[str, Any]) -> bytes:
    """Draw the training and the held-out loss by epoch; PNG, the same bytes each time.

    By step, if looks at the project's own examples judged it: with the probe's loss on these, the look that was kept,
    and why it ended.

    Args:
        facts: The content of reports/pretraining.json.
    """
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    before = facts["held_out_loss"]["before"]
    if "looks" in facts:
        rows = facts["looks"][1:]
        numbers, held_out = [row["step"] for row in rows], [row["held_out_loss"] for row in rows]
        axes.set_xlabel("step")
    else:
        rows = facts["epochs"]
        numbers, held_out = [row["epoch"] for row in rows], [row["validation_log_loss"] for row in rows]
        axes.set_xlabel("epoch")
    axes.plot(numbers, [row["train_loss"] for row in rows], color=TRAINING, marker="o", ms=3, label="training")
    axes.plot([0, *numbers], [before, *held_out], color=HELD_OUT, marker="o", ms=3, label="held out")
    axes.set_ylabel(facts["loss_name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if "looks" in facts:
        _draw_looks(axes, facts)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def _draw_looks(axes: Any, facts: Mapping[str, Any]) -> None:
    """Add the loss of the probe on the project's examples, on an axis of its own."""
    steps = [row["step"] for row in facts["looks"]]
    losses = [row["target"]["loss"] for row in facts["looks"]]
    other = axes.twinx()
    other.plot(steps, losses, color=TARGET, marker="s", ms=3)
    other.axvline(steps[facts["best_look"]], color=TARGET, lw=0.8, ls=":")
    other.set_ylabel(f"probe on the target: {facts['target_loss_name']}", color=TARGET)
    other.spines[["top"]].set_visible(False)
    axes.set_title(f"look {facts['best_look']} is kept; {facts['stopped']}", fontsize=8)
