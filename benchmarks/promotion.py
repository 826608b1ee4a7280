"""Whether the gate tells worse models from better ones, and whether registration survives being killed.

python -m benchmarks.promotion planted [--examples N] [--points P]
python -m benchmarks.promotion kills PROJECT [--kills N]

`planted` draws a champion that is right on 90% of N test examples, and 20 models each that are P points worse and
better than it, beside examples on which the two disagree by chance; it asks the gate of `promote` about each.

`kills` publishes the model of a project that has run, to a registry of its own, under one fingerprint after another.
Each process is killed (SIGKILL) at a random moment; then it must hold that the champion is whole, and, once publishing
was repeated, that there is one version for each fingerprint.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from regraft.paths import Paths
from regraft.registry import promotion, tracking
from regraft.registry.promotion import Answers
from regraft.registry.published import CHAMPION, DECISION, FINGERPRINT
from regraft.settings import EvaluateSettings, load_settings

MODELS = 20
CHAMPION_ACCURACY = 0.9
_PUBLISH = """
import sys
from pathlib import Path
from regraft.paths import Paths
from regraft.registry.register import publish
from regraft.settings import load_settings
paths = Paths(Path(sys.argv[1]))
publish(paths, load_settings(paths.params), {}, sys.argv[2])
"""


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("planted")
    planting.add_argument("--examples", type=int, default=1000)
    planting.add_argument("--points", type=float, default=3.0)
    killing = commands.add_parser("kills")
    killing.add_argument("project", type=Path)
    killing.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    if options.command == "planted":
        for name, sign in (("worse", -1.0), ("better", 1.0)):
            passed = sum(_passes(options.examples, sign * options.points / 100, seed) for seed in range(MODELS))
            print(f"{name} by {options.points:g} points on {options.examples} examples: {passed} of {MODELS} promoted")
    else:
        _kill(options.project.resolve(), options.kills)


def _passes(examples: int, gain: float, seed: int) -> bool:
    """Return whether a model that is right on `gain` more examples than the champion passes the champion's gate."""
    generator = np.random.default_rng([seed, int(gain < 0)])
    labels = generator.integers(0, 10, examples)
    wrong = (labels + 1 + generator.integers(0, 9, examples)) % 10
    champion = generator.random(examples) < CHAMPION_ACCURACY
    # Rates at which the model turns right answers wrong and wrong ones right, so that it gains `gain` on the whole.
    lost = abs(gain) + max(0.0, -gain)
    won = lost + gain
    drawn = generator.random(examples)
    challenger = np.where(champion, drawn >= lost / CHAMPION_ACCURACY, drawn < won / (1.0 - CHAMPION_ACCURACY))
    ids = tuple(f"{number:064x}" for number in range(examples))

    def answers(right: np.ndarray) -> Answers:
        return Answers(ids, tuple(map(str, labels)), tuple(map(str, np.where(right, labels, wrong))))

    evaluate = EvaluateSettings()
    return promotion.champion_gate(
        "accuracy",
        answers(challenger),
        answers(champion),
        version=1,
        tolerance=0.0,
        samples=evaluate.bootstrap_samples,
        interval=evaluate.interval,
        seed=7,
    ).passed


def _kill(project: Path, kills: int) -> None:
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        root = Path(folder) / "project"
        for part in ("reports", "models/serving"):
            shutil.copytree(project / part, root / part)
        for file in ("params.yaml", "dvc.yaml", "dvc.lock"):
            shutil.copy(project / file, root / file)
        paths = Paths(root)
        settings = load_settings(paths.params)
        began = time.monotonic()
        _publish(root, "0" * 64).wait()
        whole_s = time.monotonic() - began
        client = tracking.connect(paths, settings)
        moments, broken, chance = [], 0, random.Random(7)
        for number in range(1, kills + 1):
            fingerprint = f"{number:064x}"
            process = _publish(root, fingerprint)
            moments.append(chance.uniform(0.3, 1.0) * whole_s)
            try:
                process.wait(moments[-1])
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            champion = client.get_model_version_by_alias(settings.name, CHAMPION)
            with tempfile.TemporaryDirectory(prefix="regraft-") as copy:
                source = client.get_model_version_download_uri(settings.name, champion.version)
                shutil.copytree(source.removeprefix("file://"), copy, dirs_exist_ok=True)
                whole = (Path(copy) / "MLmodel").exists() and any(Path(copy).rglob("saved_model.pb"))
            broken += not (whole and DECISION in champion.tags)
            if _publish(root, fingerprint).wait():
                sys.exit(f"publishing {fingerprint} again failed")
            print(f"kill {number}, {moments[-1]:.1f} of {whole_s:.1f} s", flush=True)
        found = client.search_model_versions(f"name = '{settings.name}'", max_results=1000)
        fingerprints = [version.tags[FINGERPRINT] for version in found]
        print(
            f"{kills} kills: {len(fingerprints) - len(set(fingerprints))} versions too many, "
            f"{kills + 1 - len(set(fingerprints))} missing, champion half made {broken} times"
        )


def _publish(root: Path, fingerprint: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", _PUBLISH, str(root), fingerprint], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
