"""How often explanations beat random orders: python -m benchmarks.explanations PROJECT... [--examples N].

PROJECT is one that has run; its model is asked about the first N examples of its test split.
"""

import argparse
from pathlib import Path

from regraft.data.records import open_split
from regraft.explanations import faithfulness
from regraft.explanations.attribution import explainer_of
from regraft.paths import Paths
from regraft.tuning.classifier import load_classifier


def main() -> None:
    """Print a line for each project and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--examples", type=int, default=100)
    options = parser.parse_args()
    print("project | method | examples | deletion (random) | insertion (random) | better in both (95% interval)")
    for project in options.projects:
        paths = Paths(project.resolve())
        classifier, test = load_classifier(paths.model, paths.backbones), open_split(paths.prepared, "test")
        contents = test.inputs(range(min(options.examples, len(test))))
        unit = float(open_split(paths.prepared, "train").labels.std()) if test.task == "regression" else 1.0
        found = faithfulness.measure(explainer_of(classifier), contents, seed=7, unit=unit)
        for method, row in found.items():
            print(
                f"{project.name} | {method} | {row['examples']} | "
                f"{row['deletion']:.3f} ({row['random_deletion']:.3f}) | "
                f"{row['insertion']:.3f} ({row['random_insertion']:.3f}) | {row['better_both']:.2f} "
                f"({row['low']:.2f} to {row['high']:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
