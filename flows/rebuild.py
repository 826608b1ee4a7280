"""Making a registered model again, from the code, data and settings it was made from, to prove that it can be made."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import pipeline, repository
from regraft.errors import RegistryError, RegraftError
from regraft.files import read_json
from regraft.fingerprint import code_fingerprint, locked_hash
from regraft.measures import LEADING, task_of
from regraft.paths import REPOSITORY, Paths
from regraft.registry.published import CODE_COMMIT
from regraft.registry.versions import recorded_files
from regraft.settings import Settings

_RUN = """
import sys
from pathlib import Path
from flows import pipeline
for stage in sys.argv[2:]:
    print(f"stage {stage}", flush=True)
    pipeline.run_stage(Path(sys.argv[1]), stage, force=True)
"""


def rebuild(
    paths: Paths, settings: Settings, reference: str, folder: Path | None, *, on_line: Callable[[str], None]
) -> dict[str, Any]:
    """Compute features, fine-tune and evaluate as for the version `reference`, and compare; nothing is registered.

    Args:
        paths: The project that made it, whose DVC cache or remote holds its data and backbone.
        settings: Its settings now; those of the version are taken from the registry.
        reference: `NAME` (the champion), `NAME@ALIAS` or `NAME/VERSION`.
        folder: Where to do so, kept afterwards as a project of its own; None: in a temporary folder.
        on_line: Receives what is said meanwhile.

    Returns:
        {"name", "version", "code": the commit, or "the present code", "metric", "was", "now", "same_weights",
        "same_export", "same_answers": of model, exported model and predictions.csv, to the byte}.

    Raises:
        RegistryError: If the registry does not hold what was recorded of the version.
        RegraftError: If its code, data or libraries cannot be had, a stage fails, or the test numbers are others.
    """
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RegraftError(
            f"{folder} is no empty folder. Name a new one for the model that is made again; what a rebuild that failed "
            "left behind may be deleted."
        )
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        known = recorded_files(paths, settings, reference, Path(temporary) / "recorded")
        root = Paths((folder or Path(temporary) / "project").resolve())
        recorded = Paths(known.folder / "project")
        if not recorded.lock.exists():
            raise RegistryError(
                f"{known.name} version {known.version} was registered without its dvc.lock, by an earlier version of "
                "this program; it cannot be made again from the registry alone."
            )
        shutil.copytree(recorded.root, root.root, dirs_exist_ok=True)
        root.state.mkdir(exist_ok=True)
        shutil.move(root.root / root.inputs.name, root.inputs)
        repository.borrow_cache(root.root, paths.root)
        # The backbone and what comes before it are taken from the DVC cache, to the byte.
        restored, again = pipeline.split_stages(root.root, root.backbones)
        on_line(f"restoring the results of {', '.join(restored)}")
        pipeline.restore_stages(root.root, restored)
        with _code(root, again, known.tags.get(CODE_COMMIT, "none")) as (code, called):
            on_line(f"making version {known.version} of {known.name} again with {called}")
            _run(code, root.root, again, on_line)
        return _compare(root, recorded, known.folder / "reports", called) | {
            "name": known.name,
            "version": known.version,
        }


@contextmanager
def _code(root: Paths, stages: Sequence[str], commit: str) -> Iterator[tuple[Path, str]]:
    """Yield a checkout of the code that the model was made with, and what to call it."""
    wanted = read_json(root.inputs)["code"]
    differing = sorted(
        {
            name
            for stage in stages
            for now in [code_fingerprint(stage)]
            for name in {*now, *wanted[stage]}
            if now.get(name) != wanted[stage].get(name)
        }
    )
    if not differing:
        yield REPOSITORY, "the present code"
        return
    listed = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
    if libraries := [name for name in differing if "/" not in name and not name.startswith("defaults of ")]:
        raise RegraftError(
            f"the model was made with other versions of {', '.join(libraries)}. Install requirements.lock of commit "
            f"{commit} into an environment of its own, and rebuild there."
        )
    if commit == "none" or commit.endswith("-dirty"):
        raise RegraftError(
            f"the code has changed since ({listed}), and that of the model was in no commit ({commit}): it cannot be "
            "brought back."
        )
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        tree = Path(temporary) / "code"
        added = _git("worktree", "add", "--detach", str(tree), commit)
        if added.returncode:
            raise RegraftError(
                f"the code has changed since ({listed}), and git cannot bring back commit {commit}: "
                f"{added.stderr.strip()}. `git fetch` may."
            )
        try:
            yield tree, f"the code of commit {commit[:12]}"
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def _run(code: Path, root: Path, stages: Sequence[str], on_line: Callable[[str], None]) -> None:
    """Run the stages with the code in `code`, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, "-P", "-c", _RUN, str(root), *stages]
    last: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                last = [*last[-14:], line.rstrip()]
                on_line(last[-1])
            process.wait()
        finally:
            process.terminate()  # nothing to it that has ended
    if process.returncode:
        raise RegraftError("the model could not be made again:\n" + "\n".join(last))


def _compare(root: Paths, recorded: Paths, reports: Path, called: str) -> dict[str, Any]:
    """Return how what was made again compares with what was recorded.

    Raises:
        RegraftError: If a test number differs.
    """
    was, now = read_json(reports / "metrics.json"), read_json(root.reports / "metrics.json")
    metric = LEADING[task_of(was)]
    made_then = recorded.lock.read_text("utf-8")

    def same(output: Path) -> bool:
        return locked_hash(root, output) == locked_hash(root, output, made_then)

    outcome = {
        "code": called,
        "metric": metric,
        "was": was["test"][metric]["value"],
        "now": now["test"][metric]["value"],
        "same_weights": same(root.model),
        "same_export": same(root.serving),
        "same_answers": same(root.reports / "predictions.csv"),
    }
    if was["test"] != now["test"]:
        raise RegraftError(
            f"made again, the model gets {metric} {outcome['now']:.6f} on the test split, and {outcome['was']:.6f} is "
            f"registered (weights equal: {outcome['same_weights']}). Another processor or number of threads rounds "
            "otherwise; on the same machine this means that something is not as it was."
        )
    return outcome
