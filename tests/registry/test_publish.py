"""Publishing to the SQLite file that a project has by default."""

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from regraft.errors import RegistryError
from regraft.files import read_json
from regraft.paths import Paths
from regraft.registry import register, tracking
from regraft.registry.promotion import compact_ids
from regraft.registry.published import is_published
from regraft.registry.register import Publication, publish, read_publication
from regraft.settings import Settings
from tests.registry.small_projects import ALWAYS_WRONG, LINEAGE, NEVER_RED, Project, picture


def publish_project(project: Project) -> Publication:
    return publish(project.paths, project.settings, LINEAGE, project.fingerprint)


def aliases(project: Project) -> dict[str, int]:
    client = tracking.connect(project.paths, project.settings)
    return {alias: int(number) for alias, number in client.get_registered_model("colours").aliases.items()}


def test_a_first_good_model_becomes_the_champion_with_everything_recorded(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    publication = publish_project(project)
    assert (publication.version, publication.promoted) == (1, True)

    client: MlflowClient = tracking.connect(project.paths, project.settings)
    version = client.get_model_version_by_alias("colours", "champion")
    assert version.run_id == publication.run_id
    assert version.tags["regraft.fingerprint"] == project.fingerprint
    assert version.tags["regraft.code_commit"] == "c0ffee"
    assert version.tags["regraft.backbone_sha256"] == "ab" * 32
    assert float(version.tags["test.accuracy"]) == 1.0
    run = client.get_run(publication.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["finetune.epochs"] == str(project.settings.finetune.epochs)
    assert not any(key.startswith("tracking") for key in run.data.params)
    losses = client.get_metric_history(publication.run_id, "validation.log_loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 0.5), (2, 0.25), (3, 0.5 / 3)]
    assert run.data.metrics["test.accuracy"] == 1.0
    digest = read_json(project.paths.reports / "download.json")["digest"]
    assert run.inputs.dataset_inputs[0].dataset.digest == digest[:36]
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {metric.key: metric.value for metric in model.metrics}["test.f1"] == 1.0
    recorded = {file.path for file in client.list_artifacts(publication.run_id, "reports")}
    assert {"reports/metrics.json", "reports/predictions.csv", "reports/promotion.json"} <= recorded
    [version] = client.search_model_versions(f"run_id = '{publication.run_id}'")
    assert "accuracy 1.0000" in version.description
    assert version.description.endswith("\n\n# A small model\n")
    assert read_publication(project.paths) == publication


def test_publishing_writes_only_inside_the_project(
    make_project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    project = make_project(tmp_path / "a project with spaces, 100%")
    (project.paths.root / "mlflow.db").unlink()
    publish_project(project)
    assert list(elsewhere.iterdir()) == []
    assert is_published(project.paths, project.settings, project.fingerprint)
    inside = {path.name for path in project.paths.root.iterdir()}
    assert inside == {"data", "models", "reports", "mlflow.db", "mlartifacts"}


def test_publishing_the_same_model_again_changes_nothing(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(tmp_path)
    first = publish_project(project)
    second = publish_project(project)
    assert (second.version, second.run_id, second.promoted, second.gates) == (1, first.run_id, True, first.gates)
    client = tracking.connect(project.paths, project.settings)
    assert len(client.search_model_versions("name = 'colours'")) == 1
    experiment = client.get_experiment_by_name("colours")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_worse_model_is_registered_but_refused(make_project: Callable[..., Project], tmp_path: Path) -> None:
    publish_project(make_project(tmp_path))
    publication = publish_project(make_project(tmp_path, order=NEVER_RED))
    assert (publication.version, publication.promoted) == (2, False)
    gate = publication.gates[-1]
    # Two thirds of the answers are right: those to blue and green images.
    assert (gate["name"], gate["passed"]) == ("champion", False)
    assert gate["difference"] == pytest.approx(2 / 3 - 1)
    assert gate["low"] < gate["difference"] < gate["high"] < 0
    assert "version 1 stays the champion" in publication.reasons[-1]


def test_a_model_below_the_minimum_or_the_majority_is_refused_and_leaves_no_champion(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = make_project(tmp_path, order=ALWAYS_WRONG)
    publication = publish_project(project)
    assert not publication.promoted
    assert [(gate["name"], gate["passed"]) for gate in publication.gates] == [("minimum", False), ("majority", False)]
    assert aliases(project) == {"challenger": 1}
    assert is_published(project.paths, project.settings, project.fingerprint)


def test_the_old_champion_stays_as_previous(make_project: Callable[..., Project], tmp_path: Path) -> None:
    publish_project(make_project(tmp_path, order=NEVER_RED))
    project = make_project(tmp_path)
    publication = publish_project(project)
    assert publication.promoted
    assert aliases(project) == {"champion": 2, "previous": 1}


def test_a_tolerance_lets_a_worse_model_pass(make_project: Callable[..., Project], tmp_path: Path) -> None:
    publish_project(make_project(tmp_path))
    assert publish_project(make_project(tmp_path, order=NEVER_RED, tolerance=0.4)).promoted


def test_other_rules_are_a_new_question_about_a_registered_model(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    strict = make_project(tmp_path, order=NEVER_RED, minimum=0.9)
    assert not publish_project(strict).promoted
    assert is_published(strict.paths, strict.settings, strict.fingerprint)
    lenient = make_project(tmp_path, order=NEVER_RED, minimum=0.6)
    assert not is_published(lenient.paths, lenient.settings, lenient.fingerprint)
    publication = publish_project(lenient)
    assert (publication.version, publication.promoted) == (1, True)


def test_an_alias_that_a_person_moved_back_stays_there(make_project: Callable[..., Project], tmp_path: Path) -> None:
    publish_project(make_project(tmp_path, order=NEVER_RED))
    project = make_project(tmp_path)
    publish_project(project)
    tracking.connect(project.paths, project.settings).set_registered_model_alias("colours", "champion", "1")
    assert not publish_project(project).promoted
    assert aliases(project)["champion"] == 1
    assert is_published(project.paths, project.settings, project.fingerprint)


def test_going_back_to_an_earlier_model_judges_it_against_the_present_champion(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    weak = make_project(tmp_path, order=NEVER_RED)
    publish_project(weak)
    publish_project(make_project(tmp_path))
    again = make_project(tmp_path, order=NEVER_RED)
    assert again.fingerprint == weak.fingerprint
    assert not is_published(again.paths, again.settings, again.fingerprint)
    publication = publish_project(again)
    assert (publication.version, publication.promoted) == (1, False)
    assert aliases(again)["champion"] == 2


def test_a_champion_measured_on_other_test_data_is_scored_again(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    # Recorded as always right; on the new test split it is, too, so a model that never says red must be refused.
    publish_project(make_project(tmp_path))
    project = make_project(tmp_path, order=NEVER_RED, shades=range(105, 255, 10))
    publication = publish_project(project)
    gate = publication.gates[-1]
    assert (gate["name"], gate["champion"], gate["passed"]) == ("champion", 1.0, False)


def test_a_champion_is_not_credited_with_answers_that_it_learnt_by_heart(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    shades = range(105, 255, 10)
    project = make_project(tmp_path)
    # The new test split below holds all reds that the champion, which is always right, was trained on.
    reds = [hashlib.sha256(picture("red", shade)).hexdigest() for shade in shades]
    np.save(project.paths.reports / "seen.npy", compact_ids(reds))
    publish_project(project)
    publication = publish_project(make_project(tmp_path, order=NEVER_RED, shades=shades, minimum=0.1))
    gate = publication.gates[-1]
    assert (gate["name"], gate["value"], gate["champion"], gate["passed"]) == ("champion", 1.0, 1.0, True)
    assert "15 more are left out" in gate["reason"]


def test_reports_of_another_evaluation_are_noticed(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(tmp_path)
    predictions = project.paths.reports / "predictions.csv"
    predictions.write_text(predictions.read_text().replace(",blue,blue,", ",blue,red,", 1))
    with pytest.raises(RegistryError, match="not of the same evaluation"):
        publish_project(project)
    client = tracking.connect(project.paths, project.settings)
    assert client.get_experiment_by_name("colours") is None


@pytest.mark.parametrize("step", ["_fill_run", "_save_model", "_log_test_metrics", "_register", "judge"])
def test_a_publication_that_is_interrupted_is_completed_by_the_next(
    make_project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    project = make_project(tmp_path)
    real = getattr(register, step)

    def interrupted(*arguments: object, **named: object) -> None:
        real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(register, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            publish_project(project)
    assert not is_published(project.paths, project.settings, project.fingerprint)
    publication = publish_project(project)
    assert (publication.version, publication.promoted) == (1, True)
    client = tracking.connect(project.paths, project.settings)
    experiment = client.get_experiment_by_name("colours")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert client.get_run(publication.run_id).info.status == "FINISHED"
    losses = client.get_metric_history(publication.run_id, "validation.log_loss")
    assert len(losses) == 3


def test_a_moved_project_uses_its_own_files_and_not_those_of_the_old_place(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    before = make_project(tmp_path / "before")
    publish_project(before)
    (tmp_path / "before").rename(tmp_path / "after")
    after = make_project(tmp_path / "after", order=NEVER_RED)
    assert not publish_project(after).promoted
    assert not (tmp_path / "before").exists()
    client = tracking.connect(after.paths, after.settings)
    assert client.get_model_version_download_uri("colours", "1").startswith(str(tmp_path / "after"))


def test_a_database_whose_making_was_interrupted_is_made_anew(tmp_path):
    paths = Paths(tmp_path)
    settings = Settings(name="pets")
    half_made = tmp_path / "mlflow.db.part"
    with closing(sqlite3.connect(half_made)) as connection, connection:
        connection.execute("CREATE TABLE spans (left_by TEXT)")
    assert tracking.connect(paths, settings).search_registered_models() == []
    assert not half_made.exists()
