"""Small real projects for tests that need a whole pipeline: drawn images, a tiny random backbone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from regraft.paths import Paths

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 70), "red": (220, 50, 40)}


def draw_images(folder: Path, *, per_class: int = 30, seed: int = 0, first: int = 0) -> None:
    """Write `per_class` PNGs of noisy coloured discs into a class folder for each colour."""
    random = np.random.default_rng([seed, first])
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + per_class):
            image = Image.fromarray(random.integers(0, 90, (48, 48, 3), dtype=np.uint8))
            x, y, radius = (int(random.integers(low, high)) for low, high in ((8, 40), (8, 40), (5, 12)))
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            image.save(folder / label / f"{number:03d}.png")


@dataclass(frozen=True)
class Project:
    """A project folder, used through the command line as a person would."""

    root: Path

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    def regraft(self, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> Any:
        """Run a command on this project; return the finished process, with its output as text."""
        command = [sys.executable, "-m", "regraft.cli", *arguments, "--root", str(self.root)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, env=os.environ | (env or {})
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def facts(self, *arguments: str) -> Any:
        """Run a command with --json and return what it printed."""
        return json.loads(self.regraft(*arguments, "--json").stdout)

    def report(self, name: str) -> Any:
        return json.loads((self.paths.reports / name).read_text("utf-8"))

    def change(self, setting: str, value: Any) -> None:
        """Set e.g. `finetune.epochs` in params.yaml."""
        yaml = YAML()
        settings = yaml.load(self.paths.params.read_text("utf-8"))
        *sections, key = setting.split(".")
        section = settings[sections[0]] if sections else settings
        section[key] = value
        with self.paths.params.open("w", encoding="utf-8") as file:
            yaml.dump(settings, file)


def make_project(root: Path, *options: str, source: str, preset: Path, name: str = "discs") -> Project:
    """Run `regraft init` with further `options`, then set what makes training quick."""
    command = [sys.executable, "-m", "regraft.cli", "init", str(root), "--source", source, "--name", name, *options]
    subprocess.run(command, check=True, capture_output=True, text=True)
    project = Project(root)
    project.change("backbone.name", f"preset:{preset}")
    project.change("embed.image_size_px", 48)
    project.change("finetune.epochs", 2)
    project.change("finetune.batch_size", 16)
    project.change("evaluate.bootstrap_samples", 200)
    return project
