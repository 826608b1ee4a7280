"""Conditions that a person sets: each on reports worked out by hand, then all of them on a published model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.files import read_json, write_json
from regraft.registry import published, tracking
from regraft.registry.conditions import calibration_gate, latency_gate, leakage_gate, size_gate, slice_gate
from regraft.registry.published import DECISION
from regraft.registry.register import publish
from regraft.settings import PromoteSettings
from tests.registry.small_projects import LINEAGE, Project

ERROR = {"value": 0.03, "low": 0.02, "high": 0.05, "by_chance": 0.025}
WORST = {"by": "size", "from": 1.0, "to": 2.5, "examples": 40, "value": 0.7, "low": 0.5, "high": 0.85, "clearly": True}


def sliced(metric: str = "accuracy", worst: Any = WORST) -> dict[str, Any]:
    return {"slices": {"metric": metric, "looked_at": 6, "fewest": 20, "worst": worst}}


def test_a_calibration_error_may_be_as_large_as_is_said() -> None:
    metrics = {"calibration": {"test": {"after": ERROR}}}
    assert calibration_gate(metrics, 0.03).passed
    refused = calibration_gate(metrics, 0.0299)
    assert not refused.passed
    assert "test calibration error 0.0300 (0.0200 to 0.0500" in refused.reason
    assert refused.numbers == {"value": 0.03, "most": 0.0299, "low": 0.02, "high": 0.05, "by_chance": 0.025}


def test_what_cannot_be_checked_is_not_met_and_says_what_to_do(tmp_path: Path) -> None:
    gates = [
        calibration_gate({"task": "regression", "calibration": {"method": "none"}}, 0.1),
        calibration_gate({"test": {}}, 0.1),
        leakage_gate({}),
        slice_gate({}, 0.5),
        slice_gate(sliced(worst=None), 0.5),
        latency_gate(tmp_path / "speed.json", 10.0),
    ]
    assert not any(gate.passed for gate in gates)
    assert "set promote.max_ece to null" in gates[0].reason
    assert "no slice has 20 test examples" in gates[4].reason
    assert all("regraft run --force" in gates[place].reason for place in (1, 2, 3, 5))


def test_the_worst_slice_must_reach_the_minimum_and_an_error_must_not_pass_it() -> None:
    assert slice_gate(sliced(), 0.7).passed
    assert not slice_gate(sliced(), 0.71).passed
    assert slice_gate(sliced("rmse"), 0.7).passed
    assert not slice_gate(sliced("rmse"), 0.69).passed
    assert "on the worst of 6 slices (size: 1 to 2.5, 40 examples" in slice_gate(sliced(), 0.7).reason


@pytest.mark.parametrize(
    ("copies", "groups", "dropped", "passed"), [(0, 0, 0, True), (2, 0, 0, False), (0, 1, 0, False), (2, 0, 2, True)]
)
def test_leaks_that_were_dropped_are_none(copies: int, groups: int, dropped: int, passed: bool) -> None:
    leakage = {"across_splits": copies, "dropped": {"examples": dropped}, "groups": {"across_splits": groups}}
    assert leakage_gate({"leakage": leakage}).passed is passed


def test_latency_and_size_are_those_of_the_export(tmp_path: Path) -> None:
    write_json(tmp_path / "speed.json", {"latency_ms": {"p50": 12.5}, "cpu_cores": 2})
    assert latency_gate(tmp_path / "speed.json", 12.5).passed
    assert not latency_gate(tmp_path / "speed.json", 12.4).passed
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model" / "variables" / "data").write_bytes(b"x" * 1_500_000)
    assert size_gate(tmp_path / "model", 1.5).passed
    assert size_gate(tmp_path / "model", 1.4).numbers == {"value": 1.5, "most": 1.4}


def test_conditions_that_are_off_leave_older_decisions_as_they_are() -> None:
    # What versions before the conditions hashed: the three settings that there were.
    old = '{"metric":"auto","minimum":"auto","tolerance":0.0}'
    assert PromoteSettings().model_dump_json(exclude=PromoteSettings().off) == old
    assert published.question(PromoteSettings(), 1) != published.question(PromoteSettings(max_ece=0.1), 1)


def test_a_published_model_is_refused_by_a_condition_and_every_number_is_on_its_decision(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    conditions: Any = {
        "max_ece": 0.02, "leakage": "clean", "min_slice": 0.6, "max_latency_ms": 5.0, "max_model_mb": 50.0,
    }  # fmt: skip
    project = make_project(tmp_path, **conditions)
    reports = project.paths.reports
    metrics, data = read_json(reports / "metrics.json"), read_json(reports / "data.json")
    write_json(reports / "metrics.json", metrics | sliced() | {"calibration": {"test": {"after": ERROR}}})
    write_json(reports / "data.json", data | {"leakage": {"across_splits": 0, "dropped": {"examples": 0}}})
    write_json(reports / "speed.json", {"latency_ms": {"p50": 4.0}, "cpu_cores": 2})
    refused = publish(project.paths, project.settings, LINEAGE, project.fingerprint)
    assert not refused.promoted
    outcome = {gate["name"]: gate["passed"] for gate in refused.gates}
    assert {name: outcome[name] for name in conditions} == {name: name != "max_ece" for name in conditions}
    client = tracking.connect(project.paths, project.settings)
    recorded = client.get_model_version("colours", str(refused.version)).tags[DECISION]
    assert '"by_chance": 0.025' in recorded

    relaxed = project.settings.model_copy(
        update={"promote": project.settings.promote.model_copy(update={"max_ece": 0.05})}
    )
    again = publish(project.paths, relaxed, LINEAGE, project.fingerprint)
    assert (again.version, again.promoted) == (refused.version, True)
