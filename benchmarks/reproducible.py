"""Two runs from nothing: are weights and metrics the same to the byte?

python -m benchmarks.reproducible [SOURCE]
"""

import hashlib
import sys

from benchmarks.projects import temporary_project

COMPARED = (
    "features/train.npy",
    "models/model/model.weights.h5",
    "reports/training.json",
    "reports/metrics.json",
    "reports/predictions.csv",
)


def main(source: str) -> None:
    """Print the sha256 of each file that must repeat, and fail if one does not."""
    digests = []
    for _ in range(2):
        with temporary_project(source) as project:
            project.run()
            digests.append([hashlib.sha256((project.root / name).read_bytes()).hexdigest() for name in COMPARED])
    for name, first, second in zip(COMPARED, *digests, strict=True):
        print(f"{'same' if first == second else 'DIFFERENT'} {first[:16]} {second[:16]} {name}")
    if digests[0] != digests[1]:
        sys.exit("the two runs differ")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "package:mnist5k")
