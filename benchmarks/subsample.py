"""A few training examples a class, validation and test kept whole: the same few for every system that is compared.

python -m benchmarks.subsample SOURCE DESTINATION --per-class N [--seed S]

SOURCE is a folder holding train/ and test/ (validation/ or val/ if there is one): class folders of files, or train.csv
and test.csv with a column of classes. DESTINATION becomes a source of the same layout.
"""

import argparse
import csv
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


def main() -> None:
    """Write the smaller source and say how many training examples it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--per-class", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="label", help="the column of classes, for tables")
    arguments = parser.parse_args()
    write = subsample_table if (arguments.source / "train.csv").is_file() else subsample_folder
    options = {"target": arguments.target} if write is subsample_table else {}
    count = write(arguments.source, arguments.destination, arguments.per_class, seed=arguments.seed, **options)
    print(f"{count} training examples in {arguments.destination}")


def choose(keys: Sequence[str], labels: Sequence[str], per_class: int, *, seed: int) -> list[int]:
    """Return the rows of at most `per_class` examples of each class, in ascending order.

    The choice hangs on keys and seed alone, not on the order of rows, and a larger `per_class` adds to a smaller one.

    Raises:
        ValueError: If `per_class` is less than 1.
    """
    if per_class < 1:
        raise ValueError(f"--per-class must be at least 1, got {per_class}")
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)

    def rank(row: int) -> str:
        return hashlib.sha256(f"{seed}:{keys[row]}".encode()).hexdigest()

    return sorted(row for held in rows.values() for row in sorted(held, key=rank)[:per_class])


def subsample_folder(source: Path, destination: Path, per_class: int, *, seed: int) -> int:
    """Copy class folders; return the number of training examples kept.

    Raises:
        FileExistsError: If `destination` exists.
        ValueError: If `source` has no train/ and test/, or `per_class` is less than 1.
    """
    missing = [name for name in ("train", "test") if not (source / name).is_dir()]
    if missing:
        raise ValueError(f"{source} must hold train/ and test/ with class folders; missing: {', '.join(missing)}")
    files = sorted(path for path in (source / "train").glob("*/*") if path.is_file())
    names = [path.relative_to(source).as_posix() for path in files]
    kept = choose(names, [path.parent.name for path in files], per_class, seed=seed)
    destination.mkdir(parents=True)  # fails on an old sample, which would mix with this one
    for row in kept:
        target = destination / names[row]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[row], target)
    for split in ("validation", "val", "test"):
        if (source / split).is_dir():
            shutil.copytree(source / split, destination / split)
    return len(kept)


def subsample_table(source: Path, destination: Path, per_class: int, *, seed: int, target: str = "label") -> int:
    """Copy train.csv and the tables beside it; return the number of training examples kept.

    Copies of a row are one choice: the first is kept, so that no example takes two places.

    Raises:
        FileExistsError: If `destination` exists.
        ValueError: If a table is missing, train.csv has no column `target`, or `per_class` is less than 1.
    """
    missing = [name for name in ("train.csv", "test.csv") if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source} must hold train.csv and test.csv; missing: {', '.join(missing)}")
    with (source / "train.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if target not in columns:
            raise ValueError(f"{source / 'train.csv'} has no column {target!r}; it has {columns}. Name it: --target")
        rows = list({tuple(row.values()): row for row in reader}.values())
    kept = choose(["\x1f".join(row.values()) for row in rows], [row[target] for row in rows], per_class, seed=seed)
    destination.mkdir(parents=True)
    with (destination / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[row] for row in kept)
    for name in ("validation.csv", "test.csv"):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    return len(kept)


if __name__ == "__main__":
    main()
