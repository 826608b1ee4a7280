"""How unusual an input is said to be: by hand, through the exported graph, and where nothing can be said."""

import numpy as np
import pytest

from regraft.evaluation.unusual import distances, known_rows, measure_unusual, settle_familiar
from regraft.registry.serving import compile_features, export_saved_model, load_served
from tests.evaluation.small_models import picture, random_classifier


def directions(degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_distance_is_that_of_the_fifth_most_alike_and_length_does_not_count():
    known = directions([0, 10, 20, 30, 60, 180]).astype(np.float16)
    assert distances(known, 7.0 * directions([0])) == pytest.approx([0.5], abs=1e-3)  # the fifth stands at 60 degrees
    assert distances(known[:1], directions([90])) == pytest.approx([1.0], abs=1e-3)  # fewer than five: the last


def test_the_limit_is_the_conformal_quantile_of_validation():
    train = np.tile(directions([0]), (5, 1))
    validation = directions(np.arange(39))  # rank ceil(40 * 0.95) = 38: the angle of 37 degrees
    familiar = settle_familiar(train, validation)
    assert familiar is not None
    assert familiar.limit == pytest.approx(1.0 - np.cos(np.radians(37)), abs=1e-3)


def test_too_small_a_validation_split_sets_no_limit():
    assert settle_familiar(directions([0, 1]), directions(range(18))) is None
    assert settle_familiar(directions([0, 1]), directions(range(19))) is not None
    assert measure_unusual(None, np.zeros(3), interval=0.95) == {
        "why": "fewer than 19 validation examples cannot say which distance is usual"
    }


def test_inputs_that_are_all_copies_still_have_a_limit():
    familiar = settle_familiar(np.tile(directions([0]), (30, 1)), np.tile(directions([0]), (20, 1)))
    assert familiar is not None
    assert familiar.limit > 0.0


def test_the_share_beyond_the_limit_is_counted():
    familiar = settle_familiar(directions(range(10)), directions(range(40)))
    measured = measure_unusual(familiar, np.array([0.5, 1.0, 1.5, 3.0]), interval=0.95)
    assert measured["test"]["value"] == 0.5  # 1.0 itself is usual


def test_many_training_examples_are_thinned_evenly():
    rows = known_rows(4001)
    assert (len(rows), rows[0], rows[-1], max(np.diff(rows))) == (1000, 0, 4000, 5)
    assert known_rows(3) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_exported_graph_computes_what_was_settled(tmp_path, kind):
    classifier = random_classifier(kind, tmp_path / "backbones", ("a", "b"))
    inputs: list[bytes | str]
    if kind == "image":
        inputs = [picture(shade) for shade in range(0, 250, 8)]
    else:
        inputs = [" ".join(["good", "bad", "days", "a", "very"][: 1 + row % 5]) * (1 + row // 5) for row in range(32)]
    features = compile_features(classifier)(inputs)
    familiar = settle_familiar(features[::4], features[:20])
    assert familiar is not None
    export_saved_model(classifier, tmp_path / "export", example=inputs[0], familiar=familiar)
    served = load_served(tmp_path / "export")
    replies = served.with_unusual(inputs)
    assert replies.shape == (32, 3)
    assert replies[:, 2] == pytest.approx(distances(familiar.known, features) / familiar.limit, abs=2e-2, rel=1e-2)
    assert replies[:, :2] == pytest.approx(served.answers(inputs))
    assert list(served.loaded.answer.concrete_functions[0].structured_outputs) == ["probabilities"]  # other formats
