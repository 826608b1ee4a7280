"""Deciding about a registered version: asking the gates, moving the aliases, recording both on the version."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import RegistryError, ResourceError
from regraft.measures import MINIMUM
from regraft.paths import REPOSITORY
from regraft.registry import promotion, published
from regraft.registry.conditions import condition_gates
from regraft.registry.promotion import Answers, Gate
from regraft.registry.published import CHALLENGER, CHAMPION, DECIDED, DECISION, PREVIOUS, Standing
from regraft.registry.release import Release

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SEEN = "reports/seen.npy"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What became of a version.

    Attributes:
        is_champion: Whether it carries the alias `champion` now.
        reasons: One sentence for each gate, and one for the alias.
        gates: The gates as JSON, see `promotion.Gate`.
    """

    is_champion: bool
    reasons: tuple[str, ...]
    gates: tuple[dict[str, Any], ...]


def judge(release: Release, standing: Standing, version: "ModelVersion") -> Judgement:
    """Decide whether `version` becomes the champion; a question that was answered before is not asked again.

    The alias `champion` moves after the decision is recorded, and `previous` is set before it, so that a crash at any
    point leaves a champion that works and a decision that the next call finishes.

    Args:
        release: The model that `version` holds.
        standing: What the registry says about the model.
        version: Its version.

    Raises:
        RegistryError: If the champion cannot be scored on the present test data.
        ResourceError: If MLflow goes away.
    """
    client, name, promote, champion = release.client, release.name, release.settings.promote, standing.champion
    number = int(version.version)
    recorded = json.loads(version.tags.get(DECISION, "{}"))
    settled = standing.is_settled(promote)
    if not (settled and recorded):
        gates = _gates(release, None if champion == number else champion)
        recorded = {
            "question": published.question(promote, champion),
            "promoted": all(gate.passed for gate in gates),
            "gates": [gate.as_json() for gate in gates],
        }
        client.set_model_version_tag(name, str(number), DECISION, json.dumps(recorded))

    is_champion = champion == number
    if is_champion:
        outcome = f"version {number} is the champion"
    elif settled:
        outcome = f"version {number} was judged before, against the same champion; the aliases stay where they are"
    elif recorded["promoted"]:
        is_champion = True
        if published.version_of(client, name, CHALLENGER) == number:
            client.delete_registered_model_alias(name, CHALLENGER)
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(champion))
        client.set_registered_model_alias(name, CHAMPION, str(number))
        replaced = "" if champion is None else f" instead of version {champion}, which stays as {PREVIOUS!r}"
        outcome = f"version {number} is now the champion{replaced}"
    else:
        stays = "there is no champion yet" if champion is None else f"version {champion} stays the champion"
        client.set_registered_model_alias(name, CHALLENGER, str(number))
        outcome = f"version {number} is registered as {CHALLENGER!r}; {stays}"
    if version.tags.get(DECIDED) != recorded["question"]:
        client.set_model_version_tag(name, str(number), DECIDED, recorded["question"])
    reasons = [gate["reason"] for gate in recorded["gates"]]
    return Judgement(is_champion, (*reasons, outcome), tuple(recorded["gates"]))


def _gates(release: Release, champion: int | None) -> list[Gate]:
    """Ask every gate; `champion` is the version to be compared with, if any."""
    settings, metric = release.settings, release.metric
    asked = settings.promote.minimum
    minimum = MINIMUM.get(release.task) if asked == "auto" else asked
    gates = [promotion.majority_gate(metric, release.answers, release.constant)]
    if minimum is not None:
        gates.insert(0, promotion.minimum_gate(metric, release.test_metrics[metric]["value"], minimum))
    gates += condition_gates(settings.promote, release.reports, release.paths)
    if champion is None:
        return gates
    theirs = release.client.get_model_version(release.name, str(champion))
    if reason := _incomparable(release, theirs):
        return [*gates, Gate("champion", False, reason, {})]
    ours, theirs_answered = release.answers, _champion_answers(release, theirs)
    # When the test split was made anew, some of it may be what the champion learnt from, and knows by heart.
    seen = _seen_by(release, theirs)
    fair = ours.without(seen), theirs_answered.without(seen)
    if fair[0] is not None and fair[1] is not None:
        ours, theirs_answered = fair[0], fair[1]
    else:
        log.warning("version %s, the champion, was trained on all of the present test split", champion)
    compared = promotion.champion_gate(
        metric,
        ours,
        theirs_answered,
        version=champion,
        left_out=len(release.answers.ids) - len(ours.ids),
        tolerance=settings.promote.tolerance,
        samples=settings.evaluate.bootstrap_samples,
        interval=settings.evaluate.interval,
        seed=settings.seed,
    )
    return [*gates, compared]


def _seen_by(release: Release, champion: "ModelVersion") -> NDArray[np.uint64]:
    """Return the examples that the champion's training or validation saw, as `promotion.compact_ids` does."""
    client = release.client
    files = {file.path for file in client.list_artifacts(champion.run_id, "reports")} if champion.run_id else set()
    if SEEN not in files:
        return np.array([], np.uint64)  # registered by hand, or by a version that did not record them
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        return np.asarray(np.load(client.download_artifacts(champion.run_id, SEEN, folder), allow_pickle=False))


def _incomparable(release: Release, champion: "ModelVersion") -> str:
    """Return why the champion cannot answer what this model answers; nothing if it can."""
    tags, differ = champion.tags, ""
    kind, task = tags.get("regraft.kind", release.kind), tags.get("regraft.task", "classification")
    if kind != release.kind:
        differ = f"answers {kind}s and this model {release.kind}s"
    elif json.loads(tags.get("regraft.pair") or "[]") != release.pair:
        differ = "takes other columns of text than this model"
    elif task != release.task:
        differ = f"is for {task} and this model for {release.task}"
    elif release.targets and tags.get("regraft.targets", "") != release.targets:
        differ = "answers other targets than this model"
    if not differ:
        return ""
    return (
        f"version {champion.version}, the champion, {differ}, so they cannot be compared: give the project another "
        f"`name`, or delete the alias {CHAMPION!r} in MLflow"
    )


def _champion_answers(release: Release, champion: "ModelVersion") -> Answers:
    """Return the champion's answers to the present test examples: those on record, or new ones if it has none."""
    import mlflow.artifacts

    client, wanted = release.client, release.answers.test_digest
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        if champion.tags.get("regraft.test_digest") == wanted and champion.run_id:
            files = {file.path for file in client.list_artifacts(champion.run_id, "reports")}
            if "reports/predictions.csv" in files:
                file = client.download_artifacts(champion.run_id, "reports/predictions.csv", folder)
                answers = promotion.read_answers(Path(file))
                if answers.test_digest == wanted:
                    return answers
        log.info("version %s, the champion, was measured on other test data; scoring it again", champion.version)
        model = mlflow.artifacts.download_artifacts(
            artifact_uri=client.get_model_version_download_uri(champion.name, champion.version),
            dst_path=folder,
            tracking_uri=release.uri,
        )
        file = Path(folder) / "answers.csv"
        _rescore(Path(model), release.paths.prepared, file, f"version {champion.version}, the champion,")
        answers = promotion.read_answers(file)
    if answers.test_digest != wanted:
        raise RegistryError(
            f"{release.paths.reports / 'predictions.csv'} is not about the test split in {release.paths.prepared}, so "
            "the champion cannot be compared with the new model. Run `regraft run --force evaluate`."
        )
    return answers


def _rescore(model: Path, prepared: Path, answers: Path, who: str) -> None:
    """Let `model` answer the test split in a process of its own, so that TensorFlow stays out of this one."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "regraft.registry.rescore", str(model), str(prepared), str(answers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise ResourceError(
            f"scoring {who} on the present test data was ended by signal {-done.returncode} (out of memory?); the new "
            "model is registered and will be judged by the next `regraft run`."
        )
    if done.returncode != 0:
        raise RegistryError(
            f"{who} could not be scored on the present test data, so the new model is registered but not judged. If "
            f"that version is beyond repair, delete the alias {CHAMPION!r} in MLflow. Its last words:\n"
            + done.stderr.strip()[-2000:]
        )
