"""A project of two quick shell commands in place of real stages."""

from flows import repository
from regraft.project import create

GRAPH = """
stages:
  download:
    cmd: {download}
    params:
    - .regraft/inputs.json: [source, code.download]
    outs: [raw.txt]
    meta: {{pool: cpu, timeout_s: 60, retries: 2}}
  preprocess:
    cmd: {preprocess}
    deps: [raw.txt]
    params:
    - preprocess
    - .regraft/inputs.json: [code.preprocess]
    outs: [prepared.txt]
    meta: {{pool: gpu}}
"""


DOWNLOAD = "ls $SOURCE > raw.txt; echo download >> ran.txt"
PREPROCESS = "head -c 3 raw.txt > prepared.txt; echo preprocess >> ran.txt"


def write_graph(paths, *, download=DOWNLOAD, preprocess=PREPROCESS):
    source = paths.root.parent / "source"
    paths.graph.write_text(GRAPH.format(download=download.replace("$SOURCE", str(source)), preprocess=preprocess))


def make_quick_project(folder):
    """Make a project of two quick stages over a folder of two files; both lie in `folder`."""
    source = folder / "source"
    for label in ("cat", "dog"):
        (source / label).mkdir(parents=True)
        (source / label / "1.png").write_bytes(b"not looked into")
    paths = create(folder / "project", source=f"folder:{source}", name="pets", kind="image")
    write_graph(paths)
    repository.start_project(paths.root)
    return paths


def commands_run(paths):
    """Return the stages whose commands ran, oldest first, and forget them."""
    ran = paths.root / "ran.txt"
    names = ran.read_text().split() if ran.exists() else []
    ran.unlink(missing_ok=True)
    return names


def edit_settings(paths, before, after):
    text = paths.params.read_text("utf-8")
    assert before in text
    paths.params.write_text(text.replace(before, after), encoding="utf-8")
