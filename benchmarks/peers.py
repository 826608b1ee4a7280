"""Test accuracy and time beside other tools, on the same training and test examples and the same weights.

python -m benchmarks.peers SOURCE... [--only RECIPE,...] [--environment DIR] [--image-size-px N]

SOURCE is folder:DIR of images or csv:DIR of texts, with classes. After a `regraft run` each recipe of
benchmarks/peer_recipes.py is run on what it prepared, in a process of its own: plain_keras in this environment, the
others in one that is made from benchmarks/peers-requirements.txt (several GB) and kept in DIR. Recipes learn from train
and validation together, ours from train alone: it chooses and decides by validation. Times are those of the processes,
start and imports included; ours is of the stages embed and finetune, and beside it that of the whole run.
SetFit is run where there are at most 16 texts a class, which is what it is for.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.projects import Project, temporary_project
from regraft.data.records import open_split
from regraft.files import read_json, write_json
from regraft.paths import Paths

HERE = Path(__file__).parent
TEXTS = ("frozen_texts", "trainer", "setfit", "plain_keras")
IMAGES = ("frozen_images", "fastai", "plain_keras")
FEW_A_CLASS = 16


def main() -> None:
    """Print a line for each source and recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--only", help="recipes, separated by commas")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "regraft-peers")
    parser.add_argument("--image-size-px", type=int)
    arguments = parser.parse_args()
    python = peers_environment(arguments.environment)
    print("source | who | test accuracy | s", flush=True)
    for source in arguments.sources:
        with temporary_project(source) as project, tempfile.TemporaryDirectory(prefix="regraft-peers-") as scratch:
            if arguments.image_size_px:
                project.change("embed.image_size_px", arguments.image_size_px)
            name = source.rpartition("/")[2]
            whole, _ = project.run()
            accuracy = project.report("metrics.json")["test"]["accuracy"]["value"]
            logs = {
                stage: (Paths(project.root).logs / f"{stage}.log").stat().st_mtime for stage in ("backbone", "finetune")
            }
            ours = logs["finetune"] - logs["backbone"]
            print(f"{name} | ours | {accuracy:.4f} | {ours:.0f} (whole run {whole:.0f})", flush=True)
            data = export(project, Path(scratch))
            recipes = TEXTS if data["kind"] == "text" else IMAGES
            for recipe in arguments.only.split(",") if arguments.only else recipes:
                if recipe == "setfit" and len(data["train"]["labels"]) > FEW_A_CLASS * data["classes"]:
                    continue
                executable = sys.executable if recipe == "plain_keras" else str(python)
                started = time.monotonic()
                done = subprocess.run(
                    [executable, "-P", str(HERE / "peer_recipes.py"), recipe, scratch],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    sys.exit(f"{recipe} failed:\n{done.stderr[-3000:]}")
                seconds = time.monotonic() - started
                print(f"{name} | {recipe} | {float(done.stdout.split()[-1]):.4f} | {seconds:.0f}", flush=True)


def peers_environment(folder: Path) -> Path:
    """Return the Python of the environment in `folder`, which is made if it is not there."""
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        requirements = str(HERE / "peers-requirements.txt")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        ready.touch()
    return python


def export(project: Project, folder: Path) -> Any:
    """Write a project's examples and weights to `folder` for the recipes, and return what examples.json says."""
    features = read_json(project.root / "features" / "features.json")
    data: dict[str, Any] = {name: features[name] for name in ("image_size_px", "max_tokens")}
    for split, parts in (("train", ("train", "validation")), ("test", ("test",))):
        inputs: list[str] = []
        labels: list[int] = []
        for part in parts:
            rows = open_split(project.root / "data" / "prepared", part)
            data |= {"kind": rows.kind, "classes": len(rows.class_names)}
            contents = rows.inputs(range(len(rows)))
            labels += rows.labels.tolist()
            if rows.kind == "text":
                inputs += contents
                continue
            for number, content in enumerate(contents):
                path = folder / part / f"{number}.img"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
                inputs.append(str(path.relative_to(folder)))
        data[split] = {"inputs": inputs, "labels": labels}
    write_json(folder / "examples.json", data)
    shutil.copytree(project.root / "models" / "backbones", folder / "backbones")
    if data["kind"] == "text":
        from regraft.backbones import catalogue
        from regraft.backbones.weights import weight_cache

        files = catalogue.find("all_minilm_l6_v2").files
        (folder / "encoder").mkdir()
        for file in files:
            shutil.copyfile(weight_cache() / files[0].sha256 / file.name, folder / "encoder" / file.name)
    return data


if __name__ == "__main__":
    main()
