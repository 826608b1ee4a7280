"""A project's champion as ONNX, OpenVINO and LiteRT: accuracy and speed beside the registered model's network.

python -m benchmarks.exports PROJECT [--examples 1000]

PROJECT is the folder of a project with a champion; formats whose packages are not installed are passed over. Speed is
that of the network alone, from prepared inputs to answers, both in turns.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.projects import regraft
from regraft.errors import RegraftError
from regraft.paths import Paths
from regraft.registry.formats import FORMATS
from regraft.settings import load_settings


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--tolerance", type=float, default=1.0, help="as of regraft export: nothing is refused")
    arguments = parser.parse_args()
    name = load_settings(Paths(arguments.project.resolve()).params).name
    print("format | measure | same answers | MB | times as fast, one input | times as fast, best batch", flush=True)
    for wanted in FORMATS.values():
        try:
            wanted.check_installed()
        except RegraftError as error:
            print(f"{wanted.name}: {error}")
            continue
        with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
            said = regraft(
                "export", name, "--root", str(arguments.project), "--format", wanted.name, "--out", f"{folder}/export",
                "--examples", str(arguments.examples), "--tolerance", str(arguments.tolerance), "--json",
            )  # fmt: skip
        facts = json.loads(said)
        proof, speed = facts["proof"], facts["speed"]
        cells = [
            wanted.name,
            f"{proof['registered']:.4f} -> {proof['exported']:.4f}",
            f"{proof.get('same_answers', 1.0):.4f}",
            f"{sum(facts['files'].values()) / 1e6:.1f}",
            f"{speed['batch_sizes']['1']['speed_up']:.2f}",
            f"{speed['throughput_speed_up']:.2f}",
        ]
        print(" | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
