"""The stages backbone and embed, from prepared data to features on disk."""

import hashlib
import json

import numpy as np
import pytest

from regraft.backbones.extractor import build_extractor
from regraft.data.records import Example, open_split, write_prepared
from regraft.errors import BackboneError
from regraft.files import write_json
from regraft.paths import Paths
from regraft.settings import BackboneSettings, EmbedSettings
from tasks import backbone, choose, embed
from tests.backbones.tiny import TEXT_FEATURES, make_image_preset, make_text_preset

SENTENCES = {
    "train": ["my card is lost", "good food", "the bank sent cash", "awful film"],
    "validation": ["great film", "where is my card"],
    "test": ["bad food", "my card is lost", "help"],
}


@pytest.fixture
def project(tmp_path):
    """A project whose texts are prepared and whose backbone is a tiny BERT."""
    paths = Paths(tmp_path)
    make_text_preset(tmp_path / "presets" / "words")
    make_image_preset(tmp_path / "presets" / "pictures")
    prepare(paths, SENTENCES)
    take("preset:presets/words", paths)
    return paths


def take(name: str, paths: Paths) -> None:
    settings = BackboneSettings(name=name)
    choose.run(settings, EmbedSettings(), 7, paths)
    backbone.run(settings, 7, paths)


def prepare(paths: Paths, sentences: dict[str, list[str]]) -> None:
    splits = {
        split: [
            Example(hashlib.sha256(text.encode()).hexdigest(), f"{split}.csv:{row}", "ab"[row % 2], text)
            for row, text in enumerate(texts)
        ]
        for split, texts in sentences.items()
    }
    write_prepared(paths.prepared, "text", ["a", "b"], splits)
    write_json(paths.reports / "data.json", {"kind": "text"})


def test_features_stand_in_the_row_order_of_the_data(project):
    embed.run(EmbedSettings(max_tokens=16), project)
    extractor = build_extractor(project.backbones, max_tokens=16)
    for name, texts in SENTENCES.items():
        features = np.load(project.features / f"{name}.npy")
        assert features.shape == (len(texts), TEXT_FEATURES)
        split = open_split(project.prepared, name)
        for row, text in enumerate(split.inputs(range(len(split)))):
            expected = extractor.model(extractor.prepare([text]), training=False).numpy()[0]
            assert np.abs(features[row] - expected).max() < 1e-5
    facts = json.loads((project.features / "features.json").read_text())
    assert facts == {
        "backbone": "words",
        "kind": "text",
        "image_size_px": None,
        "max_tokens": 16,
        "feature_size": TEXT_FEATURES,
        "weights_sha256": extractor.card.weights_sha256,
        "view": None,
        "pair": None,
    }


def test_a_second_run_needs_no_forward_pass_and_gives_the_same_bytes(project, caplog):
    caplog.set_level("INFO")
    embed.run(EmbedSettings(), project)
    first = {path.name: path.read_bytes() for path in project.features.iterdir()}
    # One of the nine texts is in two splits, so eight are different.
    assert json.loads((project.reports / "embed.json").read_text()) == {"forward_passes": 8, "from_cache": 0}
    embed.run(EmbedSettings(), project)
    assert {path.name: path.read_bytes() for path in project.features.iterdir()} == first
    assert "embedded 9 examples, 0 forward passes, 9 from cache" in caplog.text


def test_a_backbone_for_another_kind_of_data_is_refused_with_the_fitting_ones(project):
    take("preset:presets/pictures", project)
    with pytest.raises(BackboneError) as caught:
        embed.run(EmbedSettings(), project)
    assert "pictures takes image data, but the prepared data is text" in str(caught.value)
    assert "all_minilm_l6_v2" in str(caught.value)
    assert "efficientnet" not in str(caught.value)


def test_the_report_says_what_the_backbone_is(project):
    report = json.loads((project.reports / "backbone.json").read_text())
    assert report["name"] == "words"
    assert report["origin"] == "preset folder words"
    assert str(project.root) not in json.dumps(report)
