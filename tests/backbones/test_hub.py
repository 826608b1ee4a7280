"""Presets of KerasHub's hub, downloaded by the real kagglehub from a server that misbehaves."""

import base64
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kagglehub.clients
import keras_hub
import pytest
from kagglesdk import kaggle_env

from regraft.backbones import catalogue, hub
from regraft.backbones.add import add
from regraft.backbones.architectures import architectures
from regraft.backbones.catalogue import Hub
from regraft.backbones.fetch import fetch
from regraft.errors import BackboneError, ResourceError
from tests.backbones.tiny import make_text_preset

HANDLE = "keras/bert/keras/bert_tiny_en_uncased/3"


class Kaggle(ThreadingHTTPServer):
    """Answers as kaggle.com does: a request for a file is sent on to where it lies.

    Attributes:
        folder: Whose files are served, as those of `HANDLE`.
        cut: How many of the next answers end half way.
        broken: How many of the next answers hold other bytes than announced.
        failing: How many of the next requests are answered by 503.
        refusing: Whether all are answered by 403.
        asked: File and range of each request for a file's content.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.cut = self.broken = self.failing = 0
        self.refusing = False
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    server: Kaggle

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refusing:
            return self.send_error(403)
        if self.server.failing:
            self.server.failing -= 1
            return self.send_error(503)
        if not (self.server.folder / asked["path"]).is_file():
            return self.send_error(404)
        self.send_response(302)
        self.send_header("Location", f"/{asked['path']}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def do_GET(self) -> None:
        content = (self.server.folder / self.path[1:]).read_bytes()
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path[1:], wanted))
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        content = content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("x-goog-hash", f"md5={digest}")
        self.end_headers()
        if self.server.broken:
            self.server.broken -= 1
            content = bytes(len(content))
        if self.server.cut and len(content) > 1:
            self.server.cut -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """kaggle.com with one preset, a tiny one that passes for `bert_tiny_en_uncased`; nothing is waited for."""
    entry = catalogue.Entry(
        name="bert_tiny_en_uncased", kind="text", parameters=0, feature_size=32, pooling="average",
        source_dataset="Wikipedia", licence="Apache-2.0", origins=(Hub(HANDLE),), input_tokens=64,
    )  # fmt: skip
    preset = make_text_preset(tmp_path / "served")
    parameters = keras_hub.models.Backbone.from_preset(str(preset)).count_params()
    others = {name: catalogue.find(name) for name in ("efficientnet_lite0_imagenet", "rnn_small")}
    rows = {**others, entry.name: replace(entry, parameters=parameters)}
    monkeypatch.setattr(catalogue, "entries", lambda: rows)
    monkeypatch.setattr(hub, "WAIT_S", 0.0)
    for name in ("REGRAFT_CACHE", "KAGGLEHUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("DISABLE_KAGGLE_CACHE", "true")
    server = Kaggle(preset)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, address)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_preset_is_downloaded_once_and_then_needs_no_network(kaggle, tmp_path):
    card = fetch("bert_tiny_en_uncased", tmp_path / "one", root=tmp_path)
    assert card.origin == "KerasHub preset bert_tiny_en_uncased"
    assert card.source_dataset == "Wikipedia"
    files = [file for file, _ in kaggle.asked]
    assert files[-1] == "model.weights.h5"  # what the others are there for comes last
    assert sorted(files) == sorted(set(files))
    assert catalogue.how_at_hand(catalogue.find("bert_tiny_en_uncased")) == "downloaded"
    kaggle.refusing = True
    assert fetch("bert_tiny_en_uncased", tmp_path / "two", root=tmp_path) == card
    assert len(kaggle.asked) == len(files)


def test_a_download_that_was_cut_short_goes_on_where_it_ended(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(kagglehub.clients, "CHUNK_SIZE", 100)  # what it writes at once
    kaggle.cut = 1
    fetch("bert_tiny_en_uncased", tmp_path / "one", root=tmp_path)
    half = len((kaggle.folder / "config.json").read_bytes()) // 2
    assert [wanted for file, wanted in kaggle.asked if file == "config.json"] == [
        None, None, f"bytes={half // 100 * 100}-",
    ]  # fmt: skip


@pytest.mark.parametrize("trouble", ["broken", "failing"])
def test_what_is_wrong_for_a_moment_is_tried_again(kaggle, tmp_path, trouble):
    setattr(kaggle, trouble, 2)
    assert fetch("bert_tiny_en_uncased", tmp_path / "one", root=tmp_path).kind == "text"


@pytest.mark.parametrize("trouble", ["broken", "failing"])
def test_what_stays_wrong_is_one_error_that_says_what_there_is_and_keeps_nothing(kaggle, tmp_path, trouble):
    setattr(kaggle, trouble, 100)
    with pytest.raises(ResourceError) as caught:
        add("bert_tiny_en_uncased", None)
    assert "bert_tiny_en_uncased could not be had" in str(caught.value)
    assert "Available here without a network for text data:" in str(caught.value)
    assert "`regraft backbones add bert_tiny_en_uncased --from DIR`" in str(caught.value)
    assert catalogue.how_at_hand(catalogue.find("bert_tiny_en_uncased")) is None


def test_a_refusal_is_not_tried_again(kaggle):
    kaggle.refusing = True
    with pytest.raises(BackboneError, match=r"kaggle\.com refuses"):
        add("bert_tiny_en_uncased", None)


def test_adding_downloads_and_makes_a_backbone_eligible_which_a_mere_fetch_does_not(kaggle, tmp_path):
    fetch("bert_tiny_en_uncased", tmp_path / "one", root=tmp_path)
    assert "bert_tiny_en_uncased" in catalogue.at_hand("text")
    assert "bert_tiny_en_uncased" not in catalogue.eligible()
    added = add("bert_tiny_en_uncased", None)
    assert added.said == "added bert_tiny_en_uncased"
    assert catalogue.how_at_hand(catalogue.find("bert_tiny_en_uncased")) == "added"
    assert "bert_tiny_en_uncased" in catalogue.eligible()
    assert add("bert_tiny_en_uncased", None).said == "bert_tiny_en_uncased was added before"


def test_handles_and_parameters_are_those_that_kerashub_knows():
    for name, entry in catalogue.entries().items():
        for origin in entry.origins:
            if isinstance(origin, Hub):
                made_by = getattr(keras_hub.models, architectures()[name].class_name)
                known = made_by.presets[origin.preset]
                assert known["kaggle_handle"].removeprefix("kaggle://") == origin.handle
                # Of EfficientNets it counts the head of 1,000 classes, and no statistics of BatchNorm.
                assert (
                    made_by is keras_hub.models.EfficientNetBackbone or known["metadata"]["params"] == entry.parameters
                )
