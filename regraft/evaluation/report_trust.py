"""The part of the report on how far answers can be trusted: calibration, promises, slices, and further metrics."""

from collections.abc import Callable, Mapping
from typing import Any

from regraft.evaluation.plots import Theme, reliability_figure
from regraft.measures import BESIDES, METRICS, slice_words, task_of, words

Show = Callable[[str, float], str]  # a metric and its value, for people
Percent = Callable[[float], str]


def trust_figures(metrics: Mapping[str, Any], theme: Theme) -> dict[str, bytes]:
    """Return the figures of this part by name; none for real values."""
    measured = metrics.get("calibration", {}).get("test")
    if measured is None:
        return {}
    is_calibrated = metrics["calibration"]["method"] != "none"
    before = measured["before"]["reliability"] if is_calibrated else None
    return {"reliability": reliability_figure(measured["after"]["reliability"], before, theme)}


def trust_facts(metrics: Mapping[str, Any], *, show: Show, percent: Percent, number: Percent) -> dict[str, Any]:
    """Return what the template needs, from reports/metrics.json; parts that it lacks are None or empty.

    Args:
        metrics: reports/metrics.json.
        show: Words a metric's value.
        percent: Words a share.
        number: Words any other number.
    """
    return {
        "calibration": _calibration(metrics, percent),
        "promise": _promise(metrics, percent, number),
        "doubt": _doubt(metrics, percent),
        "unusual": _unusual(metrics, percent),
        "slices": _slices(metrics, show, number),
        "figures": _figures(metrics, show),
        "not_ranked": metrics["test"].get("not_ranked", []),
    }


def _calibration(metrics: Mapping[str, Any], percent: Percent) -> dict[str, Any] | None:
    calibration = metrics.get("calibration", {})
    if "test" not in calibration:
        return None
    measured, why = calibration["test"], calibration["why"]
    is_calibrated = calibration["method"] != "none"
    rows = [("as it ships", measured["after"])]
    said = f"Probabilities are as the model gives them: {why}."
    if is_calibrated:
        rows.insert(0, ("before", measured["before"]))
        said = f"Logits are divided by a temperature of {calibration['temperature']:.2f}: {why}."
    change = measured["change"]
    if is_calibrated and change["low"] > 0.0:
        said += " On the test split that made the error larger, by more than chance explains."
    return {
        "said": said,
        "rows": [
            {"name": name, "value": percent(row["value"]), "span": f"{percent(row['low'])} to {percent(row['high'])}"}
            for name, row in rows
        ],
        "by_chance": percent(measured["after"]["by_chance"]),
        "bins": measured["bins"],
        "is_calibrated": is_calibrated,
    }


def _promise(metrics: Mapping[str, Any], percent: Percent, number: Percent) -> dict[str, Any] | None:
    promise = metrics.get("conformal")
    if promise is None:
        return None
    if "test" not in promise:
        return {"lines": [f"Answers carry no promise: {promise['why']}."], "is_broken": False}
    test, asked = promise["test"], promise["coverage"]
    covered = test["coverage"]
    span = f"{percent(covered['low'])} to {percent(covered['high'])}"
    lines = [f"Promised: {promise['why']}. On the test split it did for {percent(covered['value'])} ({span})."]
    if "set_size" in test:
        noun = "labels" if task_of(metrics) == "multilabel" else "classes"
        size = test["set_size"]
        lines.append(
            f"A set holds {size['value']:.2f} {noun} on average ({size['low']:.2f} to {size['high']:.2f}); "
            f"{percent(test['alone'])} of sets hold just one."
        )
    else:
        lines += [
            f"{name}: {number(width)} to both sides, which held the truth for {percent(column['value'])} "
            f"({percent(column['low'])} to {percent(column['high'])})."
            for name, width, column in zip(metrics["labels"], promise["half_widths"], test["by_column"], strict=True)
        ]
    if is_broken := covered["high"] < asked:
        lines.append("That is less than promised, by more than chance explains: test data is unlike validation data.")
    return {"lines": lines, "is_broken": is_broken}


def _doubt(metrics: Mapping[str, Any], percent: Percent) -> list[str]:
    """Return sentences on what leaving doubtful answers out would bring, and on the line that was drawn."""
    doubt = metrics.get("doubt")
    if doubt is None:
        return []
    test = doubt["test"]
    points = ", ".join(
        f"{percent(point['error'])} of {'the surest ' if point['answered'] < 1.0 else ''}{point['answered']:.0%}"
        for point in test["curve"]
        if point["answered"] in (1.0, 0.9, 0.8, 0.5)
    )
    lines = [f"Wrong on the test split: {points} of answers."]
    if doubt["risk"] is None:
        return lines
    if doubt["least_sure"] is None:
        return [*lines, f"Answers do not say whether they are doubtful: {doubt['why']}."]
    given, error = test["answered"], test["error"]
    among = "" if error is None else f", of which {percent(error['value'])} are wrong"
    span = "" if error is None else f" ({percent(error['low'])} to {percent(error['high'])})"
    return [
        *lines,
        f"At most {percent(doubt['risk'])} were to be wrong, so they are sure from {percent(doubt['least_sure'])} on "
        f"({doubt['why']}): on the test split {percent(given['value'])} of answers{among}{span}.",
    ]


def _unusual(metrics: Mapping[str, Any], percent: Percent) -> str | None:
    """Return a sentence on how answers tell inputs that are unlike the training data."""
    unusual = metrics.get("unusual")
    if unusual is None:
        return None
    if "test" not in unusual:
        return f"Answers do not say how unusual an input is: {unusual['why']}."
    test = unusual["test"]
    return (
        f"Answers say how far an input is from {unusual['known']} training examples, by the model's own features: up "
        f"to 1 for {percent(unusual['usual'])} of {unusual['examples']} validation examples, more for "
        f"{percent(test['value'])} ({percent(test['low'])} to {percent(test['high'])}) of the test split."
    )


def _slices(metrics: Mapping[str, Any], show: Show, number: Percent) -> dict[str, Any] | None:
    slices = metrics.get("slices")
    if slices is None:
        return None
    metric = slices["metric"]

    def worded(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "name": slice_words(row, number),
            "examples": row["examples"],
            "value": show(metric, row["value"]),
            "span": f"{show(metric, row['low'])} to {show(metric, row['high'])}",
            "is_worst": slices["worst"] is not None and all(row[key] == slices["worst"].get(key) for key in row),
        }

    worst = slices["worst"]
    if worst is None:
        said = f"No slice has {slices['fewest']} test examples, so none is judged."
    else:
        verdict = "clearly worse than the whole" if worst["clearly"] else "which chance alone may explain"
        said = (
            f"Worst of {slices['looked_at']} slices: {worded(worst)['name']}, {words(metric)} "
            f"{show(metric, worst['value'])} ({worded(worst)['span']}), {verdict}."
        )
    return {
        "said": said,
        "metric": words(metric),
        "rows": [worded(row) for row in slices["slices"]],
        "left_out": slices["left_out"],
        "fewest": slices["fewest"],
    }


def _figures(metrics: Mapping[str, Any], show: Show) -> list[dict[str, str]]:
    """Return a row for each metric of the test split with its interval."""
    task, test = task_of(metrics), metrics["test"]
    return [
        {
            "name": words(name),
            "value": show(name, test[name]["value"]),
            "span": f"{show(name, test[name]['low'])} to {show(name, test[name]['high'])}",
        }
        for name in (*METRICS[task], *BESIDES[task])
        if name in test
    ]
