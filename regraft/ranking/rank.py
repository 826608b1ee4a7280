"""Backbones in the order in which their frozen features suit the data, on a sample of it that none was trained on.

What decides is the held-out loss of a probe on each; LogME and the H-score stand beside it.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.backbones.extractor import SMALLEST_AUTO_SIZE_PX, Extractor
from regraft.backbones.features import FeatureCache, describe, embed_splits
from regraft.data.targets import CLASSIFICATION
from regraft.progress import Progress
from regraft.ranking.transferability import log_maximum_evidence, one_hot, regularised_h_score
from regraft.tuning.objective import Objective
from regraft.tuning.probe import Probe, fit_probe

log = logging.getLogger(__name__)

Labels = NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """A backbone, and the side at which images enter it (None: by the rule, or for texts)."""

    name: str
    image_size_px: int | None = None

    @property
    def label(self) -> str:
        """What people see: the name, and the size if the candidate has its own."""
        return self.name if self.image_size_px is None else f"{self.name} at {self.image_size_px} px"


@dataclass(frozen=True)
class Sample:
    """Some rows of a split, as a source of its own: ids, contents and labels."""

    source: Any
    rows: NDArray[np.int64]
    labels: Labels

    @property
    def kind(self) -> str:
        return str(self.source.kind)

    @cached_property
    def ids(self) -> list[str]:
        return [self.source.ids[row] for row in self.rows]

    @property
    def groups(self) -> NDArray[Any] | None:
        """Whose each row is; None where the source says nothing of it."""
        return None if self.source.groups is None else self.source.groups[self.rows]

    def inputs(self, indices: Sequence[int]) -> list[Any]:
        """Return the contents of the rows `indices` of the sample, in that order."""
        return list(self.source.inputs([int(self.rows[index]) for index in indices]))


@dataclass(frozen=True)
class Evidence:
    """What the frozen features of a candidate say of a sample.

    Attributes:
        candidate: Of whom.
        examples: In the training sample.
        parameters: Of its backbone.
        feature_size: Numbers an example.
        held_out_loss: Of a probe, mean over held-out examples, at its best penalty; what ranks.
        accuracy: On the validation split, of that probe (of several labels micro F1, of real values R2).
        log_maximum_evidence: LogME, the higher the better.
        h_score: The same of the H-score; None where there are no classes.
        seconds: What all of it took here, features that were known already not counted.
        probe: The probe itself.
        features: By split, float32 (rows, feature_size).
    """

    candidate: Candidate
    examples: int
    parameters: int
    feature_size: int
    held_out_loss: float
    accuracy: float
    log_maximum_evidence: float
    h_score: float | None
    seconds: float
    probe: Probe
    features: Mapping[str, NDArray[np.float32]]

    def facts(self) -> dict[str, Any]:
        """Return what a report says, ready for JSON: the same for the same data."""
        return {
            "label": self.candidate.label,
            "name": self.candidate.name,
            "image_size_px": self.candidate.image_size_px,
            "examples": self.examples,
            "parameters": self.parameters,
            "feature_size": self.feature_size,
            "held_out_loss": self.held_out_loss,
            "validation_measure": self.accuracy,
            "log_maximum_evidence": self.log_maximum_evidence,
            "h_score": self.h_score,
        }


def take_sample(split: Any, labels: Labels, most: int, strata: NDArray[np.int64]) -> Sample:
    """Return at most about `most` rows, of every stratum its share and at least two.

    Which ones hangs on contents alone, so that the sample of grown data holds most of the old one.

    Args:
        split: Has ids and contents.
        labels: Of its rows, as training has them; the sample's are these.
        most: Rows wanted.
        strata: Group of each row, shape (N,).
    """
    share = most / max(1, len(labels))
    if share >= 1.0:
        return Sample(split, np.arange(len(labels)), labels)
    ids = np.array(split.ids)  # hashes, so that their order is as good as drawn
    kept = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        kept.append(rows[np.argsort(ids[rows], kind="stable")][: max(2, round(share * len(rows)))])
    rows = np.sort(np.concatenate(kept))
    return Sample(split, rows, labels[rows])


def gather_evidence(
    candidate: Candidate,
    extractor: Extractor,
    samples: Mapping[str, Sample],
    *,
    classes: int,
    objective: Objective,
    cache: Path,
    batch_size: int,
) -> Evidence:
    """Embed the samples with a candidate and score its features.

    Args:
        candidate: Whose features these are.
        extractor: It, loaded.
        samples: "train" and "validation".
        classes: K, the number of outputs.
        objective: What is solved and judged.
        cache: Folder of the feature cache, so that a winner's features are known later.
        batch_size: As for `embed_splits`.
    """
    started = time.monotonic()
    progress = Progress(log, f"embedding with {candidate.label}", total=0, unit="examples")

    def advance(done: int, total: int) -> None:
        progress.total = total
        progress.advance(done)

    store = FeatureCache(cache, describe(extractor, batch_size))
    features = embed_splits(samples, extractor, store, batch_size=batch_size, advance=advance).features
    labels = {name: sample.labels for name, sample in samples.items()}
    probe = fit_probe(
        features["train"], labels["train"], features["validation"], labels["validation"],
        classes=classes, objective=objective, groups=samples["train"].groups,
    )  # fmt: skip
    both = np.concatenate([features["train"], features["validation"]])
    targets = np.concatenate([labels["train"], labels["validation"]])
    is_classes = objective.task == CLASSIFICATION
    return Evidence(
        candidate=candidate,
        examples=len(labels["train"]),
        parameters=extractor.card.parameters,
        feature_size=extractor.feature_size,
        held_out_loss=min(loss for _, loss in probe.path),
        accuracy=probe.validation.accuracy,
        log_maximum_evidence=log_maximum_evidence(both, one_hot(targets, classes) if is_classes else targets),
        h_score=regularised_h_score(both, targets) if is_classes else None,
        seconds=time.monotonic() - started,
        probe=probe,
        features=features,
    )


def image_sizes(by_rule: int, native: int) -> list[int]:
    """Return the sides worth trying: that of the rule first, then two thirds and one and a half of it.

    Multiples of 32, at least `SMALLEST_AUTO_SIZE_PX` and at most `native`, the side the backbone was trained at.
    """
    tried = [by_rule, 32 * round(by_rule / 1.5 / 32), 32 * round(by_rule * 1.5 / 32)]
    return list(dict.fromkeys(min(max(side, SMALLEST_AUTO_SIZE_PX), native) for side in tried))
