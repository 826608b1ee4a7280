"""The catalogue answers by name, and says what to do about a name it does not know."""

import json
import re

import pytest

from regraft.backbones import catalogue
from regraft.backbones.catalogue import Origin
from regraft.errors import BackboneError


def test_every_row_says_where_its_files_come_from_and_how_to_know_them():
    for name, entry in catalogue.entries().items():
        assert entry.name == name
        assert entry.origins, name
        assert entry.licence, name
        has_files = any(isinstance(origin, Origin) for origin in entry.origins)
        assert bool(entry.files) == bool(entry.convert) == has_files, name
        assert entry.flops > 0, name
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.bytes > 0 for file in entry.files), name
        assert (entry.kind == "image") == (entry.input_size_px is not None) == (len(entry.offset) == 3), name


def test_a_misspelt_name_is_answered_with_the_nearest_one_and_the_list():
    with pytest.raises(BackboneError) as caught:
        catalogue.find("efficientnet_lite_imagenet")
    assert "Did you mean `efficientnet_lite0_imagenet`?" in str(caught.value)
    assert "all_minilm_l6_v2 (text)" in str(caught.value)


def test_names_can_be_listed_by_kind():
    assert catalogue.names("text")[0] == "all_minilm_l6_v2"
    assert {"bert_tiny_en_uncased", "gpt2_base_en", "rnn_small"} < set(catalogue.names("text"))
    assert catalogue.names("audio") == catalogue.names("image")
    assert set(catalogue.names("image")).isdisjoint(catalogue.names("text"))
    assert catalogue.kind_of("efficientnet_lite0_imagenet", root=catalogue.CATALOGUE.parent) == "image"


def test_only_networks_that_begin_from_nothing_depend_on_the_seed():
    scratch = [name for name in catalogue.names() if catalogue.begins_from_nothing(name)]
    assert scratch == ["cnn_small", "rnn_small"]
    assert not catalogue.begins_from_nothing("preset:cnn_small")


@pytest.mark.parametrize(("config", "kind"), [({"vocabulary_size": 9}, "text"), ({"image_shape": [8, 8, 3]}, "image")])
def test_the_kind_of_a_preset_is_read_from_its_configuration(tmp_path, config, kind):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"config": config}))
    assert catalogue.kind_of("preset:mine", root=tmp_path) == kind


@pytest.mark.parametrize("content", ["not json", "[]", "{}"])
def test_a_preset_with_a_broken_configuration_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=r"config\.json"):
        catalogue.kind_of(f"preset:{tmp_path}", root=tmp_path)


def test_a_preset_folder_that_is_none_is_named_in_the_error(tmp_path):
    with pytest.raises(BackboneError, match="names no folder"):
        catalogue.preset_folder("preset:nowhere", tmp_path)
    with pytest.raises(BackboneError, match="save_to_preset"):
        catalogue.preset_folder(f"preset:{tmp_path}", tmp_path)
