"""The stage choose: which of several backbones, on whose word, and what it says about it."""

import hashlib
import json
import shutil

import keras_hub
import numpy as np
import pytest

from regraft.backbones import catalogue
from regraft.data.records import Example, write_prepared
from regraft.errors import BackboneError
from regraft.files import write_json
from regraft.paths import Paths
from regraft.ranking import contest
from regraft.ranking.rank import image_sizes, take_sample
from regraft.settings import BackboneSettings, EmbedSettings
from tasks import choose
from tests.backbones.tiny import WORDS, make_text_preset

GOOD, BAD = {"good", "great", "loved", "free", "win"}, {"bad", "awful", "hated", "late", "lost"}


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A tiny BERT, and a copy of it whose table of words is all zeros, so that every text is alike to it."""
    folder = tmp_path_factory.mktemp("presets")
    make_text_preset(folder / "words")
    backbone = keras_hub.models.Backbone.from_preset(str(folder / "words"))
    shutil.copytree(folder / "words", folder / "blind")
    table = backbone.token_embedding
    table.set_weights([np.zeros_like(value) for value in table.get_weights()])
    backbone.save_to_preset(str(folder / "blind"))
    return folder


@pytest.fixture
def project(tmp_path, presets):
    """A project of texts that are for or against, prepared."""
    paths = Paths(tmp_path / "project")
    random = np.random.default_rng(3)
    splits = {}
    for split, count in (("train", 120), ("validation", 60), ("test", 3)):
        examples = []
        for number in range(count):
            words = [str(word) for word in random.choice(WORDS, 4)]
            words.append(str(random.choice(sorted(GOOD if number % 2 else BAD))))
            text = " ".join(words)
            examples.append(Example(f"{split}-{number}", f"{split}.csv:{number}", "ab"[number % 2], text))
        splits[split] = examples
    write_prepared(paths.prepared, "text", ["a", "b"], splits)
    write_json(paths.reports / "data.json", {"kind": "text"})
    return paths


def test_a_name_in_the_settings_is_taken_at_its_word(tmp_path):
    paths = Paths(tmp_path)
    choose.run(BackboneSettings(name="some_name"), EmbedSettings(), 7, paths)
    assert json.loads(paths.choice.read_text()) == {"name": "some_name", "image_size_px": None, "by": "settings"}


def test_a_backbone_of_another_kind_of_data_is_refused_before_it_is_fetched_or_pretrained(tmp_path):
    paths = Paths(tmp_path)
    write_json(paths.reports / "data.json", {"kind": "text"})
    with pytest.raises(BackboneError, match=r"cnn_small takes image data, but the prepared data is text.*rnn_small"):
        choose.run(BackboneSettings(name="cnn_small"), EmbedSettings(), 7, paths)
    write_json(paths.reports / "data.json", {"kind": "audio"})
    choose.run(BackboneSettings(name="cnn_small"), EmbedSettings(), 7, paths)


def test_the_backbone_that_sees_something_is_chosen_over_the_usual_one_that_does_not(project, presets, monkeypatch):
    monkeypatch.setattr(contest, "FIRST_ROUND", 60)
    names = [f"preset:{presets / 'blind'}", f"preset:{presets / 'words'}"]
    choose.run(BackboneSettings(name="auto", candidates=names), EmbedSettings(), 7, project)
    choice = json.loads(project.choice.read_text())
    assert choice["name"] == names[1]
    assert choice["usual"] == names[0]
    assert [row["name"] for row in choice["ranked"]] == names[::-1]
    words, blind = choice["finalists"]
    assert words["held_out_loss"] < blind["held_out_loss"] == pytest.approx(np.log(2.0), abs=0.02)
    assert words["log_maximum_evidence"] > blind["log_maximum_evidence"]
    assert words["h_score"] > blind["h_score"]
    assert words["short_run_loss"] < blind["short_run_loss"]
    assert "which would be taken without looking" in choice["why"]

    first = project.choice.read_bytes()
    choose.run(BackboneSettings(name="auto", candidates=names), EmbedSettings(), 7, project)
    assert project.choice.read_bytes() == first


def test_candidates_of_another_kind_or_too_large_are_left_out_and_none_left_is_an_error(project):
    with pytest.raises(BackboneError, match=r"of cnn_small, no backbone is left that takes text data\."):
        choose.run(BackboneSettings(name="auto", candidates=["cnn_small"]), EmbedSettings(), 7, project)
    settings = BackboneSettings(name="auto", candidates=["rnn_small"], max_parameters=1000)
    with pytest.raises(BackboneError, match=r"at most 1,000 parameters \(backbone.max_parameters\)"):
        choose.run(settings, EmbedSettings(), 7, project)
    with pytest.raises(BackboneError, match="Did you mean `rnn_small`"):
        choose.run(BackboneSettings(name="auto", candidates=["rnn_smal"]), EmbedSettings(), 7, project)


@pytest.mark.parametrize(
    ("by_rule", "native", "sizes"), [(64, 224, [64, 96]), (224, 224, [224, 160]), (128, 224, [128, 96, 192])]
)
def test_sizes_around_the_rule_are_tried(by_rule, native, sizes):
    assert image_sizes(by_rule, native) == sizes


def test_what_there_is_to_choose_from_stays_the_same_when_the_usual_one_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    before = catalogue.eligible()
    assert "all_minilm_l6_v2" in before
    assert "all_minilm_l6_v2" not in catalogue.at_hand()
    catalogue.cached(catalogue.find("all_minilm_l6_v2")).mkdir(parents=True)
    assert "all_minilm_l6_v2" in catalogue.at_hand()
    assert catalogue.eligible() == before


class Ids:
    kind = "text"

    def __init__(self, count):
        self.ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def test_a_sample_has_its_share_of_every_class_and_stays_as_data_grows():
    labels = np.array([0] * 90 + [1] * 10 + [2] * 3)
    small = take_sample(Ids(103), labels, 50, labels)
    assert np.bincount(small.labels).tolist() == [44, 5, 2]
    more = np.concatenate([labels, np.array([0] * 10)])
    grown = take_sample(Ids(113), more, 55, more)
    assert len(set(small.rows) - set(grown.rows)) <= 2
    assert take_sample(Ids(103), labels, 500, labels).ids == Ids(103).ids
