"""dvc.yaml says what the code does: the settings, files and code each stage depends on."""

import inspect
import json
from importlib import import_module

import pytest
from ruamel.yaml import YAML

from regraft import fingerprint
from regraft.paths import REPOSITORY, Paths
from regraft.settings import BackboneSettings, DownloadSettings, Settings

STAGES = YAML(typ="safe", pure=True).load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_settings_its_function_takes(stage):
    taken = set(inspect.signature(import_module(f"tasks.{stage}").run).parameters) - {"paths"}
    assert taken <= set(Settings.model_fields)
    listed = {name for name in STAGES[stage]["params"] if isinstance(name, str)}
    from_outside = [
        key for name in STAGES[stage]["params"] if isinstance(name, dict) for key in name[".regraft/inputs.json"]
    ]
    entering = {"source": "download", "seed_of_weights": "seed"}  # fingerprints of settings, or of what they name
    assert taken == listed | {setting for key, setting in entering.items() if key in from_outside}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_code_and_runs_as_a_process_that_dvc_can_kill(stage):
    assert STAGES[stage]["cmd"] == f"exec python -P -m tasks {stage}"
    from_outside = [
        key for name in STAGES[stage]["params"] if isinstance(name, dict) for key in name[".regraft/inputs.json"]
    ]
    assert f"code.{stage}" in from_outside
    assert set(STAGES[stage]["meta"]) == {"pool", "timeout_s", "retries"}


def test_every_stage_module_is_in_the_graph():
    assert set(STAGES) == {path.stem for path in (REPOSITORY / "tasks").glob("[!_]*.py")}


def test_a_stage_reads_only_what_an_earlier_one_makes():
    made: set[str] = set()
    for stage in STAGES.values():
        assert set(stage.get("deps", [])) <= made
        made |= {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}


def test_code_counts_for_the_stages_that_import_it_and_for_no_other():
    code = {stage: set(fingerprint.code_fingerprint(stage)) for stage in STAGES}
    assert "regraft/tuning/loop.py" in code["finetune"]
    assert not any(path.startswith("regraft/tuning/") for path in code["preprocess"] | code["download"] | code["embed"])
    assert "regraft/backbones/catalogue.yaml" in code["backbone"]  # data that the code names counts as code
    assert "tensorflow" in code["finetune"]
    assert "scikit-learn" in code["evaluate"]
    for names in code.values():
        assert not any(name.startswith(("/", "flows/", "tests/")) for name in names)
        assert "regraft/settings.py" not in names


def test_a_changed_default_of_a_section_is_code_of_the_stages_that_use_it(monkeypatch):
    from regraft import settings

    before = {stage: fingerprint.code_fingerprint(stage) for stage in ("finetune", "preprocess")}
    monkeypatch.setattr(settings.FinetuneSettings.model_fields["epochs"], "default", 6)
    settings.FinetuneSettings.model_rebuild(force=True)
    after = {stage: fingerprint.code_fingerprint(stage) for stage in ("finetune", "preprocess")}
    monkeypatch.undo()
    settings.FinetuneSettings.model_rebuild(force=True)
    assert after["preprocess"] == before["preprocess"]
    assert {name for name in after["finetune"] if after["finetune"][name] != before["finetune"][name]} == {
        "defaults of FinetuneSettings"
    }


def test_another_seed_makes_no_pretrained_backbone_stale(tmp_path):
    def recorded(name, seed):
        (tmp_path / "empty").mkdir(exist_ok=True)
        source = DownloadSettings(source="folder:empty")
        settings = Settings(name="a", seed=seed, backbone=BackboneSettings(name=name), download=source)
        fingerprint.refresh_inputs(Paths(tmp_path), settings, [])
        return json.loads(Paths(tmp_path).inputs.read_text("utf-8"))

    assert recorded("efficientnet_lite0_imagenet", 1) == recorded("efficientnet_lite0_imagenet", 2)
    assert recorded("cnn_small", 1)["seed_of_weights"] == 1
    assert recorded("cnn_small", 2)["seed_of_weights"] == 2


def test_a_release_fingerprint_is_of_what_a_consumer_gets_and_not_of_timings(tmp_path):
    paths = Paths(tmp_path)
    (tmp_path / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text("utf-8"), encoding="utf-8")

    def fingerprint_of(model, speed):
        outs = [{"path": "models/serving", "md5": model}, {"path": "reports/speed.json", "md5": speed}]
        with paths.lock.open("w") as file:
            YAML().dump({"stages": {"evaluate": {"outs": outs}}}, file)
        return fingerprint.release_fingerprint(paths)

    assert fingerprint_of("a", "1") == fingerprint_of("a", "2")
    assert fingerprint_of("a", "1") != fingerprint_of("b", "1")
