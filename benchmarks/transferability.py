"""How long LogME and the H-score take, beside the probe they stand next to, on random features of a size you choose.

python -m benchmarks.transferability [--examples 10000] [--features 1280] [--classes 10]
"""

import argparse

import numpy as np

from benchmarks.projects import timed
from regraft.ranking.transferability import log_maximum_evidence, one_hot, regularised_h_score
from regraft.tuning.probe import fit_probe

SIGNAL = 0.1  # of class centres against noise: a task that is neither hopeless nor trivial


def main() -> None:
    """Print the seconds of each, and how many times as long the probe takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    random = np.random.default_rng(7)
    labels = random.integers(0, options.classes, options.examples)
    centres = SIGNAL * random.normal(size=(options.classes, options.features))
    features = (centres[labels] + random.normal(size=(options.examples, options.features))).astype(np.float32)
    held_out = max(1, options.examples // 5)
    evidence, logme_s = timed(lambda: log_maximum_evidence(features, one_hot(labels, options.classes)))
    score, h_score_s = timed(lambda: regularised_h_score(features, labels))
    probe, probe_s = timed(
        lambda: fit_probe(
            features[held_out:], labels[held_out:], features[:held_out], labels[:held_out], classes=options.classes
        )
    )
    print(f"{options.examples} x {options.features} features, {options.classes} classes")
    print(f"LogME {evidence:.4f}: {logme_s:.2f} s; the probe takes {probe_s / logme_s:.1f} times as long")
    print(f"H-score {score:.4f}: {h_score_s:.2f} s; the probe takes {probe_s / h_score_s:.1f} times as long")
    print(f"probe, accuracy {probe.validation.accuracy:.4f}: {probe_s:.2f} s")


if __name__ == "__main__":
    main()
