"""What a run with nothing to do may load."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.errors import RegistryError
from regraft.paths import REPOSITORY
from regraft.registry import published, tracking
from regraft.registry.register import publish
from tests.registry.small_projects import LINEAGE, Project, Server

HEAVY = "{'mlflow', 'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib', 'requests', 'sqlalchemy'}"

ASK = f"""
import sys
from pathlib import Path
from regraft.paths import Paths
from regraft.settings import Settings
from regraft.registry.published import is_published
settings = Settings.model_validate({{"name": "colours", "tracking": {{"uri": sys.argv[2] or None}}}})
assert is_published(Paths(Path(sys.argv[1])), settings, sys.argv[3])
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
"""

PUBLISH = """
import sys
from pathlib import Path
from regraft.paths import Paths
from regraft.settings import Settings
from regraft.registry.register import publish
assert "mlflow" not in sys.modules
assert publish(Paths(Path(sys.argv[1])), Settings(name="colours"), {}, sys.argv[2]).promoted
assert not {"tensorflow", "keras", "sklearn", "matplotlib"} & set(sys.modules)
"""


def test_asking_whether_a_model_is_published_imports_nothing_heavy(
    make_project: Callable[..., Project], tmp_path: Path, server: Server
) -> None:
    for uri in (server.uri, None):
        project = make_project(tmp_path / ("server" if uri else "file"), uri=uri)
        publish(project.paths, project.settings, LINEAGE, project.fingerprint)
        command = [sys.executable, "-c", ASK, str(project.paths.root), uri or "", project.fingerprint]
        subprocess.run(command, cwd=REPOSITORY, check=True)


def test_publishing_keeps_tensorflow_out_of_the_process(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(tmp_path)
    command = [sys.executable, "-c", PUBLISH, str(tmp_path), project.fingerprint]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def test_a_web_page_is_not_taken_for_an_answer(monkeypatch):
    monkeypatch.setattr(tracking, "get", lambda uri, path: (200, b"<html>Please sign in</html>"))
    with pytest.raises(RegistryError, match=r"answers, but not as an MLflow server does: '<html>Please"):
        published._answer("http://mlflow", "/api")
