"""Training a head from features that are computed once, beside training it through the frozen backbone every epoch.

python -m benchmarks.cached_head [SOURCE] [--epochs 20]

SOURCE is that of a project, or digits:N for N MNIST digits of each class. Its training split is prepared, and the same
dense head is trained by AdamW from zeros twice, on the same batches of 32 in the same order and without augmentation:

- cached: every example goes through the backbone once, as the stage embed does it, into an empty cache; the epochs read
  the features from memory;
- through the backbone: every epoch decodes and prepares every example anew and sends it through the frozen backbone.

Printed are both times, extraction included, their ratio, the greatest difference between the probabilities that the two
heads give the validation split, each on features of its own way, and beside them the time that the solved probe takes,
with its penalty chosen, on the same features. Starting up and compiling (one step of each way before the clock starts)
are not counted.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stages import prepare, project_on

BATCH_SIZE, RATE, SEED = 32, 1.0e-3, 7
STAGES = ("download", "preprocess", "backbone")


def main() -> None:
    """Print times, their ratio, and how far apart the two heads are."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="package:mnist5k", metavar="SOURCE")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    with project_on(arguments.source) as project:
        prepare(project, STAGES)
        print(compare(project.root, arguments.epochs).text(arguments.epochs))


@dataclass
class Found:
    """What was measured.

    Attributes:
        extraction_s: Seconds to compute the features of the training split.
        cached_s: Seconds of all epochs on them.
        through_s: Seconds of all epochs through the backbone.
        probe_s: Seconds to solve the probe.
        examples: In the training split.
        difference: The greatest between two probabilities of the same example and class.
        agreement: How many validation examples both heads answer alike.
        judged: Validation examples.
    """

    extraction_s: float = 0.0
    cached_s: float = 0.0
    through_s: float = 0.0
    probe_s: float = 0.0
    examples: int = 0
    difference: float = 0.0
    agreement: int = 0
    judged: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)

    def text(self, epochs: int) -> str:
        """Return it in words."""
        cached_s = self.extraction_s + self.cached_s
        return (
            f"{epochs} epochs of a head on {self.examples} examples\n"
            f"cached:               {cached_s:7.1f} s (features {self.extraction_s:.1f}, epochs {self.cached_s:.1f})\n"
            f"through the backbone: {self.through_s:7.1f} s\n"
            f"ratio:                {self.through_s / cached_s:7.1f}\n"
            f"greatest difference of a probability: {self.difference:.1e}; same answer on {self.agreement} of "
            f"{self.judged} validation examples\n"
            f"the solved probe:     {self.extraction_s + self.probe_s:7.1f} s "
            f"(features {self.extraction_s:.1f}, solving {self.probe_s:.1f})\n"
            f"validation accuracy: {', '.join(f'{name} {value:.4f}' for name, value in self.accuracies.items())}"
        )
