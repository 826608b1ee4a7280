"""Short runs that find the learning rate, and the better of several ways to fine-tune."""

from dataclasses import dataclass

from regraft.errors import TrainingError
from regraft.tuning.recipes import RATES


@dataclass(frozen=True)
class Pilot:
    """A short run at one rate, annealed to zero like the real one, and how it judged.

    Attributes:
        rate: Peak learning rate.
        log_loss: What decides: the mean of the losses of each kind of held-out data; None if training diverged.
        validation_log_loss: On the validation split; None if training diverged.
        held_out_log_loss: On training examples kept out of the pilot; None if the validation split is large enough
            alone.
    """

    rate: float
    log_loss: float | None
    validation_log_loss: float | None
    held_out_log_loss: float | None


def choose_rate(pilots: list[Pilot]) -> float:
    """Return the rate with the lowest log loss; the lower rate of two equal ones.

    Raises:
        TrainingError: If every pilot diverged.
    """
    finished = [(pilot.log_loss, pilot.rate) for pilot in pilots if pilot.log_loss is not None]
    if not finished:
        tried = ", ".join(f"{pilot.rate:g}" for pilot in pilots)
        raise TrainingError(
            f"the loss stopped being a number at every learning rate that was tried ({tried}). "
            "Check the data for examples that are not what they should be, or set finetune.strategy: probe."
        )
    return min(finished)[1]


def next_rate(pilots: list[Pilot], rates: tuple[float, ...] = RATES) -> float | None:
    """Return the rate to try next, walking downhill from the middle one; None when both neighbours are worse.

    The loss is taken to have one valley over the rates, so three or four pilots find its bottom among five rates.
    """
    if not pilots:
        return rates[len(rates) // 2]
    losses = {pilot.rate: float("inf") if pilot.log_loss is None else pilot.log_loss for pilot in pilots}
    best = rates.index(min(losses, key=lambda rate: (losses[rate], rate)))
    for neighbour in (best + 1, best - 1):
        if 0 <= neighbour < len(rates) and rates[neighbour] not in losses:
            return rates[neighbour]
    return None
