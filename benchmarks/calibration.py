"""What calibration and conformal prediction are worth: on the project's own splits, and on random ones.

python -m benchmarks.calibration PROJECT ... [--splits 20] [--coverage 0.9] [--seed 7]

PROJECT is a folder that `regraft run` has made a model of classes in. "own": fitted on its validation data, which has
also chosen the model, and measured on its test data. "random": both are put together and divided anew, as large as
before, so that what was fitted on has chosen nothing more than what it is measured on; means over the splits. If a
promise suffers from validation having chosen the model, its coverage is lower in "own" than in "random" by more than
the spread. Coverage is that of the bound alone, for which theory promises the number, and in "answered" that of sets
as they are given: never empty, so at least as high as the accuracy.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("project", "splits", "fitted on", "calibrated", "ECE before", "ECE after", "by chance", "coverage", "spread")


@dataclass(frozen=True)
class Outputs:
    """Logits (N, K) and classes (N,) of validation and test examples."""

    validation: tuple[NDArray[Any], NDArray[Any]]
    test: tuple[NDArray[Any], NDArray[Any]]


def main() -> None:
    """Print two rows for each project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(" | ".join((*COLUMNS, "answered", "set size")))
    for root in options.projects:
        outputs = read_outputs(root)
        fitted = len(outputs.validation[1])
        own = judge(outputs.validation, outputs.test, coverage=options.coverage, seed=options.seed)
        logits, labels = (np.concatenate(parts) for parts in zip(outputs.validation, outputs.test, strict=True))
        random = np.random.default_rng(options.seed)
        judged = []
        for _ in range(options.splits):
            order = random.permutation(len(labels))
            first, rest = order[:fitted], order[fitted:]
            judged.append(
                judge(
                    (logits[first], labels[first]),
                    (logits[rest], labels[rest]),
                    coverage=options.coverage,
                    seed=options.seed,
                )
            )
        means = {name: float(np.mean([row[name] for row in judged])) for name in own}
        spread = float(np.std([row["coverage"] for row in judged]))
        print(_row(root.name, "own", fitted, own, None))
        print(_row(root.name, f"{options.splits} random", fitted, means, spread), flush=True)


def read_outputs(root: Path) -> Outputs:
    """Return what the model of the project at `root` answers to validation and test, before calibration."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from regraft.data.records import open_split
    from regraft.paths import Paths
    from regraft.tuning.classifier import load_classifier
    from tasks.evaluate import outputs_on

    paths = Paths(root.resolve())
    classifier = load_classifier(paths.model, paths.backbones)
    splits = {name: open_split(paths.prepared, name) for name in ("validation", "test")}
    found = {
        name: (outputs_on(classifier, split, paths.features / f"{name}.npy"), split.labels)
        for name, split in splits.items()
    }
    return Outputs(**found)


def judge(
    fitted: tuple[NDArray[Any], NDArray[Any]],
    measured: tuple[NDArray[Any], NDArray[Any]],
    *,
    coverage: float,
    seed: int,
) -> Mapping[str, float]:
    """Return figures on the examples `measured` of what is settled on the examples `fitted`."""
    from scipy.special import softmax

    from regraft.evaluation.calibration import sort_into_bins
    from regraft.evaluation.certainty import settle
    from regraft.evaluation.conformal import prediction_sets

    settled = settle("classification", *fitted, balance=None, coverage=coverage, risk=None, seed=seed)
    logits, labels = measured
    rows, alike = np.arange(len(labels)), np.ones(len(labels))
    before, after = (softmax(logits / temperature, axis=1) for temperature in (1.0, settled.calibration.temperature))
    binned = [sort_into_bins("classification", answers, labels, alike) for answers in (before, after)]
    errors = [float(np.abs(part.gaps.sum(axis=0)).sum() / len(labels)) for part in binned]
    if settled.promise.bounds is None:
        raise SystemExit(settled.promise.why)
    least = settled.promise.bounds[0]
    held = prediction_sets("classification", after, least)
    return {
        "calibrated": float(settled.is_calibrated),
        "before": errors[0],
        "after": errors[1],
        "by_chance": binned[1].chance,
        "coverage": float((after[rows, labels] >= least).mean()),
        "answered": float(held[rows, labels].mean()),
        "size": float(held.sum(axis=1).mean()),
    }


def _row(project: str, splits: str, fitted: int, found: Mapping[str, float], spread: float | None) -> str:
    shares = [f"{found[name]:.4f}" for name in ("before", "after", "by_chance", "coverage")]
    cells = [project, splits, str(fitted), f"{found['calibrated']:.2f}", *shares]
    cells += ["" if spread is None else f"{spread:.4f}", f"{found['answered']:.4f}", f"{found['size']:.2f}"]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
