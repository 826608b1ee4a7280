"""The probe or the fine-tuned model: judged on the same validation examples."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from regraft.tuning.objective import CLASSES, Objective


@dataclass(frozen=True)
class Verdict:
    """The probe against the fine-tuned model on the same validation examples.

    Attributes:
        probe_log_loss: As `scores.Score.refined_log_loss`.
        tuned_log_loss: As `scores.Score.refined_log_loss`.
        gained: Examples that the fine-tuned model answers better, see `Objective.gained_and_lost`.
        lost: Examples that the probe answers better.
        examples: How many were compared.
        prefers_tuned: Whether the fine-tuned model ships.
        difference_low: Lower end of the interval of the mean difference of losses, tuned minus probe.
        difference_high: Its upper end.
    """

    probe_log_loss: float
    tuned_log_loss: float
    gained: int
    lost: int
    examples: int
    prefers_tuned: bool
    difference_low: float
    difference_high: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves no doubt which of the two has the lower loss."""
        return self.difference_high < 0.0 or self.difference_low > 0.0

    def sentence(self, best_epoch: int, objective: Objective = CLASSES) -> str:
        """Return the decision and its reasons in words."""
        losses = (
            f"refined validation {objective.loss_name} {self.tuned_log_loss:.4f} against the probe's "
            f"{self.probe_log_loss:.4f} (95% interval of the difference {self.difference_low:.4f} to "
            f"{self.difference_high:.4f})"
        )
        answers = objective.gains.format(gained=self.gained, lost=self.lost, examples=self.examples)
        if self.prefers_tuned:
            decision = "The fine-tuned model ships"
        else:
            decision = "The probe ships, validation does not prefer the fine-tuned model"
        return f"{decision} (epoch {best_epoch}): {losses}, {answers}."


def compare(
    probe_logits: NDArray[np.floating],
    tuned_logits: NDArray[np.floating],
    labels: NDArray[Any],
    objective: Objective = CLASSES,
    *,
    surely: bool = False,
    confidence: float = 0.95,
) -> Verdict:
    """Judge the fine-tuned model against the probe on examples that trained neither.

    The fine-tuned model is preferred if its loss is lower and it does not lose more answers than chance explains:
    with g answers gained and l lost, at most sqrt(g + l) more lost than gained (one standard error of the paired
    difference). The loss leads because it sees every example, where accuracy sees only the few that change sides.

    Args:
        probe_logits: Shape (N, K).
        tuned_logits: Shape (N, K), same rows.
        labels: Shape (N,) or (N, K).
        objective: What the outputs are.
        surely: Prefer the fine-tuned model only if, besides, the interval (Student's t) of the paired difference of
            losses lies below zero.
        confidence: Of that interval.
    """
    gained, lost = objective.gained_and_lost(probe_logits, tuned_logits, labels)
    before, after = (objective.score(logits, labels) for logits in (probe_logits, tuned_logits))
    low, high = _interval(after.refined_log_losses - before.refined_log_losses, confidence)
    preferred = after.refined_log_loss < before.refined_log_loss and lost - gained <= (gained + lost) ** 0.5
    return Verdict(
        before.refined_log_loss, after.refined_log_loss, gained, lost, len(labels),
        prefers_tuned=preferred and (high < 0.0 or not surely), difference_low=low, difference_high=high,
    )  # fmt: skip


def _interval(differences: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the interval of the mean of paired differences; that of one example, or of equal ones, is a point."""
    mean, spread = float(differences.mean()), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    half = (
        float(stats.t.ppf((1.0 + confidence) / 2.0, max(1, len(differences) - 1)))
        * spread
        / math.sqrt(len(differences))
    )
    return mean - half, mean + half
