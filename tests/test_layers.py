"""Imports go flows -> tasks -> regraft -> third party, and the quick commands stay quick."""

import ast
import re
import subprocess
import sys

import pytest

from regraft.paths import REPOSITORY

USES_DVC = re.compile(r"^flows/(repository|pipeline|imports|handover)\.py ")
FRONT_DOOR = {"regraft/cli.py", "regraft/console.py", "regraft/doctor.py"}  # the command line may call every layer


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def offenders(folder, forbidden):
    found = []
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        if name not in FRONT_DOOR:
            found += [f"{name} imports {module}" for module in imports_of(path) if module.split(".")[0] in forbidden]
    return found


def test_the_library_knows_neither_stages_nor_flows_nor_prefect_nor_dvc():
    assert offenders("regraft", {"tasks", "flows", "prefect", "dvc"}) == []


def test_stages_know_neither_flows_nor_prefect_nor_dvc_nor_mlflow():
    assert offenders("tasks", {"flows", "prefect", "dvc", "mlflow"}) == []


def test_flows_never_import_tensorflow_and_few_modules_import_dvc():
    assert offenders("flows", {"tensorflow", "keras", "keras_hub", "tensorflow_datasets"}) == []
    using_dvc = [line for line in offenders("flows", {"dvc", "dvc_objects", "dvc_data"}) if not USES_DVC.search(line)]
    assert using_dvc == []


def test_no_stage_name_is_written_in_flows():
    stages = {path.stem for path in (REPOSITORY / "tasks").glob("[!_]*.py")}
    for path in (REPOSITORY / "flows").glob("*.py"):
        constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert stages.isdisjoint(str(value) for value in constants), path


@pytest.mark.parametrize("module", ["regraft.cli", "flows.pipeline", "regraft.project", "regraft.registry.published"])
def test_quick_commands_import_nothing_heavy(module):
    heavy = ["tensorflow", "keras", "keras_hub", "mlflow", "prefect", "sklearn", "matplotlib", "pandas"]
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
