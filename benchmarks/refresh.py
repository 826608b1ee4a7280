"""What a refresh costs against the first run: nothing changed, one setting changed, ten images more.

    python -m benchmarks.refresh [FOLDER_OF_CLASS_FOLDERS]

Without a folder it writes the embedded digits out as one.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.projects import temporary_project
from regraft.data import sources
from regraft.data.fetch import fetch


def main(folder: str | None) -> None:
    """Print the time of each refresh as a share of the first run's, and what ran."""
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        images = Path(temporary) / "images"
        if folder:
            shutil.copytree(folder, images)
        else:
            fetch(sources.parse("package:mnist5k", Path()), images)
        with temporary_project(f"folder:{images}") as project:
            first, outcome = project.run()
            print(f"first run: {len(outcome['stages_run'])} stages, {first:.1f} s")

            def refresh(what: str) -> None:
                seconds, outcome = project.run()
                passes = project.report("embed.json")["forward_passes"] if "embed" in outcome["stages_run"] else 0
                print(
                    f"{what}: stages {outcome['stages_run']}, {passes} forward passes, {seconds:.1f} s, "
                    f"{seconds / first:.3f} of the first run",
                    flush=True,
                )

            refresh("nothing changed")
            project.change("finetune.epochs", 1)
            refresh("finetune.epochs changed")
            originals = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[
                :10
            ]
            for original in originals:
                with Image.open(original) as image:
                    image.convert("RGB").rotate(7).save(original.with_name(f"new-{original.stem}.png"))
            refresh("ten images more")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
