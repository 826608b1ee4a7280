"""A model on its way into the registry: what the stages wrote about it, and where it is to go."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.errors import RegistryError
from regraft.files import read_json
from regraft.measures import BESIDES, LEADING, METRICS, task_of, words
from regraft.paths import Paths
from regraft.registry import promotion, tracking
from regraft.registry.promotion import Answers
from regraft.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORTS = ("metrics", "training", "data", "download", "backbone")


@dataclass(frozen=True)
class Release:
    """One model to be registered and judged.

    Attributes:
        paths: The project that made it.
        settings: The project's settings.
        fingerprint: Names the model: equal for two models that are the same.
        lineage: Tags by which the model can be traced.
        reports: The stages' JSON reports by name, see REPORTS.
        answers: The model's answers to the test examples.
        client: MLflow, where the model goes.
        uri: Address of `client`.
    """

    paths: Paths
    settings: Settings
    fingerprint: str
    lineage: Mapping[str, str]
    reports: Mapping[str, Any]
    answers: Answers
    client: "MlflowClient"
    uri: str

    @property
    def name(self) -> str:
        """The registered model's name."""
        return self.settings.name

    @property
    def kind(self) -> str:
        """What the model takes: "image", "text" or "audio"."""
        return str(self.reports["data"]["kind"])

    @property
    def pair(self) -> list[str]:
        """The names of the two texts, if it takes pairs of them."""
        return list(self.reports["data"].get("pair", []))

    @property
    def task(self) -> str:
        """What the model answers: "classification", "multilabel" or "regression"."""
        return task_of(self.reports["metrics"])

    @property
    def metric(self) -> str:
        """The metric that decides about promotion."""
        return promotion.choose_metric(self.task, self.settings.promote.metric)

    @property
    def targets(self) -> str:
        """A digest of the names of targets or labels in their order; nothing for classes."""
        names = self.answers.names
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16] if names else ""

    @property
    def constant(self) -> tuple[float, ...]:
        """The constant answer that must be beaten, learned from training; empty for classes."""
        return tuple(self.reports["metrics"].get("baseline", {}).get("values", ()))

    @property
    def data_digest(self) -> str:
        """SHA-256 of the source's content; of the test examples where the source has none."""
        return str(self.reports["download"].get("digest") or self.answers.test_digest)

    @property
    def test_metrics(self) -> dict[str, dict[str, float]]:
        """Test metrics by name, each with value, low and high."""
        test = self.reports["metrics"]["test"]
        besides = {name: test[name] for name in BESIDES[self.task] if name in test}
        return {name: test[name] for name in METRICS[self.task]} | besides

    @property
    def shipped(self) -> str:
        """The strategy whose weights the model has: "probe" or that of fine-tuning."""
        return str(self.reports["metrics"].get("shipped", self.settings.finetune.strategy))


def prepare_release(paths: Paths, settings: Settings, lineage: Mapping[str, str], fingerprint: str) -> Release:
    """Read and check all that is known about the project's model, then connect to its registry.

    Raises:
        RegistryError: If a report is missing, or reports do not belong together.
        ResourceError: If MLflow does not answer.
    """
    reports = {}
    for name in REPORTS:
        path = paths.reports / f"{name}.json"
        try:
            reports[name] = read_json(path)
        except FileNotFoundError:
            raise RegistryError(
                f"{path} does not exist. Run `regraft run` to make a model before publishing."
            ) from None
    if not (paths.serving / "labels.json").exists():
        raise RegistryError(f"{paths.serving} holds no exported model. Run `regraft run --force evaluate`.")
    answers = promotion.read_answers(paths.reports / "predictions.csv")
    metric = LEADING[answers.task]
    reported = reports["metrics"]["test"].get(metric, {}).get("value", float("nan"))
    counted = promotion.score_answers(metric, answers)
    if not abs(reported - counted) <= 1e-6:  # true for NaN as well
        raise RegistryError(
            f"{paths.reports / 'metrics.json'} says {words(metric)} {reported:.6f}, but predictions.csv beside it "
            f"gives {counted:.6f}: the two are not of the same evaluation. Run `regraft run --force evaluate`."
        )
    promotion.choose_metric(answers.task, settings.promote.metric)
    client, uri = tracking.connect(paths, settings), tracking.tracking_uri(paths, settings)
    return Release(paths, settings, fingerprint, lineage, reports, answers, client, uri)
