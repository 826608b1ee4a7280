"""Stages that run on another machine, without one: what is sent, what comes back, and what may go wrong between."""

import json
import shutil
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows import handover, pipeline, pools, repository, workspace
from flows.deploy import deploy
from flows.handover import NotInRemote
from flows.retrain import require_same_settings, retrain
from flows.workspace import Errand
from regraft import fingerprint
from regraft.errors import RegraftError, ResourceError, SettingsError
from regraft.paths import Paths
from regraft.settings import load_settings
from tests.flows.quick_graph import commands_run, edit_settings, make_quick_project, write_graph


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a DVC remote, whose first stage has run here and was pushed."""
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "worker"))
    paths = make_quick_project(tmp_path)
    use_remote(paths, str(tmp_path / "remote"))
    pipeline.plan(paths.root)
    pipeline.run_stage(paths.root, "download")
    handover.push(paths.root, "download")
    return paths


def use_remote(paths, url, **options):
    with repository.open_repository(paths) as repo, repo.config.edit("repo") as config:
        config["core"]["remote"] = "store"
        config["remote"]["store"] = {"url": url, **options}


def parcel_of(paths):
    remote = handover.remote_of(paths.root)
    assert remote is not None
    return workspace.pack(paths, "pets", remote)


def run_elsewhere(paths, stage="preprocess", **options):
    """Run a stage as a worker does; return its result and what it said."""
    said: list[str] = []
    result = workspace.run_errand(parcel_of(paths), Errand(stage=stage, **options), said.append)
    return json.loads(json.dumps(result)), said


def workspace_of(paths, machine="worker"):
    [folder] = (paths.root.parent / machine / "workspaces").iterdir()
    return Paths(folder)


def test_a_stage_that_ran_elsewhere_is_recorded_without_its_data(project):
    result, _ = run_elsewhere(project)
    assert commands_run(workspace_of(project)) == ["preprocess"]
    handover.record(project.root, "preprocess", result["entry"])
    assert not (project.root / "prepared.txt").exists()
    assert (workspace_of(project).root / "prepared.txt").read_text() == "cat"
    assert [stage.stale for stage in pipeline.plan(project.root, data_elsewhere=True)] == [False, False]
    assert pipeline.plan(project.root)[1].why == ("its output prepared.txt is not in cache",)


def test_with_data_elsewhere_what_changed_is_still_seen(project):
    handover.record(project.root, "preprocess", run_elsewhere(project)[0]["entry"])
    (project.root.parent / "source" / "bird").mkdir()
    (project.root.parent / "source" / "bird" / "1.png").write_bytes(b"new")
    stages = pipeline.plan(project.root, data_elsewhere=True)
    assert (stages[0].stale, stages[1].why) == (True, ("runs after download",))
    pipeline.run_stage(project.root, "download")
    assert pipeline.is_stale(project.root, "preprocess", data_elsewhere=True)


def test_what_is_known_to_the_remote_is_not_run_again_on_a_third_machine(project, monkeypatch):
    first, _ = run_elsewhere(project)
    monkeypatch.setenv("REGRAFT_STATE", str(project.root.parent / "other"))
    again, _ = run_elsewhere(project)
    assert again["entry"] == first["entry"]
    assert commands_run(workspace_of(project, "other")) == []
    run_elsewhere(project, force=True)
    assert commands_run(workspace_of(project, "other")) == ["preprocess"]


def test_a_changed_setting_is_not_taken_for_one_whose_result_is_known(project):
    first, _ = run_elsewhere(project)
    handover.record(project.root, "preprocess", first["entry"])
    commands_run(workspace_of(project))
    edit_settings(project, "test_fraction: 0.2 ", "test_fraction: 0.3 ")
    pipeline.plan(project.root, data_elsewhere=True)
    second, _ = run_elsewhere(project)
    assert commands_run(workspace_of(project)) == ["preprocess"]
    assert second["entry"]["params"] != first["entry"]["params"]
    edit_settings(project, "test_fraction: 0.3 ", "test_fraction: 0.2 ")
    assert run_elsewhere(project)[0]["entry"] == first["entry"]
    assert commands_run(workspace_of(project)) == []


def test_an_entry_comes_back_to_the_machine_that_has_the_project(project):
    handover.record(project.root, "preprocess", run_elsewhere(project)[0]["entry"])
    assert handover.restore(project.root, "preprocess")
    assert commands_run(project) == ["download"]
    assert (project.root / "prepared.txt").read_text() == "cat"


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_what_the_remote_lost_is_named_and_can_be_made_again(project, what):
    [stored] = [file for file in (project.root.parent / "remote" / "files").rglob("*") if file.is_file()]
    stored.chmod(0o644)
    if what == "missing":
        stored.unlink()
    else:
        stored.write_bytes(b"sat\ndog\n")
    with pytest.raises(NotInRemote, match=r"raw\.txt is not in the DVC cache of this machine, nor, whole") as caught:
        run_elsewhere(project)
    assert caught.value.outputs == ("raw.txt",)
    assert not (workspace_of(project).root / "raw.txt").exists()
    assert pipeline.makers(project.root, caught.value.outputs) == ["download"]
    pipeline.run_stage(project.root, "download", force=True)
    handover.push(project.root, "download", repair=True)
    run_elsewhere(project)
    assert commands_run(workspace_of(project)) == ["preprocess"]


def test_a_worker_of_another_version_refuses_and_names_what_differs(project, monkeypatch):
    other = fingerprint.code_fingerprint("preprocess") | {"pillow": "0.1"}
    monkeypatch.setattr("flows.workspace.code_fingerprint", lambda _: other)
    with pytest.raises(RegraftError, match=r"another version of Regraft.*these differ: pillow\. Install the same"):
        run_elsewhere(project)


def test_another_machine_goes_on_from_the_checkpoints_of_one_that_died(project, monkeypatch, tmp_path):
    """The stage leaves two files, the second time over the first, and dies; then it finds what it left elsewhere."""
    fingerprint_of = fingerprint.stage_fingerprint
    script = tmp_path / "stage.sh"
    write_graph(project, preprocess=f"sh {script} $PWD/.scratch/preprocess-*")
    pipeline.plan(project.root)
    scratch = project.scratch_of("preprocess", fingerprint_of(project, "preprocess")).name
    script.write_text(
        f"mkdir -p .scratch/{scratch}; cd .scratch/{scratch}; echo 1 > step; sleep 2; echo 2 > step.new; "
        "mv step.new step; echo x > half.part; sleep 3; exit 3"
    )
    with pytest.raises(pipeline.StageFailed):
        run_elsewhere(project, checkpoints_s=1.0)
    kept = tmp_path / "remote" / "checkpoints" / workspace.home_of(project) / scratch
    assert {file.name: file.read_text() for file in kept.iterdir()} == {"step": "2\n"}

    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "other"))
    script.write_text(f"cp .scratch/{scratch}/step prepared.txt")
    _, said = run_elsewhere(project, checkpoints_s=1.0)
    assert "going on from 1 checkpoint file(s) that another machine left in the remote" in said
    assert (workspace_of(project, "other").root / "prepared.txt").read_text() == "2\n"
    assert not kept.exists()


def test_a_failing_stage_leaves_its_reason_and_nothing_in_the_remote(project):
    write_graph(project, preprocess="echo no luck; exit 3")
    remote = project.root.parent / "remote"
    before = sorted(remote.rglob("*"))
    with pytest.raises(pipeline.StageFailed, match="stage preprocess failed with exit code 3"):
        run_elsewhere(project)
    assert sorted(remote.rglob("*")) == before


def test_a_remote_that_is_away_is_one_sentence(project, tmp_path):
    (tmp_path / "file").write_text("in the way")
    use_remote(project, str(tmp_path / "file" / "remote"))
    with pytest.raises(ResourceError, match=r"the DVC remote .*file/remote (cannot be used now|did not take)"):
        handover.push(project.root, "download")


def test_a_changed_definition_is_another_key_and_a_result_of_the_old_one_is_refused(project):
    old = run_elsewhere(project)[0]["entry"]
    about = fingerprint.stage_fingerprint(project, "preprocess")
    write_graph(project, preprocess="cp raw.txt prepared.txt")
    assert fingerprint.stage_fingerprint(project, "preprocess") != about
    with pytest.raises(ResourceError, match="of stage preprocess changed while it ran"):
        handover.record(project.root, "preprocess", old)
    handover.record(project.root, "preprocess", run_elsewhere(project)[0]["entry"])
    assert not any(stage.stale for stage in pipeline.plan(project.root, data_elsewhere=True))
    project.graph.write_text(
        project.graph.read_text().replace("outs: [prepared.txt]", "outs: [prepared.txt, more.txt]")
    )
    assert pipeline.plan(project.root, data_elsewhere=True)[1].why == ("its output more.txt is new",)


def test_a_file_that_no_stage_makes_is_named(project):
    assert pipeline.made_by_no_stage(project.root) == {}
    project.graph.write_text(project.graph.read_text().replace("deps: [raw.txt]", "deps: [raw.txt, extra.csv]"))
    assert pipeline.made_by_no_stage(project.root) == {"preprocess": ["extra.csv"]}


@pytest.mark.parametrize("left", ["rwlock cut short", "rwlock of a living process", "no config"])
def test_what_a_killed_run_left_in_a_workspace_keeps_no_later_one_out(project, left):
    run_elsewhere(project)
    dvc = workspace_of(project).root / ".dvc"
    if left == "no config":
        (dvc / "config").unlink()
    else:
        (dvc / "tmp").mkdir(exist_ok=True)
        held = {str(workspace_of(project).root / "raw.txt"): {"write": {"pid": 1, "cmd": "run"}}}
        (dvc / "tmp" / "rwlock").write_text("{" if left == "rwlock cut short" else json.dumps(held))
    commands_run(workspace_of(project))
    run_elsewhere(project, force=True)
    assert commands_run(workspace_of(project)) == ["preprocess"]


def test_settings_that_change_in_a_run_end_it_before_anything_is_registered(project):
    settings = load_settings(project.params)
    require_same_settings(project, settings)
    edit_settings(project, "seed: 7", "seed: 9")
    with pytest.raises(ResourceError, match="changed while this run was at work; nothing was registered"):
        require_same_settings(project, settings)


def test_a_copy_of_a_project_is_another_home(project, tmp_path):
    home = workspace.home_of(project)
    assert workspace.home_of(project) == home
    shutil.copytree(project.root, tmp_path / "copy")
    assert workspace.home_of(Paths(tmp_path / "copy")) != home


@pytest.mark.parametrize(
    ("url", "said"), [("ssh://anna:hidden@host/place", "holds a password"), ("remote://base/x", "by way of another")]
)
def test_a_remote_that_cannot_be_sent_is_refused(project, url, said):
    use_remote(project, url)
    with pytest.raises(RegraftError, match=said) as caught:
        handover.remote_of(project.root)
    assert "hidden" not in str(caught.value)


def test_secrets_stay_on_the_machine_that_has_them(project):
    use_remote(project, "s3://bucket/place", region="eu-central-1", secret_access_key="hidden")  # noqa: S106
    remote = handover.remote_of(project.root)
    assert remote is not None
    assert (remote["name"], remote["url"], remote["region"]) == ("store", "s3://bucket/place", "eu-central-1")
    assert "hidden" not in json.dumps(remote)


def test_without_what_machines_share_pools_are_refused_with_what_to_do(tmp_path, monkeypatch):
    paths = make_quick_project(tmp_path)
    settings = load_settings(paths.params)
    with pytest.raises(SettingsError, match="needs a Prefect server"):
        pools.open_pools(paths, settings)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        with pytest.raises(SettingsError, match="a file of this machine"):
            pools.open_pools(paths, settings)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:1")
        with pytest.raises(SettingsError, match=r"holds a password") as caught:
            pools.open_pools(paths, settings)
        assert "secret" not in str(caught.value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        with pytest.raises(SettingsError, match="dvc remote add --default"):
            pools.open_pools(paths, settings)
        use_remote(paths, str(tmp_path / "remote"))
        opened = pools.open_pools(paths, settings)
    assert opened._only_here("download") == f"the source folder:{Path(tmp_path) / 'source'}"
    pipeline.plan(paths.root)
    assert opened._only_here("preprocess") == ""


def lose(paths, *contents):
    """Delete the files of these contents from the remote."""
    for file in (paths.root.parent / "remote" / "files").rglob("*"):
        if file.is_file() and file.read_text() in contents:
            file.unlink()


def test_all_that_the_remote_lost_is_found_at_once_and_comes_back_from_caches(project, monkeypatch):
    handover.record(project.root, "preprocess", run_elsewhere(project)[0]["entry"])
    assert handover.missing(project.root, ["download", "preprocess"]) == []
    lose(project, "cat\ndog\n", "cat")
    commands_run(project)
    commands_run(workspace_of(project))
    assert handover.missing(project.root, ["download", "preprocess"]) == ["raw.txt", "prepared.txt"]
    assert pipeline.ancestors(project.root, ["preprocess"]) == ["download"]

    opened = pools.Pools(project, load_settings(project.params), handover.remote_of(project.root) or {}, "")
    sent: list[str] = []
    said: list[str] = []

    def dispatch(_deployment, _name, _key, parameters, on_line):
        parcel, errand = workspace.Parcel(**parameters["parcel"]), Errand(**parameters["errand"])
        sent.append(errand.stage)
        return workspace.run_errand(parcel, errand, on_line)

    monkeypatch.setattr(opened, "dispatch", dispatch)
    opened._make_again(NotInRemote("prepared.txt is gone", ["prepared.txt"]), said.append)
    assert handover.missing(project.root, ["download", "preprocess"]) == []
    assert sent == ["preprocess"]  # what download made is in the project's own cache
    assert commands_run(project) == commands_run(workspace_of(project)) == []
    assert any("is in the cache of" in line for line in said)


def test_a_cache_whose_copy_is_damaged_brings_nothing_back(project):
    assert handover.holds(project.root, "download")
    [cached] = [file for file in (project.root / ".dvc" / "cache" / "files").rglob("*") if file.is_file()]
    cached.chmod(0o644)
    cached.write_text("sat\ndog\n")
    cached.chmod(0o444)
    assert not handover.holds(project.root, "download")
    assert not handover.holds(project.root, "preprocess")


def test_a_remote_is_tried_by_writing_and_nothing_stays_there(project, tmp_path, monkeypatch):
    before = sorted((tmp_path / "remote").rglob("*"))
    handover.check_remote(project.root)
    assert sorted((tmp_path / "remote").rglob("*")) == before
    (tmp_path / "file").write_text("in the way")
    use_remote(project, str(tmp_path / "file" / "remote"))
    with pytest.raises(ResourceError, match="cannot be used now"):
        handover.check_remote(project.root)

    def refuse(*_):
        raise PermissionError("Access Denied")

    use_remote(project, str(tmp_path / "remote"))
    monkeypatch.setattr("dvc_objects.fs.local.LocalFileSystem.upload_fobj", refuse)
    with pytest.raises(RegraftError, match="refuses this machine's login: Access Denied") as caught:
        handover.check_remote(project.root)
    assert caught.value.exit_code == 2


def test_a_project_for_several_machines_is_not_deployed_with_a_remote_that_takes_nothing(project, tmp_path):
    edit_settings(project, "mode: local", "mode: pools")
    (tmp_path / "file").write_text("in the way")
    use_remote(project, str(tmp_path / "file" / "remote"))
    with pytest.raises(ResourceError, match=r"the DVC remote .*file/remote cannot be used now"):
        deploy(project, load_settings(project.params), "http://127.0.0.1:1/api", None, "UTC")


def test_a_run_for_a_folder_that_is_no_project_says_so_in_one_sentence(tmp_path):
    with disable_run_logger(), pytest.raises(SettingsError, match=r"nowhere/params\.yaml does not exist\. Run this in"):
        retrain.fn(root=str(tmp_path / "nowhere"))
