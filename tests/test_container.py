"""What can be proven about the image without an engine to build it."""

import re
import shlex

from regraft.paths import REPOSITORY

LINES = re.sub(r"\\\n", " ", (REPOSITORY / "Dockerfile").read_text("utf-8")).splitlines()


def test_every_path_it_copies_exists_and_is_let_through_by_dockerignore():
    lines = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = []
    for line in LINES:
        if line.startswith("COPY ") and "--from" not in line:
            copied += shlex.split(line)[1:-1]
    assert {"requirements.lock", "flows", "params.yaml"} <= set(copied)
    for path in copied:
        assert (REPOSITORY / path).exists(), path
        assert path in allowed, path


def test_it_ends_as_a_numbered_user_without_privileges():
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 10001"]


def test_each_variant_installs_a_lock_file_with_hashes_and_no_registry_address():
    script = next(line for line in LINES if "--require-hashes" in line)
    for name in re.findall(r"lock=(\S+)", script):
        content = (REPOSITORY / name).read_text("utf-8")
        assert "--hash=sha256:" in content
        assert "http" + "s://" not in content
        assert "index-url" not in content
        assert re.search(r"^hatchling==", content, re.MULTILINE)  # the project is built without a download
    assert re.search(r"^nvidia-cudnn-cu12==", (REPOSITORY / "requirements-gpu.lock").read_text(), re.MULTILINE)
