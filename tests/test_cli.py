"""The front door: how commands end when something goes wrong."""

import subprocess
import sys

import pytest

from regraft.settings import load_settings

PROGRAM = """
import sys
from regraft import cli
from regraft.errors import DataError

@cli.app.command()
def fail(how: str) -> None:
    raise {"fault": KeyError("surprise"), "data": DataError("no such thing"), "stop": KeyboardInterrupt()}[how]

sys.argv = ["regraft", *sys.argv[1:]]
cli.main()
"""


def ends(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [("fault", 1, "unexpected KeyError"), ("data", 2, "error: no such thing"), ("stop", 130, "run again to go on")],
)
def test_a_command_that_fails_says_so_in_a_line_or_two_and_by_its_exit_code(how, code, says):
    done = ends("fail", how)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("how", ["fault", "data"])
def test_debug_shows_the_traceback(how):
    done = ends("fail", how, "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_new_project_takes_several_sources_and_dvc_reads_its_settings(tmp_path):
    for name in ("first", "second, third"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,b\n")
    given = [f"csv:{tmp_path}/first.csv", f"csv:{tmp_path}/second, third.csv"]
    command = [sys.executable, "-m", "regraft.cli", "init", str(tmp_path / "new"), "--name", "texts"]
    subprocess.run([*command, *(part for one in given for part in ("--source", one))], check=True, capture_output=True)
    plan = [sys.executable, "-m", "regraft.cli", "plan", "--root", str(tmp_path / "new")]
    subprocess.run(plan, check=True, capture_output=True)
    assert load_settings(tmp_path / "new" / "params.yaml").download.source == given


def test_a_project_in_place_of_a_file_and_a_path_that_cannot_be_are_mistakes_of_the_user(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for directory in ("taken", "taken/below"):
        command = [sys.executable, "-m", "regraft.cli", "init", str(tmp_path / directory)]
        done = subprocess.run(
            [*command, "--source", "package:mnist5k", "--name", "a"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "taken" in done.stderr
        assert "unexpected" not in done.stderr
