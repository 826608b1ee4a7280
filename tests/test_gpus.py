"""GPUs are leased to one stage each; the devices here are pretended."""

import os
import subprocess
import sys
import time

import pytest

from regraft import gpus
from regraft.errors import SettingsError

HOLD = """
import os, sys
from pathlib import Path
from regraft import gpus
from regraft.gpus import VISIBLE, leased
gpus.LOCKS = Path(os.environ["LOCKS"])
with leased(int(sys.argv[1]), lambda line: print(line, flush=True)) as seen:
    print("has", seen[VISIBLE], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def two_devices(monkeypatch, tmp_path):
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    monkeypatch.setattr(gpus, "LOCKS", tmp_path)
    monkeypatch.setenv("LOCKS", str(tmp_path))  # of HOLD


def holder(count, script=HOLD):
    command = [sys.executable, "-c", script, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_two_stages_get_different_devices_and_a_third_waits_until_one_dies():
    first, second = holder(1), holder(1)
    assert sorted([first.stdout.readline(), second.stdout.readline()]) == ["has 0\n", "has 1\n"]
    third = holder(1)
    assert third.stdout.readline() == "waiting for 1 free GPU(s): all of 0, 1 are leased\n"
    first.kill()
    first.wait()
    assert third.stdout.readline().startswith("has ")
    for process in (second, third):
        process.communicate("")
        assert process.returncode == 0


def test_two_stages_that_want_both_devices_take_turns():
    first = holder(2)
    assert first.stdout.readline() == "has 0,1\n"
    second = holder(2)
    assert second.stdout.readline().startswith("waiting for 2 free")
    first.communicate("")
    assert second.stdout.readline() == "has 0,1\n"
    second.communicate("")


def test_a_lease_does_not_outlive_its_holder_in_a_process_that_it_started():
    child = "    import subprocess; subprocess.Popen(['sleep', '20'])\n"
    first = holder(2, HOLD.replace("    sys.stdin.read()", child + "    sys.stdin.read()"))
    assert first.stdout.readline() == "has 0,1\n"
    time.sleep(0.5)
    first.kill()
    first.wait()
    with gpus.leased(2, lambda _: pytest.fail("the sleeping child holds the lease")) as seen:
        assert seen == {gpus.VISIBLE: "0,1"}


def test_a_stage_that_wants_none_sees_none_and_more_than_there_are_is_an_error():
    with gpus.leased(0, print) as seen:
        assert seen == {gpus.VISIBLE: "-1"}
    with (
        pytest.raises(SettingsError, match=r"placement\.gpus is 3, but this machine shows 2 GPU\(s\) \(0, 1\)"),
        gpus.leased(3, print),
    ):
        pass


def test_without_gpus_nothing_is_said_to_a_stage(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "-1")
    with gpus.leased(1, print) as seen:
        assert seen == {}
