"""MLflow's model server under bad input: what is wrong is said, with its row, and the next good request is answered."""

import base64
import io
import json
import os
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import init

from regraft.data.records import Example
from regraft.data.waveform import decode_wav
from regraft.files import read_json, write_json
from regraft.paths import Paths
from regraft.registry.consumer_model import SERVER, RawInputModel
from regraft.registry.register import publish
from regraft.settings import Settings
from tests.registry.small_projects import LINEAGE, LengthModel, picture, write_reports


class LoudModel(tf.Module):
    """Calls a recording loud by its mean amplitude, after the decoding that real models have."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, audio: tf.Tensor) -> dict[str, tf.Tensor]:
        def loudness(encoded: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(tf.abs(decode_wav(encoded).samples))

        loud = tf.map_fn(loudness, audio, fn_output_signature=tf.TensorSpec((), tf.float32))
        return {"probabilities": tf.stack([loud, 1.0 - loud], axis=1)}


def wav(*, amplitude: float = 0.9, rate_hz: int = 8000, width: int = 2, channels: int = 1, samples: int = 800) -> bytes:
    """Return a square wave as a WAV file in PCM of `width` bytes a sample."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        top = int(amplitude * (2 ** (8 * width - 1) - 1))
        frame = b"".join(value.to_bytes(width, "little", signed=True) * channels for value in (top, -top))
        file.writeframes(frame * (samples // 2))
    return buffer.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def publish_and_serve(root: Path, kind: str, model: tf.Module, example: bytes, **facts: Any) -> TestClient:
    paths = Paths(root)
    tf.saved_model.save(model, str(paths.serving / "saved_model"))
    labels = ["loud", "soft"] if kind == "audio" else ["long", "short"]
    write_json(paths.serving / "labels.json", {"kind": kind, "labels": labels, **facts})
    (paths.serving / f"input_example.{'wav' if kind == 'audio' else 'txt'}").write_bytes(example)
    examples = [Example(str(n), f"test:{n}", labels[n % 2], "x" * n) for n in range(1, 9)]
    write_reports(paths, kind, examples, [example.label for example in examples], np.full(8, 0.9))
    write_json(paths.reports / "data.json", {**read_json(paths.reports / "data.json"), **facts})
    publish(paths, Settings(name="served"), LINEAGE, "f" * 64)
    return TestClient(init(mlflow.pyfunc.load_model(next(root.glob("mlartifacts/models/*/artifacts")))))


@pytest.fixture(scope="module")
def servers(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TestClient]]:
    def serve(name: str, kind: str, model: tf.Module, example: bytes, **facts: Any) -> TestClient:
        root = tmp_path_factory.mktemp(name)
        shutil.copy(empty_database, root / "mlflow.db")
        return publish_and_serve(root, kind, model, example, **facts)

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv(SERVER, "true")  # as the server does itself, and leaves it in this process
        yield {
            "text": serve("text", "text", LengthModel(), b"some text"),
            "pair": serve("pair", "text", LengthModel(), b"one ||| other", pair=["first", "second"]),
            "audio": serve("audio", "audio", LoudModel(), wav()),
        }


GOOD: dict[str, dict[str, str]] = {
    "text": {"text": "tiny"},
    "pair": {"first": "a longer text", "second": "and another one"},
    "audio": {"audio": b64(wav())},
}
LABEL = {"text": "short", "pair": "long", "audio": "loud"}


def ask(server: TestClient, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = server.post("/invocations", content=content, headers={"Content-Type": "application/json"})
    return said.status_code, said.json()


def require_good(server: TestClient, name: str) -> None:
    status, said = ask(server, {"dataframe_records": [GOOD[name]]})
    assert (status, said["predictions"][0]["label"]) == (200, LABEL[name])


BAD = [
    *(("text", value, "row 1 of column `text` must be a string") for value in (None, 5, 1.5, True, {"a": 1}, ["a"])),
    ("text", float("nan"), "row 1 of column `text` must be a string"),
    ("text", "\ud800", "surrogates not allowed"),
    *((name, blank, "has no text") for name in ("text", "pair") for blank in ("", " \n\t")),
    ("pair", None, "row 1 of column `second` must be a string"),
    ("pair", 3, "row 1 of column `second` must be a string"),
    ("audio", "", "row 1 of column `audio` must be the bytes of a WAV file, got 0 bytes"),
    ("audio", None, "Failed to convert column audio"),
    ("audio", 5, "Failed to convert column audio"),
    ("audio", "abc", "Failed to convert column audio"),
    *(
        ("audio", b64(content), "row 1 of column `audio` is not a recording that can be read")
        for content in (
            b"RIFF",
            wav()[:20],
            wav()[:44],
            wav()[:-400],
            wav(samples=0),
            wav()[:24] + b"\0\0\0\0" + wav()[28:],  # a sampling rate of 0
            wav()[:22] + b"\0\0" + wav()[24:],  # no channels
            b64(wav()).encode(),
            picture("red", 200),
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD)
def test_a_bad_row_is_refused_with_its_number_and_the_server_goes_on(
    servers: dict[str, TestClient], name: str, value: Any, reason: str
) -> None:
    column = list(GOOD[name])[-1]
    rows = [GOOD[name], {**GOOD[name], column: value}, GOOD[name]]
    status, said = ask(servers[name], {"dataframe_records": rows})
    assert status == 400
    assert reason in said["message"]
    require_good(servers[name], name)


@pytest.mark.parametrize(
    ("name", "record"), [("text", {"text": ["a", "b"]}), ("pair", {"first": ["a"], "second": "b"})]
)
def test_a_record_with_a_list_of_texts_is_refused_and_not_taken_for_rows(
    servers: dict[str, TestClient], name: str, record: dict[str, Any]
) -> None:
    status, said = ask(servers[name], {"dataframe_records": [record]})
    assert status == 400
    assert f"row 0 of column `{next(iter(record))}` must be a string, got list" in said["message"]
    require_good(servers[name], name)


def test_pairs_of_which_one_column_holds_more_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER, raising=False)
    model = RawInputModel()
    model.kind, model.pair = "text", ["first", "second"]
    with pytest.raises(MlflowException, match="column `first` holds 1 and column `second` 2"):
        model.predict(None, pd.DataFrame([{"first": "one", "second": ["a", "b"]}]))


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"text": ["tiny", "a much longer text"]}},
        {"inputs": {"text": ["tiny"]}},
        {"instances": [{"text": "tiny"}, {"text": "a much longer text"}]},
        {"instances": [{"text": "tiny"}]},
        {"dataframe_split": {"columns": ["text"], "data": [["tiny"], ["a much longer text"]]}},
    ],
)
def test_every_form_of_a_request_gives_a_row_for_each_text(servers: dict[str, TestClient], body: Any) -> None:
    expected = ["short", "long"][: 1 + ("longer" in json.dumps(body))]
    status, said = ask(servers["text"], body)
    assert (status, [row["label"] for row in said["predictions"]]) == (200, expected)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"null", b"[1]", b"{}", {"dataframe_records": [{"other": "x"}]}, {"dataframe_records": []}],
)
def test_what_is_no_request_is_refused(servers: dict[str, TestClient], name: str, body: Any) -> None:
    assert ask(servers[name], body)[0] == 400
    require_good(servers[name], name)


@pytest.mark.parametrize("name", GOOD)
def test_no_rows_get_no_answers(servers: dict[str, TestClient], name: str) -> None:
    body = {"dataframe_split": {"columns": list(GOOD[name]), "data": []}}
    assert ask(servers[name], body) == (200, {"predictions": []})


@pytest.mark.parametrize(("text", "label"), [("a" * 1_000_000, "long"), ("\0\n😀😀😀", "long")])
def test_odd_texts_are_texts(servers: dict[str, TestClient], text: str, label: str) -> None:
    status, said = ask(servers["text"], {"dataframe_records": [{"text": text}]})
    assert (status, said["predictions"][0]["label"]) == (200, label)


@pytest.mark.parametrize("form", [{"width": 3}, {"width": 4}, {"channels": 2}, {"rate_hz": 96_000, "width": 3}])
def test_recordings_of_other_forms_are_answered(servers: dict[str, TestClient], form: dict[str, int]) -> None:
    rows = [{"audio": b64(wav(amplitude=amplitude, **form))} for amplitude in (0.9, 0.1)]
    status, said = ask(servers["audio"], {"dataframe_records": rows})
    assert (status, [row["label"] for row in said["predictions"]]) == (200, ["loud", "soft"])
    assert said["predictions"][0]["probability"] == pytest.approx(0.9, abs=0.01)


def test_base64_that_mlflow_does_not_decode_is_told(servers: dict[str, TestClient]) -> None:
    status, said = ask(servers["audio"], {"inputs": {"audio": [b64(wav())]}})
    assert status == 400
    assert "looks like base64, which MLflow's server decodes in `dataframe_records`" in said["message"]
