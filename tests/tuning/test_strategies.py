"""Which learning rate, whether to flip, and which of the two models ships."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

from regraft.errors import Diverged, TrainingError
from regraft.tuning.classifier import graft
from regraft.tuning.course import Course
from regraft.tuning.devices import ONE_DEVICE
from regraft.tuning.mirrors import chirality
from regraft.tuning.pilots import Pilot, choose_rate, next_rate
from regraft.tuning.probe import fit_probe
from regraft.tuning.recipes import CHOOSING_FOLD, RATES, WAYS, Data, Recipe
from regraft.tuning.runs import Runs
from regraft.tuning.strategies import fine_tune
from regraft.tuning.verdict import compare
from tests.tuning.sources import prepare_image, stripes

MIDDLE = RATES[len(RATES) // 2]


def lp_ft(model, network, data, probe, recipe, *, scratch, run):
    return fine_tune((WAYS["lp_ft"],), iter([(model, network)]), data, probe, recipe, scratch=scratch, run=run)[1]


def pilot(rate, loss):
    return Pilot(rate, loss, loss, None)


def walk(loss_of):
    """Return the rates that are tried when the pilot at rate r has loss loss_of(r)."""
    pilots: list[Pilot] = []
    while (rate := next_rate(pilots)) is not None:
        pilots.append(pilot(rate, loss_of(rate)))
    return [tried.rate for tried in pilots], choose_rate(pilots)


@pytest.mark.parametrize("best", RATES)
def test_the_search_finds_the_bottom_of_a_valley_wherever_it_lies(best):
    tried, chosen = walk(lambda rate: abs(np.log(rate / best)))
    assert chosen == best
    assert len(set(tried)) == len(tried)


def test_the_search_stops_when_both_neighbours_are_worse():
    tried, _ = walk(lambda rate: abs(np.log(rate / MIDDLE)))
    assert len(tried) == 3


def test_a_rate_that_diverges_counts_as_worst():
    tried, chosen = walk(lambda rate: None if rate >= MIDDLE else rate)
    assert chosen == min(RATES)
    assert max(tried) <= RATES[RATES.index(MIDDLE) + 1]


def test_when_every_rate_diverges_the_error_names_them():
    with pytest.raises(TrainingError, match=r"every learning rate that was tried \(0.0001, 0.0003\)"):
        choose_rate([pilot(1e-4, None), pilot(3e-4, None)])


def logits_for(answers, labels, *, margin=3.0):
    """Logits that give `answers` and are about as sure as they are often right."""
    return np.eye(3)[np.asarray(answers)] * margin


LABELS = np.arange(60) % 3


def with_mistakes(rows):
    answers = LABELS.copy()
    answers[rows] = (answers[rows] + 1) % 3
    return logits_for(answers, LABELS)


def test_a_model_with_fewer_mistakes_is_preferred():
    verdict = compare(with_mistakes(range(10)), with_mistakes(range(5)), LABELS)
    assert verdict.prefers_tuned
    assert (verdict.gained, verdict.lost, verdict.examples) == (5, 0, 60)


def test_a_model_with_more_mistakes_is_not_preferred():
    assert not compare(with_mistakes(range(5)), with_mistakes(range(10)), LABELS).prefers_tuned


def test_the_same_model_is_not_preferred_to_itself():
    assert not compare(with_mistakes(range(5)), with_mistakes(range(5)), LABELS).prefers_tuned


def test_a_lower_log_loss_does_not_excuse_many_lost_answers():
    probe = logits_for(LABELS, LABELS, margin=0.2)  # all right, some of them by a hair
    probe[:20] = np.eye(3)[LABELS[:20]] * 0.01
    tuned = np.eye(3)[LABELS] * 0.4
    tuned[:9] = np.eye(3)[(LABELS[:9] + 1) % 3] * 0.01
    verdict = compare(probe, tuned, LABELS)
    assert verdict.tuned_log_loss < verdict.probe_log_loss or verdict.lost == 9
    assert not verdict.prefers_tuned


def test_being_surer_of_the_same_answers_is_no_reason_to_prefer():
    logits = np.random.default_rng(0).normal(size=(60, 3)) + np.eye(3)[LABELS]
    assert not compare(logits, 5 * logits, LABELS).prefers_tuned


def differences(rows, *, shift, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    return generator.normal(size=(rows, 10)).astype(np.float32) + shift(labels)[:, None].astype(np.float32), labels


def test_pictures_that_equal_their_mirror_images_are_not_told_apart():
    assert 0.4 < chirality(*differences(400, shift=lambda labels: 0.0 * labels)) < 0.6


def test_pictures_that_all_look_one_way_are_told_from_their_mirror_images():
    assert chirality(*differences(400, shift=lambda labels: 0.5 + 0.0 * labels)) > 0.85


def test_left_and_right_arrows_are_told_apart_although_together_they_are_symmetric():
    assert chirality(*differences(400, shift=lambda labels: labels - 0.5)) > 0.85


def test_without_two_pictures_of_a_class_nothing_is_flipped():
    assert chirality(np.ones((2, 3), np.float32), np.array([0, 1])) == 1.0


def test_copies_of_an_image_do_not_tell_it_from_its_mirror_image():
    twice = np.repeat(np.random.default_rng(1).normal(size=(200, 256)).astype(np.float32), 2, axis=0)
    labels, groups = np.zeros(400, np.int64), np.repeat(np.arange(200), 2)
    assert chirality(twice, labels) > 0.7
    assert chirality(twice, labels, groups) < 0.6


def backbone(seed=2):
    """A convolution whose average says little about bars, until it is tuned."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3))
    hidden = layers.Rescaling(1 / 128.0, -1.0)(images)
    hidden = layers.Conv2D(8, 5, padding="same", activation="relu")(hidden)
    return keras.Model(images, layers.GlobalAveragePooling2D()(hidden))


def setting(*, rows=200, judged=60):
    network = backbone()
    train, validation = stripes(rows), stripes(judged, seed=1)

    def features(source):
        images = np.stack([prepare_image(content).numpy() for content in source.inputs(range(len(source.labels)))])
        return network.predict(images, verbose=0)

    train_features, validation_features = features(train), features(validation)
    probe = fit_probe(train_features, train.labels, validation_features, validation.labels, classes=2)
    data = Data(train, validation, train_features, validation_features, prepare_image, 2)
    return network, graft(network, probe.kernel, probe.bias), data, probe


RECIPE = Recipe(epochs=4, batch_size=10, learning_rate="auto", patience_epochs=4, augment=False, seed=7)


def test_fine_tuning_that_helps_ships_and_its_rate_comes_from_pilots(tmp_path):
    network, model, data, probe = setting()
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 12})
    tuned = lp_ft(model, network, data, probe, recipe, scratch=tmp_path, run="a")
    assert tuned.shipped == "lp_ft"
    assert tuned.facts["learning_rate"] in {pilot["rate"] for pilot in tuned.facts["pilots"]}
    assert tuned.facts["pilots"][0]["held_out_log_loss"] is not None
    images = np.stack([prepare_image(content).numpy() for content in data.validation.inputs(range(60))])
    accuracy = (model.predict(images, verbose=0).argmax(axis=1) == data.validation.labels).mean()
    assert accuracy > probe.validation.accuracy


@pytest.mark.parametrize("rate", [0.01, "auto"])
def test_fine_tuning_that_harms_leaves_the_probe_and_the_untouched_backbone(tmp_path, rate):
    network, model, data, probe = setting()
    before = [array.copy() for array in model.get_weights()]
    harmful = Data(data.train, data.validation, data.train_features, data.validation_features, prepare_image, 2)
    harmful.train.labels[:] = 1 - harmful.train.labels  # what is learned from here on is wrong
    recipe = Recipe(**{**RECIPE.__dict__, "learning_rate": rate})
    tuned = lp_ft(model, network, harmful, probe, recipe, scratch=tmp_path, run="a")
    assert tuned.shipped == "probe"
    assert "does not prefer" in tuned.why
    assert all((now == then).all() for now, then in zip(model.get_weights(), before, strict=True))


def test_a_rate_from_the_settings_is_used_without_pilots(tmp_path):
    network, model, data, probe = setting(rows=40)
    recipe = Recipe(**{**RECIPE.__dict__, "learning_rate": 1e-3, "epochs": 1})
    facts = lp_ft(model, network, data, probe, recipe, scratch=tmp_path, run="a").facts
    assert (facts["learning_rate"], facts["learning_rate_chosen_by"], facts["pilots"]) == (1e-3, "settings", [])


def test_pilots_of_the_same_run_are_not_repeated(tmp_path):
    network, model, data, probe = setting(rows=40)
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 1})
    first = lp_ft(model, network, data, probe, recipe, scratch=tmp_path, run="a")
    written = (tmp_path / "pilots.json").stat().st_mtime_ns
    network, model, data, probe = setting(rows=40)
    second = lp_ft(model, network, data, probe, recipe, scratch=tmp_path, run="a")
    assert (tmp_path / "pilots.json").stat().st_mtime_ns == written
    assert second.facts == first.facts


def copies(model_of):
    """As many equal models as are asked for."""
    while True:
        network, model, *_ = model_of()
        yield model, network


@pytest.mark.parametrize("where", ["rehearse", "run"])
def test_where_several_ways_compete_one_that_diverges_later_leaves_the_probe(tmp_path, monkeypatch, where):
    _, _, data, probe = setting(rows=40, judged=12)
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 1, "learning_rate": 1e-3})

    def diverge(self, runner, *_):
        raise Diverged("the loss became nan")

    monkeypatch.setattr(Runs, where, diverge)
    ways = (WAYS["lp_ft"], WAYS["full"])
    models = copies(lambda: setting(rows=40, judged=12))
    model, tuned = fine_tune(ways, models, data, probe, recipe, scratch=tmp_path, run="a")
    assert tuned.shipped == "probe"
    images = np.stack([prepare_image(content).numpy() for content in data.validation.inputs(range(12))])
    np.testing.assert_allclose(model.predict(images, verbose=0), probe.logits(data.validation_features), atol=1e-4)


def test_folds_that_decide_had_no_say_in_the_choice_and_keep_groups_whole():
    _, _, data, probe = setting(rows=40, judged=12)
    course = Course(data, probe, RECIPE, vary=None, devices=ONE_DEVICE)
    assert len(course.folds) == 3
    assert CHOOSING_FOLD not in course.folds
    groups = np.arange(40) // 5
    course = Course(replace(data, groups=groups), probe, RECIPE, vary=None, devices=ONE_DEVICE)
    for fold in course.folds:
        learned, held_out = course.parted(fold)
        assert not set(groups[learned]) & set(groups[held_out])
    one = Course(replace(data, groups=np.zeros(40)), probe, RECIPE, vary=None, devices=ONE_DEVICE)
    assert one.folds == []
