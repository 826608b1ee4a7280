"""Processes that outlive the command which started them are known again, and nothing else is taken for them."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from regraft.processes import Process, start, stop, with_mark

SLEEP = "import time; time.sleep(60)"
FAMILY = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print("born", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('born', flush=True); time.sleep(60)"


@pytest.fixture
def mark(tmp_path):
    yield f"{tmp_path}:test"
    stop(f"{tmp_path}:test")


def begin(program, mark, tmp_path, **environment):
    """Start a Python program, and return when it has printed a line."""
    log = tmp_path / "logs" / "log"
    process = start([sys.executable, "-c", program], mark=mark, log=log, folder=tmp_path, environment=environment)
    while not log.read_text():
        assert process.is_alive
        time.sleep(0.02)
    return process


def test_a_process_and_what_it_began_in_another_session_are_ended(tmp_path, mark):
    process = begin(FAMILY, mark, tmp_path)
    family = with_mark(mark)
    assert process.is_alive
    assert len(family) == 2
    assert stop(mark) == 2
    assert not process.is_alive
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)


def test_what_a_dead_process_has_left_is_ended(tmp_path, mark):
    process = begin(FAMILY, mark, tmp_path)
    psutil.Process(process.pid).kill()
    assert stop(mark) >= 1
    assert with_mark(mark) == []


def test_one_that_ignores_sigterm_is_killed(tmp_path, mark, monkeypatch):
    monkeypatch.setattr("regraft.processes.GRACE_S", 1.0)
    process = begin(DEAF, mark, tmp_path)
    assert stop(mark) == 1
    assert not process.is_alive


def test_only_processes_of_the_very_mark_are_ended(tmp_path, mark):
    other = begin(FAMILY, mark + "2", tmp_path)
    assert stop(mark) == 0
    assert other.is_alive
    assert stop(mark + "2") == 2


def test_another_process_that_has_the_id_now_is_not_taken_for_the_one_that_died():
    own = psutil.Process()
    assert Process(own.pid, own.create_time(), "m").is_alive
    assert not Process(own.pid, own.create_time() - 60, "m").is_alive
    ended = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(ended.pid).create_time()
    ended.wait()
    assert not Process(ended.pid, created, "m").is_alive


def test_a_process_gets_its_variables_and_lives_apart_from_this_session(tmp_path, mark):
    program = "import os; print(os.environ['COLOUR'], os.getcwd(), os.getsid(0) == os.getpid(), flush=True);" + SLEEP
    begin(program, mark, tmp_path, COLOUR="blue")
    assert (tmp_path / "logs" / "log").read_text() == f"blue {tmp_path} True\n"
    assert os.environ.get("COLOUR") is None
