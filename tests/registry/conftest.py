"""Projects ready to be published, and a server to publish to."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import tensorflow as tf
from mlflow import MlflowClient

from regraft.data.records import Example, write_prepared
from regraft.files import write_json
from regraft.paths import Paths
from regraft.settings import Settings
from tests.registry.small_projects import COLOURS, RIGHT, ColourModel, Project, Server, picture, write_reports


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tf.Module], Path]:
    """Save a model once per kind and return its folder."""
    made: dict[str, Path] = {}

    def export(model: tf.Module) -> Path:
        key = f"{type(model).__name__} {model.order.numpy() if isinstance(model, ColourModel) else ''}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("exported") / "saved_model"
            tf.saved_model.save(model, str(made[key]), signatures={"serving_default": model.serve})
        return made[key]

    return export


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a row in them; making them takes MLflow a second or two."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}", f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def make_project(
    exported: Callable[[tf.Module], Path], empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Project]:
    """Return a function that makes, or changes, a project of coloured images as the stages would leave it."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)

    def make(
        root: Path,
        *,
        order: Sequence[int] = RIGHT,
        shades: Sequence[int] = range(100, 250, 10),
        uri: str | None = None,
        **promote: object,
    ) -> Project:
        paths = Paths(root)
        root.mkdir(exist_ok=True)
        if uri is None and not (root / "mlflow.db").exists():
            shutil.copy(empty_database, root / "mlflow.db")
        settings = Settings.model_validate({"name": "colours", "tracking": {"uri": uri}, "promote": promote})
        examples = []
        for colour in COLOURS:
            for shade in shades:
                content = picture(colour, shade)
                examples.append(Example(hashlib.sha256(content).hexdigest(), f"{colour}/{shade}.png", colour, content))
        examples.sort(key=lambda example: example.id)
        shutil.rmtree(paths.prepared, ignore_errors=True)
        splits = {"train": examples[:3], "validation": examples[:3], "test": examples}
        write_prepared(paths.prepared, "image", COLOURS, splits)

        model = ColourModel(order)
        shutil.rmtree(paths.serving, ignore_errors=True)
        shutil.copytree(exported(model), paths.serving / "saved_model")
        write_json(paths.serving / "labels.json", {"kind": "image", "labels": list(COLOURS)})
        (paths.serving / "input_example.bin").write_bytes(picture("blue", shades[0]))

        contents = tf.constant([example.content for example in examples], tf.string)
        probabilities = model.serve(contents)["probabilities"].numpy()
        predicted = [COLOURS[place] for place in probabilities.argmax(axis=1)]
        write_reports(paths, "image", examples, predicted, probabilities.max(axis=1))
        fingerprint = hashlib.sha256(repr((order, list(shades))).encode()).hexdigest()
        return Project(paths, settings, fingerprint)

    return make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    """A running MLflow server, shared by the session."""
    shared = Server(tmp_path_factory.mktemp("mlflow-server"))
    shutil.copy(empty_database, shared.folder / "server.db")
    shared.start()
    yield shared
    shared.kill()
