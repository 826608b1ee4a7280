"""Temporary projects for measurements, run through the command line as a user would."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ruamel.yaml import YAML

from flows.pipeline import ALLOCATOR

if TYPE_CHECKING:
    from regraft.data.records import Split

Result = TypeVar("Result")


@dataclass(frozen=True)
class Project:
    """A project in a folder of its own."""

    root: Path

    def run(self) -> tuple[float, dict[str, Any]]:
        """Run `regraft run`; return its wall time in seconds, start-up included, and its outcome."""
        started = time.monotonic()
        outcome = regraft("run", "--root", str(self.root), "--json")
        return time.monotonic() - started, json.loads(outcome)

    def report(self, name: str) -> Any:
        """Return the content of reports/`name`."""
        return json.loads((self.root / "reports" / name).read_text("utf-8"))

    def change(self, setting: str, value: Any) -> None:
        """Set e.g. `finetune.epochs`, or `seed`, in params.yaml."""
        yaml = YAML()
        path = self.root / "params.yaml"
        settings = yaml.load(path.read_text("utf-8"))
        *section, key = setting.split(".")
        (settings[section[0]] if section else settings)[key] = value
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(settings, file)


@contextmanager
def temporary_project(source: str, *options: str) -> Iterator[Project]:
    """Make a project on `source`, with further `options` of `regraft init`, and delete it at the end."""
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as folder:
        root = Path(folder) / "project"
        regraft("init", str(root), "--source", source, "--name", "benchmark", *options)
        yield Project(root)


def regraft(*arguments: str) -> str:
    """Run the command line and return its standard output; what it says on standard error is shown as it comes."""
    command = [sys.executable, "-m", "regraft.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def prepared_images(folder: Path | None, scratch: Path) -> "tuple[Split, Split]":
    """Return the training and validation split of class folders of images, or of the embedded digits, in this process.

    Args:
        folder: Class folders; None for the digits.
        scratch: An existing folder for what is made.
    """
    from regraft.data import fetch, sources
    from regraft.data.examples import collect_images
    from regraft.data.records import open_split, write_prepared
    from regraft.data.splits import complete

    if folder is None:
        folder = scratch / "images"
        folder.mkdir()
        fetch.fetch(sources.parse("package:mnist5k", Path()), folder)
    (scratch / "png").mkdir()
    found = collect_images(folder, scratch / "png").splits
    labels = sorted({example.label for held in found.values() for example in held})
    splits = complete(found, validation_fraction=0.15, test_fraction=0.2)
    write_prepared(scratch / "prepared", "image", labels, splits)
    return open_split(scratch / "prepared", "train"), open_split(scratch / "prepared", "validation")


def run_as_a_stage(module: str) -> None:
    """Run `module` again, and end with it, unless this process has the allocator as stages set it."""
    environment = ALLOCATOR | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if any(os.environ.get(name) != value for name, value in environment.items()):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | environment, check=False).returncode)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what `work` returns, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
