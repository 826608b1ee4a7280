"""A preset folder of a stranger's may hold configurations that would run code; none of it runs."""

import json
import pickle
from pathlib import Path

import keras
import keras_hub
import pytest

from regraft.backbones import convert, presets
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError
from tests.backbones.tiny import make_image_preset, make_text_preset

MARK = Path("was_run.txt")


@keras.saving.register_keras_serializable(package="stranger")
class Intruder(keras.layers.Layer):
    """What an installed package might have registered: making one leaves a mark."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        MARK.write_text("run")


@keras.saving.register_keras_serializable(package="stranger")
class IntruderBackbone(keras_hub.models.Backbone):
    """The same, as a backbone that is not of KerasHub."""

    def __init__(self, **kwargs) -> None:
        MARK.write_text("run")
        inputs = keras.Input((8, 8, 3))
        super().__init__(inputs=inputs, outputs=inputs, **kwargs)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "config": {"name": "f", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAA=="}}},
    "registered_name": None,
}
INTRUDER = {
    "module": "tests", "class_name": "Intruder", "config": {"name": "x"}, "registered_name": "stranger>Intruder",
}  # fmt: skip
FUNCTION = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
DISGUISED = {**INTRUDER, "module": "keras.initializers"}


def outer(config: dict) -> dict:
    return {"module": "x", "class_name": "x", "config": config, "registered_name": "stranger>IntruderBackbone"}


HOSTILE = [
    lambda config: outer(config["config"]),
    lambda config: LAMBDA,
    lambda config: {**config, "config": {**config["config"], "activation": LAMBDA}},
    lambda config: {**config, "config": {**config["config"], "activation": FUNCTION}},
    lambda config: {**config, "config": {**config["config"], "dropout": INTRUDER}},
    lambda config: {**config, "config": {**config["config"], "dtype": DISGUISED}},
    lambda config: {**config, "config": {**config["config"], "deep": [{"in": {"side": INTRUDER}}]}},
    lambda config: {**config, "compile_config": {"optimizer": INTRUDER}},
    lambda config: {**config, "registered_name": "stranger>IntruderBackbone"},
    lambda config: {"module": "os", "class_name": "system", "config": "touch was_run.txt", "registered_name": None},
    lambda config: {"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}},
    lambda config: [],
    lambda config: {**config, "registered_name": ["keras_hub>BertBackbone"]},
]


def test_the_intruders_would_leave_their_mark(here):
    keras.saving.deserialize_keras_object(INTRUDER)
    assert MARK.exists()


@pytest.mark.parametrize("change", HOSTILE)
@pytest.mark.parametrize("make", [make_image_preset, make_text_preset])
def test_a_configuration_that_asks_for_more_than_a_backbone_is_refused_before_anything_is_made(here, make, change):
    path = make(here / "theirs") / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BackboneError, match=r"config\.json"):
        presets.load_backbone(here / "theirs")
    with pytest.raises(BackboneError, match=r"config\.json"):
        fetch("preset:theirs", here / "backbones", root=here)
    assert not MARK.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: INTRUDER,
        lambda config: {**config, "config": {**config["config"], "lowercase": INTRUDER}},
        lambda config: {**config, "registered_name": "stranger>Intruder"},
    ],
)
def test_so_is_one_of_a_tokenizer(here, change):
    path = make_text_preset(here / "theirs") / "tokenizer.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BackboneError, match=r"tokenizer\.json"):
        fetch("preset:theirs", here / "backbones", root=here)
    assert not MARK.exists()


class Bomb:
    """Unpickled, it would leave the mark."""

    def __reduce__(self) -> tuple:
        return (MARK.write_text, ("run",))


@pytest.mark.parametrize("place", range(4))
def test_a_hostile_pickle_in_a_file_of_weights_is_refused_wherever_it_stands(here, place):
    header: tuple = (convert.TORCH_MAGIC_NUMBER, convert.TORCH_PROTOCOL, {}, {})
    parts = [pickle.dumps(part, 2) for part in header]
    parts[place] = pickle.dumps(Bomb(), 2)
    (here / "weights.pth").write_bytes(b"".join(parts))
    with pytest.raises(BackboneError, match=r"weights\.pth"):
        convert.read_torch_tensors(here / "weights.pth")
    assert not MARK.exists()
    pickle.loads(parts[place])  # noqa: S301
    assert MARK.exists()


def test_a_pickle_in_place_of_weights_is_not_unpickled(here):
    (make_image_preset(here / "theirs") / "model.weights.h5").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BackboneError, match="cannot be loaded as a KerasHub preset"):
        fetch("preset:theirs", here / "backbones", root=here)
    assert not MARK.exists()
