"""Recording a finished model in MLflow: one run, one version, then the decision whether it becomes the champion.

Every step can be repeated. What an earlier attempt left (a run without metrics, a model without files) is found by the
fingerprint and completed, so a crash or a lost server costs time but never makes a second run or version. MLflow is
imported inside the functions: importing this module is quick.
"""

import json
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.data.pairs import as_columns
from regraft.errors import RegistryError
from regraft.files import read_json, read_object, write_json
from regraft.measures import headline
from regraft.paths import Paths
from regraft.registry import published, tracking
from regraft.registry.judge import judge
from regraft.registry.published import FINGERPRINT
from regraft.registry.release import Release, prepare_release
from regraft.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

log = logging.getLogger(__name__)

MODEL = "model"  # the logged model's name inside its run
CONSUMER_MODEL = Path(__file__).with_name("consumer_model.py")
UNRECORDED_SECTIONS = {"tracking", "placement"}  # where things run is not what the model is, and may hold a password
MOST_CHARACTERS = 5000  # of a description, in MLflow's tables
DIGEST_LENGTH = 36  # the longest dataset digest that MLflow accepts
METRICS_PER_BATCH, PARAMS_PER_BATCH = 900, 100  # MLflow takes 1,000 values at a time, 100 of them parameters


@dataclass(frozen=True)
class Publication:
    """A registered version, how it was judged, and what became of it.

    Attributes:
        name: The registered model.
        fingerprint: Names the model that the version holds.
        run_id: MLflow run that holds the version's settings, metrics and reports.
        version: Its number.
        promoted: Whether it carries the alias `champion`.
        reasons: One sentence for each gate, and one for the alias.
        gates: The gates as JSON, see `promotion.Gate`.
    """

    name: str
    fingerprint: str
    run_id: str
    version: int
    promoted: bool
    reasons: tuple[str, ...]
    gates: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """Return what reports/promotion.json holds."""
        return {**vars(self), "reasons": list(self.reasons), "gates": list(self.gates)}


def read_publication(paths: Paths) -> Publication:
    """Return what the last `publish` decided, from reports/promotion.json.

    Raises:
        RegistryError: If nothing was published yet.
    """
    try:
        facts = read_object(paths.reports / "promotion.json")
    except FileNotFoundError:
        raise RegistryError(f"{paths.root} has not published a model yet. Run `regraft run`.") from None
    try:
        return Publication(**{**facts, "reasons": tuple(facts["reasons"]), "gates": tuple(facts["gates"])})
    except (KeyError, TypeError) as error:
        raise RegistryError(
            f"{paths.reports / 'promotion.json'} is damaged: {error}. Delete it and run again."
        ) from error


def publish(paths: Paths, settings: Settings, lineage: Mapping[str, str], fingerprint: str) -> Publication:
    """Register the project's current model once, judge it, and move the alias `champion` to it if every gate holds.

    Args:
        paths: A project whose stages are all current.
        settings: Its settings.
        lineage: Tags of the run and the version by which the model can be traced, e.g. {"regraft.code_commit": ...}.
        fingerprint: Names the model: equal for two models that are the same.

    Returns:
        The publication, also written to reports/promotion.json. A model that a gate refuses is a result, not an error.

    Raises:
        ResourceError: If MLflow does not answer, goes away or cannot write. Nothing half-made is visible to consumers,
            and the next call completes what this one began.
        RegistryError: If MLflow refuses, if reports are missing or do not belong together, or if the champion cannot be
            scored on the present test data.
    """
    release = prepare_release(paths, settings, lineage, fingerprint)
    client, report = release.client, paths.reports / "promotion.json"
    # From here on the old report is no longer true of this project.
    report.unlink(missing_ok=True)
    with tracking.plain_errors(release.uri, f"publishing {release.name}"):
        standing = published.ask_client(client, release.name, fingerprint)
        if standing.version is None:
            _record(release)
            standing = published.ask_client(client, release.name, fingerprint)
        found = client.get_model_version(release.name, str(standing.version))
        judgement = judge(release, standing, found)
        publication = Publication(
            release.name,
            fingerprint,
            found.run_id,
            int(found.version),
            judgement.is_champion,
            judgement.reasons,
            judgement.gates,
        )
        write_json(report, publication.as_json())
        client.log_artifact(publication.run_id, str(report), "reports")
    for reason in publication.reasons:
        log.info("%s", reason)
    return publication


def _record(release: Release) -> None:
    """Make the run, the model and the version, or what is missing of them."""
    run = _open_run(release)
    _fill_run(release, run)
    model = _log_model(release, run)
    _log_test_metrics(release, run, model)
    release.client.set_terminated(run.info.run_id, "FINISHED")
    _register(release, run, model)


def _open_run(release: Release) -> "Run":
    """Return the run of this model: the one that an earlier attempt began, or a new one."""
    client, name = release.client, release.name
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment_id = client.create_experiment(name, tracking.artifact_location(release.uri, release.paths))
    elif experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"the MLflow experiment {name!r} was deleted. Restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}`, or give the project another `name`."
        )
    else:
        experiment_id = experiment.experiment_id
    query = f"tags.`{FINGERPRINT}` = '{release.fingerprint}'"
    begun = client.search_runs([experiment_id], query, order_by=["start_time ASC"])
    if begun:
        log.info("continuing run %s, which an earlier attempt began", begun[0].info.run_id)
        return begun[0]
    source = {"mlflow.source.name": "regraft", "mlflow.source.type": "LOCAL"}
    tags = {**release.lineage, **source, FINGERPRINT: release.fingerprint}
    return client.create_run(experiment_id, run_name=f"{name}-{release.fingerprint[:8]}", tags=tags)


def _fill_run(release: Release, run: "Run") -> None:
    """Record settings, metrics per epoch, the data and the reports."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    client, run_id = release.client, run.info.run_id
    sections = release.settings.model_dump(exclude=UNRECORDED_SECTIONS)
    # MLflow refuses another value for a parameter that is there; rules of promotion may change between two attempts.
    params = [Param(key, str(value)) for key, value in _flat(sections) if key not in run.data.params]
    # All at the time the run started, so that repeating them adds nothing: of two equal ones MLflow keeps one.
    metrics = [
        Metric(key, value, run.info.start_time, int(row["epoch"]))
        for row in release.reports["training"].get("history", [])
        for key, value in _flat(row)
        if key != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    for start in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_BATCH])
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
    data = release.reports["data"]
    dataset = Dataset(
        name=release.name,
        digest=release.data_digest[:DIGEST_LENGTH],
        source_type="regraft",
        source=json.dumps({"source": release.settings.download.source, "sha256": release.data_digest}),
        profile=json.dumps({"examples": data.get("examples"), "labels": len(data["labels"])}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    client.log_artifacts(run_id, str(release.paths.reports), "reports")
    # By these the model can be made again: see flows.rebuild.
    for file in (release.paths.params, release.paths.graph, release.paths.lock, release.paths.inputs):
        if file.exists():
            client.log_artifact(run_id, str(file), "project")


def _log_model(release: Release, run: "Run") -> "LoggedModel":
    """Store the consumer's model once.

    Does what `mlflow.pyfunc.log_model` does, step by step, for three reasons: that function starts the model to try its
    input example, which would load TensorFlow into the process of the flow; it works through process-wide state; and it
    makes another model each time, where this completes the one that an earlier attempt began.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client, run_id, experiment_id = release.client, run.info.run_id, run.info.experiment_id
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    for complete in models:
        if complete.status == LoggedModelStatus.READY:
            return complete
    model = models[0] if models else client.create_logged_model(experiment_id, MODEL, run_id)
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        saved = Path(folder) / MODEL
        _save_model(release, model, saved)
        client.log_model_artifacts(model.model_id, str(saved))
    if not (run.outputs and run.outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")


def _save_model(release: Release, model: "LoggedModel", folder: Path) -> None:
    """Write the consumer's model to `folder` in MLflow's format."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Map, Schema

    is_text = release.kind == "text"
    given = [ColSpec(DataType.string if is_text else DataType.binary, name) for name in release.pair or [release.kind]]
    facts = read_json(release.paths.serving / "labels.json")
    probabilities = ColSpec(Map(DataType.double), "probabilities")
    if release.task == "regression":
        is_single = len(release.answers.names) <= 1
        names = ("value",) if is_single else release.answers.names
        ends = [end if is_single else f"{name} {end}" for name in names for end in ("low", "high")]
        more = [end for end in ends if "conformal" in facts and end not in names]
        answered = [ColSpec(DataType.double, name) for name in (*names, *more)]
    else:
        answered = [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"), probabilities]
        if release.task == "multilabel":
            answered = [ColSpec(Array(DataType.string), "labels"), probabilities]
        if "conformal" in facts:
            answered.append(ColSpec(Array(DataType.string), "set"))
        if "doubt" in facts:
            answered.append(ColSpec(DataType.boolean, "is_sure"))
    if "unusual" in facts and "unusual" not in [column.name for column in answered]:
        answered.append(ColSpec(DataType.double, "unusual"))
    suffix = {"image": "bin", "text": "txt", "audio": "wav"}[release.kind]
    raw = (release.paths.serving / f"input_example.{suffix}").read_bytes()
    example: dict[str, Any] = {release.kind: [raw.decode("utf-8") if is_text else raw]}
    if release.pair:
        example = as_columns(release.pair, [raw.decode("utf-8")])
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
        python_model=str(CONSUMER_MODEL),
        artifacts={"serving": str(release.paths.serving)},
        signature=ModelSignature(inputs=Schema(given), outputs=Schema(answered)),
        input_example=pd.DataFrame(example),
        pip_requirements=_requirements(facts),
    )


def _requirements(facts: dict[str, Any]) -> list[str]:
    """Return what a consumer of the exported model that says `facts` needs, at the versions that made it."""
    pinned = [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pandas")]
    try:
        pinned.append(f"tensorflow=={version('tensorflow')}")
    except PackageNotFoundError:  # the CPU build is a distribution of its own
        pinned.append(f"tensorflow-cpu=={version('tensorflow-cpu')}")
    if facts.get("tensorflow_text", facts["kind"] == "text"):
        pinned.append(f"tensorflow-text=={version('tensorflow-text')}")
    return pinned


def _log_test_metrics(release: Release, run: "Run", model: "LoggedModel") -> None:
    """Record the test metrics on the run, and through it on the model and the data they were measured with."""
    from mlflow.entities import Metric

    values = {
        f"test.{name}{'' if part == 'value' else '.' + part}": numbers[part]
        for name, numbers in release.test_metrics.items()
        for part in ("value", "low", "high")
    }
    probe = release.reports["metrics"].get("probe", {}).get("test", {})
    values |= {f"probe.test.{name}": probe[name]["value"] for name in release.test_metrics if name in probe}
    about = {
        "model_id": model.model_id,
        "dataset_name": release.name,
        "dataset_digest": release.data_digest[:DIGEST_LENGTH],
    }
    metrics = [Metric(key, float(value), run.info.start_time, 0, **about) for key, value in values.items()]
    release.client.log_batch(run.info.run_id, metrics)


def _register(release: Release, run: "Run", model: "LoggedModel") -> None:
    """Make the version; it carries its fingerprint from the first moment."""
    from mlflow.exceptions import MlflowException

    client, name = release.client, release.name
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    backbone = release.settings.backbone.name
    tags = {
        **release.lineage,
        **{f"test.{metric}": f"{numbers['value']:.6f}" for metric, numbers in release.test_metrics.items()},
        FINGERPRINT: release.fingerprint,
        "regraft.kind": release.kind,
        "regraft.task": release.task,
        "regraft.targets": release.targets,
        "regraft.pair": json.dumps(release.pair) if release.pair else "",
        "regraft.shipped": release.shipped,
        "regraft.source": ", ".join(release.settings.download.sources),
        "regraft.data_digest": release.data_digest,
        "regraft.test_digest": release.answers.test_digest,
        "regraft.backbone": backbone,
        "regraft.backbone_sha256": str(release.reports["backbone"].get("weights_sha256", "")),
        "regraft.python": platform.python_version(),
    }
    description = (
        f"{release.shipped} on {backbone}: {headline(release.task, release.test_metrics)} on "
        f"{len(release.answers.ids)} test examples of {len(release.reports['data']['labels'])} "
        f"{ {'classification': 'classes', 'multilabel': 'labels', 'regression': 'target(s)'}[release.task] }"
    )
    card = f"{description}\n\n{release.paths.model_card.read_text('utf-8')}"
    # A registry in a database resolves the source through the process's own store, not the client's.
    with tracking.process_wide(release.uri):
        made = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run.info.run_id,
            tags={key: value for key, value in tags.items() if value},
            description=card if len(card) <= MOST_CHARACTERS else description,
            model_id=model.model_id,
        )
    # Two machines may publish the same model at the same moment; both then keep the older version.
    if published.ask_client(client, name, release.fingerprint).version != int(made.version):
        client.delete_model_version(name, made.version)
    log.info("registered version %s of %s", made.version, name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
