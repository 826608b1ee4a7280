"""Whole runs through the command line on a backbone that is pretrained on the way, or begins from nothing."""

import pytest

from tests.backbones.tiny import make_image_preset
from tests.project import draw_images, make_project


@pytest.mark.slow
def test_a_pretrained_backbone_and_one_from_nothing_become_champions_and_the_source_counts(tmp_path):
    draw_images(tmp_path / "images")
    draw_images(tmp_path / "source", per_class=12, seed=1)
    project = make_project(
        tmp_path / "project", source=f"folder:{tmp_path / 'images'}", preset=make_image_preset(tmp_path / "preset")
    )
    project.change("promote.minimum", 0.0)
    project.change("finetune.epochs", 20)
    project.change("finetune.learning_rate", 0.01)
    project.change("backbone.mode", "scratch")
    outcome = project.facts("run")
    assert outcome["publication"]["promoted"]
    assert project.report("backbone.json")["source_dataset"] == "nothing"

    project.change("backbone.pretrain", {"source": f"folder:{tmp_path / 'source'}", "epochs": 2, "batch_size": 8})
    project.change("backbone.mode", "pretrain")
    outcome = project.facts("run")
    assert outcome["stages_run"] == ["backbone", "embed", "finetune", "evaluate"]
    assert project.report("pretraining.json")["method"] == "supervised"
    assert project.facts("run")["stages_run"] == []

    draw_images(tmp_path / "source", per_class=1, seed=1, first=50)
    assert project.facts("run")["stages_run"][0] == "backbone"

    draw_images(tmp_path / "images", per_class=2, seed=2, first=60)
    stages = project.facts("run")["stages_run"]
    assert "embed" in stages
    assert "backbone" not in stages
