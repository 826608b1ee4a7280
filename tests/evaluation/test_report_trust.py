"""Sentences on trust: a broken promise, a calibration that did harm and a worst slice are said as what they are."""

from typing import Any

from regraft.evaluation.report_trust import trust_facts


def facts_of(metrics: dict[str, Any]) -> dict[str, Any]:
    return trust_facts(
        {"test": {}, **metrics},
        show=lambda _, value: f"{value:.2f}",
        percent=lambda share: f"{100 * share:.1f}%",
        number=lambda value: f"{value:g}",
    )


def test_metrics_of_an_older_evaluation_lack_these_parts():
    nothing: dict[str, Any] = {
        "calibration": None,
        "promise": None,
        "doubt": [],
        "unusual": None,
        "slices": None,
        "figures": [],
        "not_ranked": [],
    }
    assert facts_of({}) == nothing


def test_a_line_and_its_absence_are_both_said():
    curve = [{"answered": share, "error": 0.1 * share} for share in (0.5, 0.95, 1.0)]
    test: dict[str, Any] = {
        "curve": curve,
        "answered": {"value": 0.8},
        "error": {"value": 0.04, "low": 0.02, "high": 0.06},
    }
    doubt = {"risk": None, "least_sure": None, "why": "nobody asked", "test": test}
    (said,) = facts_of({"doubt": doubt})["doubt"]
    assert said == "Wrong on the test split: 5.0% of the surest 50%, 10.0% of 100% of answers."
    _, absent = facts_of({"doubt": {**doubt, "risk": 0.05}})["doubt"]
    assert absent == "Answers do not say whether they are doubtful: nobody asked."
    _, drawn = facts_of({"doubt": {**doubt, "risk": 0.05, "least_sure": 0.7}})["doubt"]
    assert "on the test split 80.0% of answers, of which 4.0% are wrong (2.0% to 6.0%)." in drawn
    test["error"] = None
    assert facts_of({"doubt": {**doubt, "risk": 0.05, "least_sure": 0.7}})["doubt"][1].endswith("80.0% of answers.")


def test_a_promise_that_test_data_breaks_is_said_to_be_broken():
    size = {"value": 1.5, "low": 1.4, "high": 1.6}
    kept = {"coverage": {"value": 0.85, "low": 0.8, "high": 0.91}, "set_size": size, "alone": 0.6}
    promise = {"coverage": 0.9, "why": "the set holds the right class for 90.0% of inputs", "test": kept}
    assert not facts_of({"conformal": promise})["promise"]["is_broken"]
    kept = {**kept, "coverage": {"value": 0.85, "low": 0.8, "high": 0.89}}
    broken = facts_of({"conformal": {**promise, "test": kept}})["promise"]
    assert broken["is_broken"]
    assert "less than promised" in broken["lines"][-1]
    none = facts_of({"conformal": {"coverage": 0.9, "why": "8 validation examples cannot support it"}})["promise"]
    assert none["lines"] == ["Answers carry no promise: 8 validation examples cannot support it."]


def test_a_temperature_that_did_harm_is_said_to():
    error = {"value": 0.1, "low": 0.08, "high": 0.12, "by_chance": 0.02, "reliability": []}
    measured = {"before": error, "after": error, "bins": 15, "change": {"value": 0.02, "low": 0.01, "high": 0.03}}
    calibration = {"method": "temperature", "temperature": 2.0, "why": "that helps", "test": measured}
    said = facts_of({"calibration": calibration})["calibration"]
    assert said["said"].startswith("Logits are divided by a temperature of 2.00: that helps.")
    assert "made the error larger, by more than chance" in said["said"]
    assert [row["name"] for row in said["rows"]] == ["before", "as it ships"]


def test_the_worst_slice_is_named_with_how_many_were_looked_at():
    row = {"by": "size (px)", "from": 1.0, "to": 9.0, "examples": 40, "value": 0.5, "low": 0.3, "high": 0.7}
    other = {**row, "from": 10.0, "to": 20.0, "value": 0.9}
    slices = {"metric": "accuracy", "looked_at": 2, "fewest": 20, "slices": [row, other], "left_out": []}
    said = facts_of({"slices": {**slices, "worst": {**row, "clearly": True}}})["slices"]
    assert (
        said["said"]
        == "Worst of 2 slices: size (px): 1 to 9, accuracy 0.50 (0.30 to 0.70), clearly worse than the whole."
    )
    assert [line["is_worst"] for line in said["rows"]] == [True, False]
    told = {"by": "ward", "is": "", "examples": 40, "value": 0.4, "low": 0.2, "high": 0.6}
    slices |= {"slices": [row, told], "worst": {**told, "clearly": False}}
    said = facts_of({"slices": slices})["slices"]
    assert said["said"].startswith("Worst of 2 slices: ward: (empty), accuracy 0.40")
    assert [line["is_worst"] for line in said["rows"]] == [False, True]
