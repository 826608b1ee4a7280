"""The curve of a pretraining, as a picture."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw_curve(epochs: Sequence[dict[str, Any]], *, loss_name: str, before: float) -> bytes:
    """Draw the training and the held-out loss by epoch; PNG, the same bytes each time.

    Args:
        epochs: Rows as `loop.Epoch` has them.
        loss_name: What the loss is called.
        before: The held-out loss of the network at its start.
    """
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    numbers = [row["epoch"] for row in epochs]
    axes.plot(numbers, [row["train_loss"] for row in epochs], color="#5f6872", marker="o", ms=3, label="training")
    held_out = [before, *(row["validation_log_loss"] for row in epochs)]
    axes.plot([0, *numbers], held_out, color="#2b6cb0", marker="o", ms=3, label="held out")
    axes.set_xlabel("epoch")
    axes.set_ylabel(loss_name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
