"""Planning and running on a graph of quick shell commands: what is stale, why, and what a failure says."""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows import pipeline, repository
from flows.history import prepared_data
from flows.logs import of_project
from regraft import fingerprint
from regraft.errors import RegraftError, ResourceError
from regraft.locking import is_running, project_lock
from regraft.paths import REPOSITORY, Paths
from regraft.project import create
from regraft.settings import load_settings
from tests.flows.quick_graph import commands_run, edit_settings, make_quick_project, write_graph


@pytest.fixture
def project(tmp_path):
    return make_quick_project(tmp_path)


def plan(paths):
    return {stage.name: stage for stage in pipeline.plan(paths.root)}


def run_all(paths):
    """Run what is stale as the flow does and return the stages whose commands ran."""
    commands_run(paths)
    for stage in pipeline.plan(paths.root):
        if stage.stale and pipeline.is_stale(paths.root, stage.name):
            pipeline.run_stage(paths.root, stage.name)
    return commands_run(paths)


def test_a_new_project_has_never_run_and_a_finished_one_is_clean(project):
    assert [stage.why[0] for stage in plan(project).values()] == ["has never run", "has never run"]
    assert run_all(project) == ["download", "preprocess"]
    assert [stage.stale for stage in plan(project).values()] == [False, False]
    assert run_all(project) == []


def test_routing_comes_from_the_graph_and_one_setting_overrides_it(project):
    stages = plan(project)
    assert (stages["download"].pool, stages["download"].timeout_s, stages["download"].retries) == ("cpu", 60, 2)
    assert (stages["preprocess"].pool, stages["preprocess"].retries) == ("gpu", 0)
    edit_settings(project, "pool: null", "pool: big")
    assert {stage.pool for stage in plan(project).values()} == {"big"}


def test_a_changed_setting_is_named_with_both_values_and_only_its_stages_are_stale(project):
    run_all(project)
    edit_settings(project, "test_fraction: 0.2 ", "test_fraction: 0.3 ")
    stages = plan(project)
    assert not stages["download"].stale
    assert stages["preprocess"].why == ("preprocess.test_fraction changed from 0.2 to 0.3",)
    assert run_all(project) == ["preprocess"]


def test_a_changed_source_is_noticed_and_a_touched_one_is_not(project):
    run_all(project)
    image = project.root.parent / "source" / "cat" / "1.png"
    os.utime(image)
    assert not plan(project)["download"].stale
    (image.parent / "2.png").write_bytes(b"one more")
    why = plan(project)["download"].why
    assert "source.files changed from 2 to 3" in why
    assert plan(project)["preprocess"].why == ("runs after download",)


def test_a_stage_whose_inputs_came_out_the_same_is_skipped(project):
    run_all(project)
    (project.root.parent / "source" / "cat" / "2.png").write_bytes(b"one more")  # `ls` lists the class folders only
    assert run_all(project) == ["download"]


def test_changed_code_and_a_changed_library_are_named(project, monkeypatch):
    run_all(project)
    known = fingerprint.code_fingerprint
    changed = {"regraft/data/images.py": "0" * 16, "pillow": "0.1"}
    monkeypatch.setattr(fingerprint, "code_fingerprint", lambda s: known(s) | (changed if s == "preprocess" else {}))
    stages = plan(project)
    assert not stages["download"].stale
    assert "code: regraft/data/images.py changed" in stages["preprocess"].why
    assert any(
        line.startswith("code: pillow changed from ") and line.endswith(" to 0.1") for line in stages["preprocess"].why
    )


def test_a_deleted_output_comes_back_from_the_cache_without_running(project):
    run_all(project)
    prepared = project.root / "prepared.txt"
    before = prepared.read_text()
    prepared.unlink()
    assert plan(project)["preprocess"].why == ("its output prepared.txt is deleted",)
    assert pipeline.run_stage(project.root, "preprocess") is False
    assert commands_run(project) == []
    assert prepared.read_text() == before


def test_settings_seen_before_are_restored_from_the_cache(project):
    run_all(project)
    edit_settings(project, "test_fraction: 0.2 ", "test_fraction: 0.3 ")
    run_all(project)
    edit_settings(project, "test_fraction: 0.3 ", "test_fraction: 0.2 ")
    assert run_all(project) == []
    assert not plan(project)["preprocess"].stale


def test_a_failing_stage_raises_its_last_lines_and_records_nothing(project):
    plan(project)
    pipeline.run_stage(project.root, "download")
    lines: list[str] = []
    script = project.root / "fail.sh"
    script.write_text('exec >> "$REGRAFT_LOG" 2>&1\necho first\necho the reason\nexit 3\n')
    write_graph(project, preprocess="exec sh fail.sh")
    with pytest.raises(pipeline.StageFailed, match=r"(?s)failed with exit code 3.*first.*the reason") as caught:
        pipeline.run_stage(project.root, "preprocess", on_line=lines.append)
    assert caught.value.exit_code == 1
    assert lines == ["first", "the reason"]
    assert plan(project)["preprocess"].why[0] == "has never run"


@pytest.mark.parametrize(("exit_code", "is_transient"), [(2, False), (75, True)])
def test_an_error_for_people_arrives_whole_and_says_whether_to_retry(project, exit_code, is_transient):
    script = project.root / "fail.sh"
    script.write_text(
        f'echo "noise\nerror: two classes are needed\n  found: cat" >> "$REGRAFT_LOG"; exit {exit_code}\n'
    )
    write_graph(project, download="exec sh fail.sh")
    plan(project)
    with pytest.raises(pipeline.StageFailed) as caught:
        pipeline.run_stage(project.root, "download")
    assert str(caught.value) == "stage download: two classes are needed\n  found: cat"
    assert caught.value.is_transient is is_transient


def test_a_killed_stage_is_called_killed(project):
    write_graph(project, download="exec sleep 60")
    plan(project)

    def kill_it():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    command = (process / "cmdline").read_bytes()
                except OSError:
                    continue  # it ended in the meantime
                if int(parent) == os.getpid() and command.startswith(b"sleep\x0060"):
                    os.kill(int(process.name), signal.SIGKILL)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_it)
    killer.start()
    with pytest.raises(pipeline.StageFailed, match="killed by SIGKILL"):
        pipeline.run_stage(project.root, "download")
    killer.join()


def test_forcing_an_unknown_stage_lists_the_known_ones(project):
    with pytest.raises(RegraftError, match=r"no stage nonsense; dvc\.yaml has download, preprocess"):
        pipeline.plan(project.root, force=("nonsense",))
    assert pipeline.plan(project.root, force=("preprocess",))[1].why[0] == "forced"


def test_a_folder_without_a_project_is_a_clear_error(tmp_path):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    with pytest.raises(RegraftError, match="is not a project"):
        pipeline.plan(tmp_path)


def test_a_project_needs_no_git_and_may_lie_in_a_git_repository(project, tmp_path):
    assert "no_scm" in (project.root / ".dvc" / "config").read_text()
    outer = tmp_path / "outer"
    subprocess.run(["git", "init", "-q", outer], check=True)
    inner = create(outer / "inner", source=f"folder:{tmp_path / 'source'}", name="pets", kind="image")
    write_graph(inner)
    repository.start_project(inner.root)
    assert run_all(inner) == ["download", "preprocess"]
    assert not (outer / ".dvc").exists()


def test_dvc_lock_holds_no_path_of_this_machine(project):
    write_graph(project, download="ls ../source > raw.txt")
    run_all(project)
    lock = project.lock.read_text()
    assert str(project.root.parent) not in lock
    assert str(REPOSITORY) not in lock


def write_through(link: Path, content: bytes) -> None:
    """Change a file of the cache through its link, which root may do although it is read-only."""
    link.chmod(0o644)
    link.write_bytes(content)
    link.chmod(0o444)


@pytest.mark.parametrize("is_seen", [True, False], ids=["as the plan shows", "and the plan does not show"])
def test_a_result_changed_through_its_link_into_the_cache_is_made_again(project, is_seen):
    run_all(project)
    result = project.root / "prepared.txt"
    if result.stat().st_nlink == 1:
        pytest.skip("the file system has no hard links")
    before = result.read_bytes()
    write_through(result, b"changed by hand")
    lines: list[str] = []
    if is_seen:
        assert plan(project)["preprocess"].why == ("its output prepared.txt is modified",)
    pipeline.run_stage(project.root, "preprocess", force=not is_seen, on_line=lines.append)
    assert lines == ["1 file(s) in the DVC cache were changed through their links in the project: made again"]
    assert result.read_bytes() == before
    assert run_all(project) == []


def test_the_link_type_told_is_the_one_used(project):
    run_all(project)
    links = (project.root / "prepared.txt").stat().st_nlink
    assert (repository.cache_link_type(project.root) == "hardlink") == (links > 1)


def test_a_full_disk_after_the_command_is_an_error_worth_a_retry(project, monkeypatch):
    plan(project)

    def no_room(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dvc.stage.Stage.save", no_room)
    with pytest.raises(ResourceError, match=r"could not be stored.*No space left on device.*make room"):
        pipeline.run_stage(project.root, "download")


def test_a_full_disk_in_the_stage_is_an_error_worth_a_retry(project):
    script = project.root / "fail.sh"
    script.write_text('echo "tensorflow: No space left on device" >> "$REGRAFT_LOG"; exit 1\n')
    write_graph(project, download="exec sh fail.sh")
    plan(project)
    with pytest.raises(pipeline.StageFailed, match="ran out of disk space") as caught:
        pipeline.run_stage(project.root, "download")
    assert caught.value.is_transient


def test_a_plan_made_while_a_run_is_at_work_leaves_its_inputs_alone(project):
    plan(project)
    before = project.inputs.read_text()
    (project.root.parent / "source" / "cat" / "2.png").write_bytes(b"one more")
    with project_lock(project):
        assert is_running(project)
        pipeline.plan(project.root, refresh=False)
    assert project.inputs.read_text() == before
    assert not is_running(project)


def test_the_run_lock_may_be_entered_again_by_its_holder_and_by_nobody_else(project):
    with project_lock(project), ThreadPoolExecutor(1) as pool:
        with project_lock(project):
            pass
        assert is_running(project)
        with pytest.raises(ResourceError, match=f"another process .{os.getpid()}. is at work"):
            pool.submit(lambda: project_lock(project).__enter__()).result()
    assert not is_running(project)


def test_a_run_may_wait_for_another_to_end(project):
    def enter(wait_s):
        with project_lock(project, wait_s=wait_s):
            return "entered"

    with ThreadPoolExecutor(2) as pool:
        with project_lock(project):
            patient, hasty = pool.submit(enter, 30.0), pool.submit(enter, 0.1)
            with pytest.raises(ResourceError, match="is at work"):
                hasty.result()
            assert not patient.done()
        assert patient.result() == "entered"


def test_what_changed_after_planning_is_noticed_by_the_stage_that_reads_it(project, monkeypatch):
    plan(project)
    settings = load_settings(project.params)
    assert fingerprint.moved_inputs(project, settings, "download") == []
    (project.root.parent / "source" / "cat" / "2.png").write_bytes(b"one more")
    assert fingerprint.moved_inputs(project, settings, "download") == ["the source"]
    assert fingerprint.moved_inputs(project, settings, "preprocess") == []
    monkeypatch.setattr(fingerprint, "code_fingerprint", lambda stage: {"regraft/data/images.py": "0" * 16})
    assert fingerprint.moved_inputs(project, settings, "preprocess") == ["the code"]


def test_a_damaged_file_of_fingerprints_is_written_anew(project):
    run_all(project)
    project.inputs.write_bytes(b'{"half": \xff')
    assert [stage.stale for stage in plan(project).values()] == [False, False]


@pytest.mark.parametrize(
    "damage", [b"\xff\x00", b"[1]", b'{"path": "$PATH"}', b'{"path": "$PATH", "files": {"cat/1.png": 3}}']
)
def test_a_damaged_index_of_the_source_is_no_more_than_forgotten(project, damage):
    run_all(project)
    index = project.state / "source-index.json"
    index.write_bytes(damage.replace(b"$PATH", str(project.root.parent / "source").encode()))
    assert [stage.stale for stage in plan(project).values()] == [False, False]


def test_a_folder_that_bears_the_name_of_the_model_is_not_taken_for_it(project, monkeypatch):
    (project.root.parent / "pets").mkdir()
    monkeypatch.chdir(project.root.parent)
    with pytest.raises(RegraftError, match=r"'pets' is the model and a folder, too: write pets@champion, or ./pets"):
        prepared_data(project, "pets").__enter__()
    with prepared_data(project, "./pets") as folder:
        assert folder.name == "pets"


def test_a_graph_without_stages_is_refused(project):
    project.graph.write_text("")
    with pytest.raises(RegraftError, match=r"dvc.yaml names no stage. Copy .*dvc.yaml over it"):
        plan(project)


def test_a_damaged_lock_file_is_an_error_with_advice(project):
    run_all(project)
    project.lock.write_text("stages: 3")
    with pytest.raises(RegraftError, match=r"dvc.lock.*take it back from git, or delete it"):
        plan(project)


def test_the_graph_of_a_project_made_for_other_code_is_refused_by_the_stage_it_fails(tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.png").write_bytes(b"not looked into")
    paths = create(tmp_path / "project", source=f"folder:{tmp_path / 'images'}", name="pets", kind="image")
    settings = load_settings(paths.params)
    fingerprint.require_current_graph(paths, settings, "evaluate")
    text = paths.graph.read_text("utf-8")
    paths.graph.write_text(text.replace("    - reports/speed.json\n", ""), encoding="utf-8")
    assert paths.graph.read_text("utf-8") != text
    with pytest.raises(RegraftError, match=r"made for another version.*reads or writes reports/speed.json\. Copy"):
        fingerprint.require_current_graph(paths, settings, "evaluate")
    fingerprint.require_current_graph(paths, settings, "finetune")


def test_an_interrupted_stage_is_no_fault_and_ends_like_any_interrupted_command(project):
    # As stages do: a process that was started in the background ignores the signal unless it says otherwise.
    (project.root / "interrupt.py").write_text(
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    write_graph(project, download="exec python interrupt.py")
    plan(project)
    with pytest.raises(pipeline.StageFailed, match="was interrupted; run again") as caught:
        pipeline.run_stage(project.root, "download")
    assert (caught.value.exit_code, caught.value.is_transient) == (130, False)


def test_a_project_in_a_folder_that_git_ignores_is_one_without_git(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("projects/\n")
    images = tmp_path / "images" / "cat"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"not looked into")
    paths = create(tmp_path / "projects" / "a", source=f"folder:{images.parent}", name="pets", kind="image")
    repository.start_project(paths.root)
    assert [stage.stale for stage in pipeline.plan(paths.root)] == [True] * 7


def test_a_stage_keeps_memory_for_the_next_step_unless_a_person_set_it_otherwise(project, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    write_graph(project, download='echo "$MALLOC_ARENA_MAX $MALLOC_MMAP_MAX_" > raw.txt')
    plan(project)
    pipeline.run_stage(project.root, "download")
    assert (project.root / "raw.txt").read_text() == "4 0\n"


def test_a_run_killed_while_it_wrote_the_list_of_files_in_use_keeps_no_other_from_running(project):
    run_all(project)
    (project.root / ".dvc" / "tmp" / "rwlock").write_text("")
    said: list[str] = []
    pipeline.run_stage(project.root, "download", force=True, on_line=said.append)
    assert commands_run(project) == ["download"]
    assert "made anew" in said[0]


def test_what_tensorflow_prints_while_it_starts_is_no_part_of_the_log_that_is_shown(tmp_path):
    paths = Paths(tmp_path)
    paths.logs.mkdir(parents=True)
    (paths.logs / "embed.log").write_text(
        "E0000 00:00:1795825673.757651   22 cuda.cc:52] failed call to cuInit\nembedded 8 examples\n"
    )
    assert list(of_project(paths, None)) == ["embed      embedded 8 examples"]
