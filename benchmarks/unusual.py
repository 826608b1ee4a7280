"""How well answers tell inputs that are unlike the training data: the column `unusual` beside the alternatives.

python -m benchmarks.unusual PROJECT [--other DIR_OR_CSV] [--column text] [--draws 40] [--seed 7]

PROJECT is a folder that `regraft run` has made a model of classes in, of images or texts, that ships the probe. Printed
is the AUROC: how often an input of the other kind is called more unusual than one of the test split.

"other data": the images below DIR, or the texts in a column of CSV. They are far off, mostly, by place, camera and
background, so that any distance tells them. Test images are shrunk to the size of the others first: otherwise blur
might. "held-out classes": half of the classes, drawn anew each time, are left out of training, and their test examples,
of the same origin as all others, are to be told. That is the harder question and the fairer number. "beyond 1" is the
share of each above the limit that validation sets; of the test split it should be 5%. "max softmax" is that of a
logistic regression solved anew on the same features with one penalty; the probe that ships may do better or worse. The
last line is the difference between the two over the same draws. Ten draws are too few to tell which is better (one ten
said +0.04, another -0.04), and as draws share classes, the standard error is too small.
"""

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 300  # of the other data
CHUNK = 50
PENALTY = 0.1  # inverse of the logistic regression's
IMAGES = (".jpg", ".jpeg", ".png")
WAYS = ("unusual (5th neighbour)", "Mahalanobis", "max softmax")


def main() -> None:
    """Print a row for each question and each way to answer it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from regraft.data.records import open_split
    from regraft.paths import Paths
    from regraft.registry.serving import compile_features
    from regraft.tuning.classifier import load_classifier

    paths = Paths(options.project.resolve())
    classifier = load_classifier(paths.model, paths.backbones)
    if classifier.shipped != "probe":
        raise SystemExit(f"{options.project} ships {classifier.shipped}; only the probe can be solved anew each draw")
    splits = {name: open_split(paths.prepared, name) for name in ("train", "validation", "test")}
    labels = {name: split.labels for name, split in splits.items()}
    features = {name: np.load(paths.features / f"{name}.npy") for name in splits}
    print("question | by | AUROC | deviation | test beyond 1 | others beyond 1")
    if options.other is not None:
        others, inside = _read(options.other, options.column), splits["test"].inputs(range(len(splits["test"])))
        if classifier.extractor.kind == "image":
            inside = _shrunk(inside, others)
        answer = compile_features(classifier)
        given = [
            np.concatenate([answer(part[start : start + CHUNK]) for start in range(0, len(part), CHUNK)])
            for part in (inside, others)
        ]
        _print(f"other data ({len(others)})", [_judge(features, labels, *given)])
    draws = []
    for draw in range(options.draws):
        order = np.random.default_rng([options.seed, draw]).permutation(len(classifier.labels))
        kept = {name: np.isin(values, order[: len(order) // 2]) for name, values in labels.items()}
        some = {name: values[kept[name]] for name, values in features.items()}
        theirs = {name: values[kept[name]] for name, values in labels.items()}
        draws.append(_judge(some, theirs, some["test"], features["test"][~kept["test"]]))
    _print(f"held-out classes ({options.draws} draws)", draws)
    gains = np.array([draw[0][0] - draw[-1][0] for draw in draws])
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    better = int((gains > 0.0).sum())
    print(f"{WAYS[0]} less {WAYS[-1]}: {gains.mean():+.3f}, standard error {error:.3f}, better in {better} draws")


def _read(other: Path, column: str) -> list[Any]:
    """Return at most `MOST` images or texts, evenly spread over what there is."""
    if other.is_dir():
        found: list[Any] = [path for path in sorted(other.rglob("*")) if path.suffix.lower() in IMAGES]
    else:
        with other.open(newline="", encoding="utf-8") as file:
            found = [row[column] for row in csv.DictReader(file)]
    if not found:
        raise SystemExit(f"{other} holds neither images nor rows")
    rows = np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(np.int64)
    return [found[row].read_bytes() if other.is_dir() else found[row] for row in rows]


def _shrunk(images: Sequence[bytes], others: Sequence[bytes]) -> list[bytes]:
    """Return `images` as PNG files whose shorter side is at most the median one of `others`."""
    from PIL import Image

    side = int(np.median([min(Image.open(io.BytesIO(content)).size) for content in others]))
    found = []
    for content in images:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        times = min(1.0, side / min(image.size))
        buffer = io.BytesIO()
        image.resize((round(image.width * times), round(image.height * times))).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def _judge(
    features: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[Any]],
    inside: NDArray[Any],
    outside: NDArray[Any],
) -> list[list[float]]:
    """Return for each of `WAYS` its AUROC, and the shares of `inside` and `outside` beyond 95% of validation."""
    from sklearn.covariance import LedoitWolf
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    from regraft.evaluation.unusual import USUAL, distances, settle_familiar

    train, validation = features["train"], features["validation"]
    familiar = settle_familiar(train, validation)
    if familiar is None:
        raise SystemExit(f"{len(validation)} validation examples set no limit")
    known, limit = familiar.known, familiar.limit
    classes = np.unique(labels["train"])
    means = np.stack([train[labels["train"] == one].mean(axis=0) for one in classes])
    precision = LedoitWolf().fit(train - means[np.searchsorted(classes, labels["train"])]).precision_
    probe = LogisticRegression(C=PENALTY, max_iter=500).fit(train, labels["train"])

    def mahalanobis(given: NDArray[Any]) -> NDArray[Any]:
        apart = [given - mean for mean in means]
        return np.asarray(np.min([((part @ precision) * part).sum(axis=1) for part in apart], axis=0))

    rows: list[list[float]] = []
    for way in (lambda x: distances(known, x) / limit, mahalanobis, lambda x: -probe.predict_proba(x).max(axis=1)):
        one, two = way(inside), way(outside)
        line = 1.0 if not rows else float(np.quantile(way(validation), USUAL))
        truth = np.repeat([0, 1], [len(one), len(two)])
        auroc = float(roc_auc_score(truth, np.concatenate([one, two])))
        rows.append([auroc, float((one > line).mean()), float((two > line).mean())])
    return rows


def _print(question: str, found: Sequence[list[list[float]]]) -> None:
    means, spread = np.mean(found, axis=0), np.std(found, axis=0)
    for way, mean, deviation in zip(WAYS, means, spread, strict=True):
        spared = f"{deviation[0]:.3f}" if len(found) > 1 else "-"
        print(f"{question} | {way} | {mean[0]:.3f} | {spared} | {mean[1]:.3f} | {mean[2]:.3f}", flush=True)


if __name__ == "__main__":
    main()
