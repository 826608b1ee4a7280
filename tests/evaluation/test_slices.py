"""Slices: thirds that hold what they say, and a worst one that is not merely the smallest."""

from typing import Any

import numpy as np
import pytest

from regraft.data.audio import Recording
from regraft.evaluation.slices import measure_slices, traits
from tests.evaluation.small_models import picture

CHANCE: Any = {"samples": 200, "interval": 0.95, "seed": 5}


def test_the_slice_that_was_made_worse_is_found_and_clearly_so():
    random = np.random.default_rng(0)
    size, other = random.random(600), random.random(600)
    labels = random.integers(0, 3, 600)
    given = np.where((size > 0.8) & (random.random(600) < 0.7), (labels + 1) % 3, labels)
    found = measure_slices("classification", labels, given, {"other": other.tolist(), "size": size.tolist()}, **CHANCE)
    assert found["looked_at"] == 6
    assert [row["examples"] for row in found["slices"]] == [200] * 6
    worst = found["worst"]
    assert (worst["by"], worst["clearly"]) == ("size", True)
    inside = (size >= worst["from"] - 1e-6) & (size <= worst["to"] + 1e-6)
    assert worst["value"] == pytest.approx((labels == given)[inside].mean())
    assert worst["to"] == pytest.approx(size.max(), abs=1e-6)


def test_among_slices_that_only_chance_makes_differ_hardly_one_is_clearly_worse():
    clearly = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = np.zeros(300, int)
        given = (random.random(300) < 0.2).astype(int)
        properties = {name: random.random(300).tolist() for name in "abcde"}
        clearly += measure_slices("classification", labels, given, properties, **CHANCE)["worst"]["clearly"]
    assert clearly <= 5


def test_equal_values_stay_together_and_what_divides_nothing_is_left_out():
    labels = np.zeros(90, int)
    properties = {"same": [5.0] * 90, "two": [1.0] * 50 + [2.0] * 40, "few": [1.0] * 80 + [2.0] * 10}
    found = measure_slices("classification", labels, labels, properties, **CHANCE)
    assert [(row["by"], row["from"], row["to"], row["examples"]) for row in found["slices"]] == [
        ("two", 1.0, 1.0, 50),
        ("two", 2.0, 2.0, 40),
    ]
    assert found["left_out"] == ["same", "few"]
    assert found["worst"]["clearly"] is False


def test_no_slice_is_large_enough_in_a_small_split():
    found = measure_slices("classification", np.zeros(30, int), np.zeros(30, int), {"a": list(range(30))}, **CHANCE)
    assert (found["worst"], found["looked_at"], found["left_out"]) == (None, 0, ["a"])


def test_of_an_error_the_largest_is_worst():
    random = np.random.default_rng(1)
    truth = random.normal(size=(300, 1))
    size = np.arange(300.0)
    given = truth + np.where(size < 100, 2.0, 0.5)[:, None] * random.normal(size=(300, 1))
    found = measure_slices("regression", truth, given, {"size": size.tolist()}, **CHANCE)
    assert found["metric"] == "rmse"
    assert (found["worst"]["from"], found["worst"]["to"], found["worst"]["clearly"]) == (0.0, 99.0, True)
    labels = (truth > 0).astype(np.float32)
    assert measure_slices("multilabel", labels, labels > 0, {"size": size.tolist()}, **CHANCE)["metric"] == "micro_f1"


def test_columns_slice_by_their_values_or_where_they_are_numbers_by_quarters():
    labels = np.zeros(100, int)
    wrong_in_south = np.array([1] * 30 + [0] * 70)
    told = {
        "ward": ["south"] * 30 + ["north"] * 45 + [""] * 20 + ["3"] * 5,
        "age": ["", *(str(number) for number in range(1, 100))],
        "patient": [f"p{number}" for number in range(100)],
        "missing": [""] * 100,
        "odd": ["nan"] * 50 + ["1"] * 50,
    }
    found = measure_slices("classification", labels, wrong_in_south, {}, told=told, **CHANCE)
    assert [
        (row["by"], row.get("is", (row.get("from"), row.get("to"))), row["examples"]) for row in found["slices"]
    ] == [
        ("ward", "", 20),
        ("ward", "north", 45),
        ("ward", "south", 30),
        ("age", (1.0, 25.0), 25),
        ("age", (26.0, 50.0), 25),
        ("age", (51.0, 74.0), 24),
        ("age", (75.0, 99.0), 25),
        ("odd", "1", 50),
        ("odd", "nan", 50),
    ]
    assert found["left_out"] == ["patient", "missing"]
    assert (found["worst"]["by"], found["worst"]["is"], found["worst"]["clearly"]) == ("ward", "south", True)


def test_traits_are_read_off_examples():
    assert traits("text", ["abc", ""]) == {"text length (characters)": [3.0, 0.0]}
    image = traits("image", [picture(40), picture(200, side_px=30, file_format="JPEG")])
    assert image["shorter side (px)"] == [20.0, 30.0]
    assert image["brightness (0 to 255)"] == pytest.approx([40 + 215 / 20, 200 + 55 / 30], abs=3.0)
    recording = Recording(np.zeros(4000, np.float32), 8000, False).to_wav()
    assert traits("audio", [recording]) == {"length (s)": [0.5]}
