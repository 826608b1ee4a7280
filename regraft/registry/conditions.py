"""Conditions on a new model that its own reports answer, each off until params.yaml sets it: `promote.max_ece`, ...

A condition that was set and cannot be checked is not met.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.files import read_json
from regraft.measures import LOWER_IS_BETTER, slice_words, words
from regraft.paths import Paths
from regraft.registry.promotion import Gate
from regraft.settings import PromoteSettings

_AGAIN = "Run `regraft run --force evaluate`"


def condition_gates(promote: PromoteSettings, reports: Mapping[str, Any], paths: Paths) -> list[Gate]:
    """Ask every condition that is set.

    Args:
        promote: The settings.
        reports: The contents of reports/metrics.json and data.json as "metrics" and "data".
        paths: The project, for reports/speed.json and the exported model.
    """
    gates = []
    if promote.max_ece is not None:
        gates.append(calibration_gate(reports["metrics"], promote.max_ece))
    if promote.leakage == "clean":
        gates.append(leakage_gate(reports["data"]))
    if promote.min_slice is not None:
        gates.append(slice_gate(reports["metrics"], promote.min_slice))
    if promote.max_latency_ms is not None:
        gates.append(latency_gate(paths.reports / "speed.json", promote.max_latency_ms))
    if promote.max_model_mb is not None:
        gates.append(size_gate(paths.serving, promote.max_model_mb))
    return gates


def calibration_gate(metrics: Mapping[str, Any], most: float) -> Gate:
    """The expected calibration error on the test split, as the model ships, is at most `most`."""
    measured = metrics.get("calibration", {}).get("test")
    if measured is None:
        why = "real values have none; set promote.max_ece to null" if metrics.get("task") == "regression" else _AGAIN
        return Gate("max_ece", False, f"the evaluation gives no calibration error. {why}", {"most": most})
    error = measured["after"]
    spread = f"({error['low']:.4f} to {error['high']:.4f}; {error['by_chance']:.4f} if it were perfectly calibrated)"
    ends = {name: float(error[name]) for name in ("low", "high", "by_chance")}
    return _at_most("max_ece", "test calibration error", error["value"], most, decimals=4, besides=spread, **ends)


def leakage_gate(data: Mapping[str, Any]) -> Gate:
    """No copy, exact or near, and no group stands in two splits, unless one side was dropped."""
    leakage = data.get("leakage")
    if leakage is None:
        reason = "reports/data.json holds no leakage audit. Run `regraft run --force preprocess`"
        return Gate("leakage", False, reason, {})
    is_dropped = leakage["dropped"]["examples"] > 0
    copies = 0 if is_dropped else int(leakage["across_splits"])
    groups = 0 if is_dropped else int(leakage.get("groups", {}).get("across_splits", 0))
    passed = copies + groups == 0
    found = f"{copies} pair(s) of copies and {groups} group(s) stand in more than one split"
    mend = "" if passed else "; `regraft data audit` lists them, `preprocess.leaks: drop` takes them out of training"
    return Gate("leakage", passed, found + mend, {"copies": float(copies), "groups": float(groups)})


def slice_gate(metrics: Mapping[str, Any], least: float) -> Gate:
    """The worst slice of the test split reaches `least`; of an error, it is at most that."""
    slices: Mapping[str, Any] = metrics.get("slices", {})
    worst = slices.get("worst")
    if worst is None:
        why = f"no slice has {slices['fewest']} test examples" if slices else f"it names no slices. {_AGAIN}"
        return Gate("min_slice", False, f"the evaluation gives no worst slice: {why}", {"minimum": least})
    value, metric = worst["value"], slices["metric"]
    passed = value <= least if metric in LOWER_IS_BETTER else value >= least
    limit = "most allowed" if metric in LOWER_IS_BETTER else "minimum"
    reason = (
        f"test {words(metric)} {value:.4f} on the worst of {slices['looked_at']} slices "
        f"({slice_words(worst, '{:.4g}'.format)}, {worst['examples']} examples; {worst['low']:.4f} to "
        f"{worst['high']:.4f}) {'keeps to' if passed else 'misses'} the {limit} {least:.4f}"
    )
    numbers = {"value": value, "low": worst["low"], "high": worst["high"], "minimum": least}
    return Gate("min_slice", bool(passed), reason, numbers)


def latency_gate(speed: Path, most: float) -> Gate:
    """Half of the answers to single inputs came within `most` milliseconds, where the evaluation ran."""
    try:
        measured = read_json(speed)
    except FileNotFoundError:
        return Gate("max_latency_ms", False, f"{speed.name} is missing. {_AGAIN}", {"most": most})
    cores = f"(batch of 1, {measured['cpu_cores']} CPU cores)"
    p50 = float(measured["latency_ms"]["p50"])
    return _at_most("max_latency_ms", "median latency in ms", p50, most, decimals=1, besides=cores)


def size_gate(serving: Path, most: float) -> Gate:
    """The files of the exported model have at most `most` megabytes (10^6 bytes)."""
    megabytes = sum(file.stat().st_size for file in serving.rglob("*") if file.is_file()) / 1e6
    return _at_most("max_model_mb", "exported model in MB", megabytes, most, decimals=2)


def _at_most(
    name: str, what: str, value: float, most: float, *, decimals: int, besides: str = "", **numbers: float
) -> Gate:
    """Return the gate that `value` passes up to `most`; `besides` stands behind the value in the sentence."""
    passed = value <= most
    verb = "is within" if passed else "is above"
    reason = f"{what} {value:.{decimals}f}{besides and ' ' + besides} {verb} the most allowed {most:.{decimals}f}"
    return Gate(name, passed, reason, {"value": value, "most": most, **numbers})
