"""A whole project on two workers that share nothing but servers and a DVC remote, and a third machine after them."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from regraft import services
from regraft.processes import stop
from tests.file_server import serving
from tests.project import Project, draw_images
from tests.test_services import free_port, regraft

SETTINGS = {
    "backbone.name": "cnn_small",
    "backbone.mode": "scratch",
    "embed.image_size_px": 48,
    "finetune.epochs": 1,
    "finetune.batch_size": 16,
    "finetune.learning_rate": 0.001,
    "evaluate.bootstrap_samples": 100,
    "placement.mode": "pools",
}


@contextmanager
def machine(folder, pool):
    """Work for `pool` from a folder and with a state of its own, as another machine would."""
    folder.mkdir()
    known = services.load()
    environment = {
        "REGRAFT_STATE": str(folder),
        "PREFECT_API_URL": known["prefect"].address,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-P", "-m", "flows.worker", "--pool", pool]
        worker = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
        try:
            yield folder
        finally:
            worker.terminate()
            worker.wait(timeout=60)


def runs_of(flow):
    """Return the names of the runs of a flow that the server knows."""
    address = services.load()["prefect"].address
    asked = httpx.post(f"{address}/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}}, timeout=30)
    return sorted(run["name"] for run in asked.json())


@pytest.mark.slow
def test_two_workers_run_each_stage_once_and_the_one_who_asks_holds_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "state"))
    draw_images(tmp_path / "images", per_class=20)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "images")
    project = Project(tmp_path / "project")
    with serving() as server:
        server.files["/images.zip"] = Path(archive).read_bytes()
        try:
            regraft("up", "--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
            for pool in ("cpu", "gpu"):
                stop(services.mark_of(f"worker-{pool}"))
            source = f"folder:{server.url('/images.zip')}"
            regraft("init", str(project.root), "--source", source, "--kind", "image", "--name", "discs")
            for setting, value in SETTINGS.items():
                project.change(setting, value)
            dvc = [sys.executable, "-m", "dvc", "--cd", str(project.root)]
            subprocess.run([*dvc, "remote", "add", "--default", "store", str(tmp_path / "remote")], check=True)
            project.regraft("deploy")
            with machine(tmp_path / "cpu-machine", "cpu"), machine(tmp_path / "gpu-machine", "gpu"):
                outcome = project.facts("run")
                assert outcome["publication"]["promoted"]
                names = [stage["name"] for stage in project.facts("plan")["stages"]]
                assert (outcome["stages_run"], outcome["stages_restored"]) == (names, [])
                assert runs_of("run-stage") == sorted(f"discs {name}" for name in names)
                assert project.facts("run")["stages_run"] == []
                assert len(runs_of("run-stage")) == len(names)
                assert len(runs_of("publish")) == 1
            here = {path.name for path in project.root.iterdir()}
            assert here.isdisjoint({"data", "models", "features", "imports", "mlflow.db"})
            assert [path.name for path in (project.root / "reports").iterdir()] == ["promotion.json"]
            assert list((tmp_path / "gpu-machine").glob("workspaces/*/features"))
            assert not list((tmp_path / "cpu-machine").glob("workspaces/*/features"))

            third = Project(tmp_path / "third")
            (third.root / ".dvc").mkdir(parents=True)
            for name in ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc/config"):
                shutil.copy(project.root / name, third.root / name)
            third.change("placement.mode", "local")
            outcome = third.facts("run")
            assert (outcome["stages_run"], outcome["stages_restored"]) == ([], names)
            assert outcome["publication"]["version"] == 1
            assert (third.root / "dvc.lock").read_text() == (project.root / "dvc.lock").read_text()
            said = project.regraft("logs", "finetune").stdout
            assert "dispatched as run discs finetune" in said
            assert json.loads(project.regraft("plan", "--json").stdout)["stages"][-1]["estimate_s"] > 0
        finally:
            regraft("down")
