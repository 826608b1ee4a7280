"""The hand-over between machines by a real SSH server on this one; needs sshd and DVC's extra `ssh`."""

import getpass
import importlib.util
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import handover, pipeline, workspace
from flows.handover import NotInRemote
from flows.workspace import Errand
from regraft.errors import ResourceError
from tests.flows.quick_graph import commands_run, make_quick_project
from tests.flows.test_handover import parcel_of, use_remote, workspace_of
from tests.test_services import free_port

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="there is no sshd (Debian: openssh-server)"),
    pytest.mark.skipif(importlib.util.find_spec("dvc_ssh") is None, reason="DVC's extra ssh is not installed"),
]


@contextmanager
def ssh_server(folder, port):
    """Serve SFTP on the loopback interface to who has the key `folder`/key."""
    folder.mkdir(exist_ok=True)
    for name in ("key", "host"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, wants to be locked up
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def project(tmp_path, monkeypatch, port):
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "worker"))
    paths = make_quick_project(tmp_path)
    login = {"keyfile": str(tmp_path / "ssh" / "key"), "user": getpass.getuser(), "allow_agent": False}
    use_remote(paths, f"ssh://127.0.0.1:{port}{tmp_path}/remote", **login)
    return paths


def test_a_stage_runs_elsewhere_and_a_lost_file_is_named(project, tmp_path, port):
    with ssh_server(tmp_path / "ssh", port):
        pipeline.plan(project.root)
        pipeline.run_stage(project.root, "download")
        handover.push(project.root, "download")
        result = workspace.run_errand(parcel_of(project), Errand(stage="preprocess"), lambda _: None)
        assert commands_run(workspace_of(project)) == ["preprocess"]
        handover.record(project.root, "preprocess", result["entry"])
        assert not (project.root / "prepared.txt").exists()
        assert handover.restore(project.root, "preprocess")
        assert (project.root / "prepared.txt").read_text() == "cat"

        shutil.rmtree(tmp_path / "worker")
        shutil.rmtree(tmp_path / "remote" / "files")
        with pytest.raises(NotInRemote, match=r"raw\.txt"):
            workspace.run_errand(parcel_of(project), Errand(stage="preprocess"), lambda _: None)


def test_a_server_that_is_down_is_one_sentence(project, tmp_path, port):
    pipeline.plan(project.root)
    pipeline.run_stage(project.root, "download")
    with ssh_server(tmp_path / "ssh", port):
        pass
    with pytest.raises(ResourceError, match=r"the DVC remote ssh://.* cannot be used now"):
        handover.push(project.root, "download")
    (tmp_path / "ssh" / "key").write_text("no key")
    with pytest.raises(ResourceError, match="Invalid private key"):
        handover.push(project.root, "download")
