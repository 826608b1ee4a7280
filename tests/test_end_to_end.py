"""Whole runs through the command line, on drawn discs and a tiny random backbone, against a real registry."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.backbones.tiny import make_image_preset, make_text_preset
from tests.project import Project, draw_images, make_project
from tests.sounds import record_tones
from tests.test_services import free_port

STAGES = ["download", "preprocess", "choose", "backbone", "embed", "finetune", "evaluate"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    """One Prefect server for all runs but those of tests that ask for `without_a_server`: each would start its own."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        deadline = time.monotonic() + 120
        while not is_healthy(port):
            assert server.poll() is None, "the Prefect server ended"
            assert time.monotonic() < deadline, "the Prefect server does not answer"
            time.sleep(0.2)
        yield
    server.terminate()
    server.wait(30)


def is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def without_a_server(monkeypatch):
    """Runs start a Prefect server of their own, as those of a person do who has none."""
    monkeypatch.delenv("PREFECT_API_URL")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project that has run once, and what that run said. Tests must not change it: see `copy`."""
    folder = tmp_path_factory.mktemp("discs")
    draw_images(folder / "images")
    project = make_project(
        folder / "project", source=f"folder:{folder / 'images'}", preset=make_image_preset(folder / "preset")
    )
    return project, project.facts("run")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished project, source included, that a test may change."""
    project, _ = finished
    shutil.copytree(project.root.parent, tmp_path / "copy", symlinks=True)
    moved = Project(tmp_path / "copy" / "project")
    moved.change("download.source", f"folder:{tmp_path / 'copy' / 'images'}")
    return moved


def test_one_run_makes_a_champion_with_an_honest_number(finished):
    project, outcome = finished
    assert outcome["stages_run"] == STAGES
    assert outcome["publication"]["promoted"]
    test = project.report("metrics.json")["test"]
    for name in ("accuracy", "precision", "recall", "f1"):
        assert 0 <= test[name]["low"] <= test[name]["value"] <= test[name]["high"] <= 1
    with (project.paths.reports / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert test["accuracy"]["value"] == np.mean([row["label"] == row["predicted"] for row in rows])
    assert "<html" in (project.paths.reports / "report.html").read_text("utf-8")
    models = project.facts("models")["models"]
    assert [(model["version"], model["aliases"]) for model in models] == [(1, ["champion"])]


@pytest.mark.usefixtures("without_a_server")
def test_a_second_run_has_nothing_to_do(finished):
    project, _ = finished
    lock = sha256(project.paths.lock)
    assert not any(stage["stale"] for stage in project.facts("plan")["stages"])
    outcome = project.facts("run")
    assert outcome["stages_run"] == []
    assert outcome["publication"]["version"] == 1
    assert sha256(project.paths.lock) == lock


def test_a_consumer_needs_mlflow_and_tensorflow_only_and_sends_raw_bytes(finished, tmp_path):
    project, _ = finished
    image = next((project.root.parent / "images" / "red").glob("*.png"))
    program = f"""
        import sys, mlflow
        mlflow.set_tracking_uri("sqlite:///{project.root}/mlflow.db")
        model = mlflow.pyfunc.load_model("models:/discs@champion")
        answer = model.predict({{"image": [open({str(image)!r}, "rb").read()] * 3}})
        assert list(answer.columns) == ["label", "probability", "probabilities", "set"], answer
        assert all(row.label in row.set for row in answer.itertuples())
        assert len(answer) == 3 and set(answer.label) == {{answer.label[0]}}
        assert abs(sum(answer.probabilities[0].values()) - 1) < 1e-5
        assert answer.label[0] == max(answer.probabilities[0], key=answer.probabilities[0].get)
        ours = [name for name in sys.modules if name.split(".")[0] in ("regraft", "tasks", "flows", "keras_hub")]
        assert not ours, ours
    """
    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)


def test_predict_answers_files_and_names_one_it_cannot_read(finished, tmp_path):
    project, _ = finished
    image = next((project.root.parent / "images" / "blue").glob("*.png"))
    answers = project.facts("predict", "discs@champion", str(image), str(image))["predictions"]
    assert [answer["input"] for answer in answers] == [str(image)] * 2
    assert answers[0]["label"] in ("blue", "green", "red")
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    done = project.regraft("predict", "discs", str(broken), check=False)
    assert done.returncode == 2
    assert "broken.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_scoring_answers_a_folder_says_whether_it_drifted_and_as_a_flow_tells_prefect(finished, tmp_path):
    project, _ = finished
    outcome = project.facts("score", "discs", str(project.root.parent / "images"), str(tmp_path / "answers"))
    assert (outcome["rows"], outcome["failed"], outcome["finished"]) == (90, 0, True)
    assert not [row["what"] for row in outcome["drift"] if row["drifted"]]

    draw_images(tmp_path / "red", per_class=40, first=1000)
    program = f"""
        import json
        from flows.score import score
        from prefect.client.orchestration import get_client
        outcome = score({str(tmp_path / "red" / "red")!r}, {str(tmp_path / "more")!r}, root={str(project.root)!r})
        artifacts = get_client(sync_client=True).read_artifacts()
        print(json.dumps([outcome, [artifact.key for artifact in artifacts]]))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    scored, artifacts = json.loads(done.stdout.splitlines()[-1])
    assert (scored["rows"], scored["failed"]) == (40, 0)
    assert "answers" in {row["what"] for row in scored["drift"] if row["drifted"]}  # all of them are red
    assert "drifted: " in done.stderr + done.stdout
    assert "scores" in artifacts


def test_a_registered_model_is_made_again_to_the_byte_though_the_project_moved_on(copy, tmp_path):
    copy.change("seed", 8)
    copy.change("finetune.strategy", "probe")
    copy.regraft("run")
    outcome = copy.facts("rebuild", "discs/1", str(tmp_path / "again"))
    assert outcome["now"] == outcome["was"]
    assert (outcome["same_weights"], outcome["same_export"], outcome["same_answers"]) == (True, True, True)
    assert outcome["code"] == "the present code"
    assert len(copy.facts("models")["models"]) == 2
    image = next((copy.root.parent / "images" / "red").glob("*.png"))
    explained = copy.facts("explain", "discs/1", str(image), "--out", str(tmp_path / "why"))
    assert explained["answer"]["label"] == explained["target"]
    assert explained["neighbours"][0]["similarity"] == pytest.approx(1.0, abs=1e-4)  # itself, or one like it
    assert sorted(explained["files"]) == sorted(file.name for file in (tmp_path / "why").iterdir())
    done = copy.regraft("rebuild", "discs/1", str(tmp_path / "again"), check=False)
    assert (done.returncode, "is no empty folder" in done.stderr) == (2, True)


def test_a_changed_number_of_epochs_runs_two_stages_and_a_dead_mlflow_server_loses_nothing_of_them(copy):
    copy.change("finetune.epochs", 1)
    copy.change("finetune.learning_rate", 0.001)
    stale = [stage for stage in copy.facts("plan")["stages"] if stage["stale"]]
    assert [stage["name"] for stage in stale] == ["finetune", "evaluate"]
    assert "finetune.epochs changed from 2 to 1" in stale[0]["why"]
    done = copy.regraft("run", check=False, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert done.returncode == 75
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(stage["stale"] for stage in copy.facts("plan")["stages"])
    later = copy.facts("run")
    assert later["stages_run"] == []
    assert later["publication"]["version"] == copy.facts("models")["models"][0]["version"]
    copy.change("finetune.epochs", 2)
    copy.change("finetune.learning_rate", "auto")
    back = copy.facts("run")
    assert (back["stages_run"], back["stages_restored"]) == ([], ["finetune", "evaluate"])


def test_new_data_costs_only_its_own_forward_passes_and_is_told_from_the_data_of_the_champion(copy):
    images = copy.root.parent / "images"
    draw_images(images, per_class=3, first=100)
    (images / "red" / "000.png").rename(images / "blue" / "moved.png")
    copy.change("promote.minimum", 1.0)
    copy.change("finetune.strategy", "probe")
    outcome = copy.facts("run")
    assert outcome["stages_run"] == ["download", "preprocess", "choose", "embed", "finetune", "evaluate"]
    assert copy.report("embed.json")["forward_passes"] == 9
    is_perfect = copy.report("metrics.json")["test"]["accuracy"]["value"] == 1
    assert outcome["publication"]["promoted"] == is_perfect
    champions = [model["version"] for model in copy.facts("models")["models"] if "champion" in model["aliases"]]
    assert champions == [2 if is_perfect else 1]

    report = copy.facts("data", "diff", "discs/1")
    assert report["added"] == sorted(f"{label}/{n}.png" for label in ("blue", "green", "red") for n in (100, 101, 102))
    assert report["removed"] == []
    assert report["relabelled"] == [{"name": "blue/moved.png", "before": "red", "after": "blue"}]
    assert report["after"] - report["before"] == 9
    assert copy.facts("data", "diff")["before"] == report["after" if is_perfect else "before"]
    unknown = copy.regraft("data", "diff", "yesterday", check=False)
    assert (unknown.returncode, "no git revision" in unknown.stderr) == (2, True)


def test_a_trainer_killed_in_the_middle_leaves_nothing_and_the_next_run_makes_the_same_bytes(copy):
    copy.change("embed.image_size_px", 32)  # another model, whichever strategy ships
    copy.change("finetune.epochs", 6)
    copy.change("finetune.learning_rate", 0.001)
    whole = Project(copy.root.parent / "whole")
    shutil.copytree(copy.root, whole.root, symlinks=True)
    whole.facts("run")

    running = subprocess.Popen(
        [sys.executable, "-m", "regraft.cli", "run", "--root", str(copy.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"REGRAFT_CHECKPOINT_S": "0"},
    )
    trainer = wait_for_epoch(copy, 2)
    os.kill(trainer, signal.SIGKILL)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 75
    assert "killed by SIGKILL" in said
    assert "Traceback" not in said
    assert len(copy.facts("models")["models"]) == 1

    outcome = copy.facts("run")
    assert "finetune" in outcome["stages_run"]
    assert len(copy.facts("models")["models"]) == 2
    assert "continuing after epoch" in (copy.paths.logs / "finetune.log").read_text("utf-8")
    for name in ("models/model/model.weights.h5", "reports/training.json", "reports/metrics.json"):
        assert sha256(copy.root / name) == sha256(whole.root / name), name
    assert not list(copy.paths.scratch.glob("*"))


def wait_for_epoch(project: Project, epoch: int) -> int:
    """Return the process id of the trainer once its log says that `epoch` is over."""
    log = project.paths.logs / "finetune.log"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if log.exists() and f"epoch {epoch} of 6" in log.read_text("utf-8", errors="replace"):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    is_trainer = b"tasks\0finetune" in (process / "cmdline").read_bytes()
                    if is_trainer and (process / "cwd").resolve() == project.root.resolve():
                        return int(process.name)
                except OSError:
                    continue  # it ended in the meantime
        time.sleep(0.02)
    raise AssertionError("the trainer never got that far")


@pytest.mark.usefixtures("without_a_server")
def test_two_runs_at_once_do_not_mix_and_one_that_is_told_to_stop_leaves_no_process(copy):
    copy.change("finetune.epochs", 60)  # it must not end before it is stopped
    copy.change("finetune.learning_rate", 0.001)
    first = subprocess.Popen(
        [sys.executable, "-m", "regraft.cli", "run", "--root", str(copy.root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_epoch(copy, 1)
    second = copy.regraft("run", check=False)
    assert second.returncode == 75
    assert f"another process ({first.pid}) is at work" in second.stderr

    started = children_of(first.pid)
    assert len(started) >= 2  # the stage, and the server that Prefect started for this run
    os.killpg(first.pid, signal.SIGTERM)  # as systemd and `timeout` do: to the run, its stage and that server
    _, said = first.communicate(timeout=180)  # Prefect tries for 45 s to tell the server, which is gone
    assert (first.returncode, said.splitlines()[-1]) == (143, "stopped; run again to go on from the last checkpoint")
    deadline = time.monotonic() + 30
    while (left := [process for process in started if process.exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert len(copy.facts("models")["models"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_a_server")
def test_when_the_server_that_prefect_started_is_gone_the_run_says_so_once_and_the_next_one_goes_on(copy):
    copy.change("finetune.epochs", 6)
    copy.change("finetune.learning_rate", 0.001)
    running = subprocess.Popen(
        [sys.executable, "-m", "regraft.cli", "run", "--root", str(copy.root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_epoch(copy, 1)
    (server,) = [child for child in children_of(running.pid) if b"uvicorn" in (child / "cmdline").read_bytes()]
    os.kill(int(server.name), signal.SIGKILL)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 75
    assert said.splitlines()[-1].startswith("error: the Prefect server stopped answering")
    assert "Error logging" not in said
    assert copy.facts("run")["stages_run"] == ["evaluate"]


def children_of(pid: int) -> list[Path]:
    """Return the folders in /proc of the processes that `pid` started, threads of it included."""
    tasks = Path(f"/proc/{pid}/task")
    return [Path("/proc") / child for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def test_texts_go_the_same_way(tmp_path):
    random = np.random.default_rng(0)
    good, bad = ["loved great awful not", "good food great"], ["hated awful bad", "very bad film awful"]
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(80):
            words = random.choice(["the", "film", "my", "card", "is", "was"], 3)
            label, phrases = (("good", good), ("bad", bad))[number % 2]
            writer.writerow([f"{' '.join(words)} {random.choice(phrases)} {number}", label])
    preset = make_text_preset(tmp_path / "preset")
    project = make_project(tmp_path / "project", source=f"csv:{tmp_path / 'reviews.csv'}", preset=preset, name="mood")
    assert project.facts("run")["publication"]["version"] == 1
    answers = project.facts("predict", "mood/1", "great food loved", "awful bad")["predictions"]
    assert {answer["label"] for answer in answers} <= {"good", "bad"}


@pytest.mark.slow
def test_pairs_of_texts_go_the_same_way(tmp_path):
    random = np.random.default_rng(0)
    things = ["film", "card", "bank", "food"]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "verdict"])
        for number in range(160):
            one, other = random.permutation(things)[:2]
            about = one if number % 2 else other
            writer.writerow([f"the {one} was great {number}", f"my {about} is not", ("other", "same")[number % 2]])
    options = ["--text", "first", "--text", "second", "--target", "verdict"]
    preset = make_text_preset(tmp_path / "preset")
    project = make_project(
        tmp_path / "project", *options, source=f"csv:{tmp_path / 'pairs.csv'}", preset=preset, name="same"
    )
    project.change("finetune.strategy", "probe")
    assert project.facts("run")["publication"]["promoted"]
    assert project.report("metrics.json")["test"]["accuracy"]["value"] > 0.8
    asked = ["the film was great 7 ||| my film is not", "the card was great 8 ||| my bank is not"]
    answers = project.facts("predict", "same", *asked)["predictions"]
    assert [answer["label"] for answer in answers] == ["same", "other"]
    refused = project.regraft("predict", "same", "the film was bad", check=False)
    assert refused.returncode == 2
    assert "FIRST ||| SECOND" in refused.stderr
    program = f"""
        import sys, mlflow, pandas as pd
        mlflow.set_tracking_uri("sqlite:///{project.root}/mlflow.db")
        model = mlflow.pyfunc.load_model("models:/same@champion")
        second, first = ["my film is not", "my bank is not"], ["the film was great 7", "the card was great 8"]
        table = pd.DataFrame({{"second": second, "first": first}})
        assert list(model.predict(table).label) == ["same", "other"]
        assert list(model.predict(table.to_dict("list")).label) == ["same", "other"]
        assert len(model.predict(model.input_example)) == 1
        assert not [name for name in sys.modules if name.split(".")[0] in ("regraft", "keras_hub")]
    """
    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)
    # Scored on other test data, the champion is asked again, in the form its consumers use.
    project.change("preprocess.test_fraction", 0.3)
    assert project.facts("run")["publication"]["version"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "task", "headline"),
    [(["score"], "regression", "R2"), (["good", "long"], "multilabel", "micro F1")],
)
def test_values_and_label_sets_go_the_same_way(tmp_path, columns, task, headline):
    random = np.random.default_rng(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "score", "good", "long"])
        for number in range(160):
            words = " ".join(random.choice(["the", "film", "my", "card", "is", "was"], random.integers(2, 9)))
            good = number % 2
            score = f"{10 * good + len(words) / 7:.3f}"
            writer.writerow(
                [f"{words} {('awful bad', 'great loved')[good]} {number}", score, good, int(len(words) > 20)]
            )
    options = [part for column in columns for part in ("--target", column)]
    preset = make_text_preset(tmp_path / "preset")
    project = make_project(
        tmp_path / "project", *options, source=f"csv:{tmp_path / 'reviews.csv'}", preset=preset, name="mood"
    )
    told = project.regraft("run").stdout
    assert f"test {headline} " in told
    assert "is models:/mood@champion" in told
    metrics = project.report("metrics.json")
    assert metrics["task"] == project.report("data.json")["task"] == task
    leading = metrics["test"][{"regression": "r2", "multilabel": "micro_f1"}[task]]
    assert leading["low"] <= leading["value"] <= leading["high"]
    assert "<html" in (project.paths.reports / "report.html").read_text("utf-8")
    good, bad = project.facts("predict", "mood", "the film was great loved", "the film was awful bad")["predictions"]
    if task == "regression":
        assert good["value"] > bad["value"]
    else:
        assert set(good["probabilities"]) == {"good", "long"}
    assert headline in project.regraft("models").stdout
    assert project.facts("run")["stages_run"] == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        pytest.param("one class", "class", marks=pytest.mark.slow),
        pytest.param("a class of one", "lonely", marks=pytest.mark.slow),
        ("too many unreadable", "not an image"),
        ("empty", "no "),
    ],
)
def test_data_that_cannot_be_trained_on_ends_in_one_clear_error_and_no_version(tmp_path, finished, what, says):
    images = tmp_path / "images"
    draw_images(images, per_class=8)
    if what == "one class":
        shutil.rmtree(images / "red")
        shutil.rmtree(images / "blue")
    elif what == "a class of one":
        (images / "lonely").mkdir()
        shutil.copy(images / "red" / "000.png", images / "lonely" / "1.png")
    elif what == "too many unreadable":
        for name in ("000.png", "001.png", "002.png"):
            (images / "red" / name).write_text("unreadable")
    project = make_project(
        tmp_path / "project", source=f"folder:{images}", preset=finished[0].root.parent / "preset", name="bad"
    )
    if what == "empty":
        shutil.rmtree(images)
        images.mkdir()
    done = project.regraft("run", check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert project.facts("models")["models"] == []


@pytest.mark.slow
def test_recordings_go_the_same_way(tmp_path):
    record_tones(tmp_path / "tones")
    preset = make_image_preset(tmp_path / "preset")
    project = make_project(tmp_path / "project", source=f"folder:{tmp_path / 'tones'}", preset=preset, name="pitches")
    outcome = project.facts("run")
    assert outcome["stages_run"] == STAGES
    assert outcome["publication"]["promoted"]
    assert project.report("data.json")["kind"] == "audio"
    assert project.report("metrics.json")["test"]["accuracy"]["value"] > 0.5  # a guess is right a third of the time
    report = (project.paths.reports / "report.html").read_text("utf-8")
    assert "log-mel" in report
    files = [str(tmp_path / "tones" / "high" / name) for name in ("00.flac", "01.wav")]
    answers = project.facts("predict", "pitches", *files)["predictions"]
    assert [answer["label"] for answer in answers] == ["high", "high"]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(Path(files[1]).read_bytes()[:-500])
    done = project.regraft("predict", "pitches", str(broken), check=False)
    assert done.returncode == 2
    assert "broken.wav is cut off" in done.stderr
    program = f"""
        import sys, mlflow
        mlflow.set_tracking_uri("sqlite:///{project.root}/mlflow.db")
        model = mlflow.pyfunc.load_model("models:/pitches@champion")
        raw = open({files[1]!r}, "rb").read()
        assert list(model.predict({{"audio": [raw, raw]}}).label) == ["high", "high"]
        assert len(model.predict(model.input_example)) == 1
        try:
            model.predict({{"audio": [raw, raw[:-500]]}})
        except mlflow.exceptions.MlflowException as error:
            assert "row 1 of column `audio` is not a recording that can be read" in str(error), error
        else:
            raise AssertionError("a recording that was cut off was answered")
        ours = [name for name in sys.modules if name.split(".")[0] in ("regraft", "tasks", "flows", "soundfile")]
        assert not ours, ours
    """
    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)
