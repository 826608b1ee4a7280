"""Options of fine-tuning: they do what they say, together with each strategy, or are refused in one sentence."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

import tasks.finetune
from regraft.errors import TrainingError
from regraft.files import read_json
from regraft.tuning import runs
from regraft.tuning.batches import Batches
from regraft.tuning.classifier import load_classifier
from regraft.tuning.loop import Trainer, train
from regraft.tuning.objective import OBJECTIVES
from regraft.tuning.recipes import WAYS, Data, epochs_within, pilot_steps, refuse_what_does_not_fit
from regraft.tuning.scores import Score
from tests.tuning.sources import prepare_image, stripes
from tests.tuning.test_finetune_stage import SEED, made
from tests.tuning.test_finetune_ways import killed_after, paths_of, projects, settings  # noqa: F401
from tests.tuning.test_loop import batches, judge, made_up, plan, small_network
from tests.tuning.test_strategies import RECIPE, lp_ft, setting


def distance(network, start):
    return sum(float(np.square(now - then).sum()) for now, then in zip(network.get_weights(), start, strict=True))


def test_weights_end_nearer_to_where_they_started_the_stronger_they_are_pulled_back():
    distances = []
    for strength in (0.0, 10.0, 90.0):
        trainer = Trainer(small_network(), l2_sp=strength)
        start = [array.copy() for array in trainer.model.get_weights()]
        train(trainer, plan(), batches, judge(trainer))
        distances.append(distance(trainer.model, start))
    assert distances[0] > 1.2 * distances[1] > 1.5 * distances[2] > 0.0


def test_the_pull_is_towards_the_weights_of_the_start_and_replaces_decay():
    """With a rate at which a step of AdamW is known: weights without a gradient move by the pull alone."""
    trainer = Trainer(small_network(), l2_sp=50.0)
    trainer.start()
    kernel = trainer.model.get_layer("head").kernel
    at_start = kernel.numpy()
    kernel.assign(at_start + 1.0)
    images = tf.zeros((4, 8, 8, 3))  # without a bias or a picture, features are the constants of BatchNormalization
    still = Trainer(trainer.model, l2_sp=0.0, weight_decay=0.0)
    state = still.state()
    still.step(images, tf.constant([0, 1, 0, 1], tf.int64), 0.01)
    step = kernel.numpy() - (at_start + 1.0)
    still.restore(state)
    trainer.step(images, tf.constant([0, 1, 0, 1], tf.int64), 0.01)
    pulled = kernel.numpy() - (at_start + 1.0)
    np.testing.assert_allclose(pulled, step - 0.01 * 50.0 * (step + 1.0), atol=1e-5)


def test_epochs_are_averaged_only_as_long_as_validation_gains_by_it():
    # Asked in turn: epoch 1; epoch 2, its mean with 1 (better than both); epoch 3, its mean with those (worse).
    trainer, seen = Trainer(small_network()), []
    losses = made_up(0.6, 0.5, 0.4, 0.39, 0.45)

    def validate():
        seen.append([array.copy() for array in trainer.model.get_weights()])
        return losses()

    history = train(trainer, plan(soup=True), batches, validate)
    assert (history.best_epoch, history.averaged_epochs, history.kept_log_loss) == (3, 1, 0.39)
    for first, second, mean in zip(seen[0], seen[1], seen[2], strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    for third, kept in zip(seen[3], trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(third, kept)

    history = train(Trainer(small_network()), plan(epochs=2, soup=True), batches, made_up(0.6, 0.5, 0.4))
    assert (history.best_epoch, history.averaged_epochs, history.kept_log_loss) == (2, 2, 0.4)

    # A third epoch that is worse than the mean of the first two, alone and with them.
    noisy = iter([Score(loss, loss, 0.5, loss + np.tile([-9.0, 9.0], 32)) for loss in (0.6, 0.5, 0.4, 0.45, 0.43)])
    history = train(Trainer(small_network()), plan(soup=True), batches, lambda: next(noisy))
    assert (history.averaged_epochs, history.kept_log_loss) == (2, 0.4)


def test_batches_are_varied_alike_for_the_same_seed_and_epoch_however_many_were_taken():
    source = stripes(40)

    def vary(inputs, labels, seed):
        return inputs, tf.cast(labels, tf.float32) + tf.random.stateless_uniform((), seed)

    rows = Batches(source, np.arange(40), prepare_image, 10, 7, vary_batch=vary)
    whole = [labels.numpy() for _, labels in rows.training(1)]
    rest = [labels.numpy() for _, labels in rows.training(1, 2)]
    np.testing.assert_array_equal(whole[2:], rest)
    assert len({labels.max() for labels in whole}) == 4
    assert (whole[0] != next(iter(rows.training(2)))[1].numpy()).any()
    np.testing.assert_array_equal(next(iter(rows.in_order()))[1], source.labels[:10])


@pytest.mark.parametrize("kind", ["image", pytest.param("text", marks=pytest.mark.slow)])
def test_all_options_together_train_to_the_same_bytes_killed_on_the_way_or_not(paths_of, monkeypatch, kind):  # noqa: F811
    paths = paths_of(kind)
    options = {"label_smoothing": 0.1, "l2_sp": 1.0, "soup": True, "class_weights": "balanced"}
    chosen = settings("lp_ft", **options, mixup=0.2 if kind == "image" else 0.0)
    tasks.finetune.run(chosen, SEED, paths)
    first = made(paths)
    said = read_json(paths.reports / "training.json")
    assert options.items() <= said["options"].items()
    assert np.isfinite(said["history"][-1]["train_loss"])
    shutil.rmtree(paths.scratch)
    shutil.rmtree(paths.model)
    assert killed_after(7, chosen, paths, monkeypatch)  # in the second of two epochs of five steps
    tasks.finetune.run(chosen, SEED, paths)
    assert made(paths) == first


def test_balanced_classes_change_the_bias_of_both_heads_alone(paths_of, monkeypatch):  # noqa: F811
    paths = paths_of("image")
    tasks.finetune.run(settings("probe"), SEED, paths)
    plain = load_classifier(paths.model, paths.backbones)
    bias = plain.model.get_layer("head").get_weights()[1]
    weights = np.array([-0.5, 1.5], np.float32)
    monkeypatch.setattr(tasks.finetune, "log_weights", lambda labels, classes: weights)
    tasks.finetune.run(settings("probe", class_weights="balanced"), SEED, paths)
    balanced = load_classifier(paths.model, paths.backbones)
    np.testing.assert_array_equal(balanced.kernel, plain.kernel)
    temperature = (balanced.bias - plain.bias) / weights
    assert temperature[0] > 0.05
    np.testing.assert_allclose(temperature, temperature[0], rtol=1e-3)
    np.testing.assert_allclose(
        balanced.model.get_layer("head").get_weights()[1] - bias, temperature * weights, atol=1e-5
    )


def data(kind, task):
    source = stripes(4)
    source.kind = kind
    features = np.zeros((4, 2), np.float32)
    return Data(source, source, features, features, prepare_image, 2, OBJECTIVES[task])


@pytest.mark.parametrize(
    ("kind", "task", "way", "options", "said"),
    [
        ("image", "regression", "lp_ft", {"label_smoothing": 0.1}, r"label_smoothing is for classes and labels"),
        ("text", "classification", "lp_ft", {"mixup": 0.2}, r"mixup is for images and recordings"),
        ("audio", "classification", "contrastive", {}, r"contrastive is for texts with one class each; this is audio"),
        ("text", "multilabel", "contrastive", {}, r"this is text with multilabel"),
    ],
)
def test_what_does_not_fit_is_refused(kind, task, way, options, said):
    recipe = type(RECIPE)(**{**RECIPE.__dict__, **options})
    with pytest.raises(TrainingError, match=said):
        refuse_what_does_not_fit((WAYS[way],), data(kind, task), recipe)


def test_epochs_are_as_many_as_there_is_time_for():
    for steps, fitting in ((1000.0, 20), (95.0, 9), (9.0, 0)):
        assert epochs_within(steps, 20, steps_per_epoch=10.0, pilots=0, rehearsals=0) == fitting
    # 8 pilots of a quarter of 10 n steps each, 4 runs without a fold, and the run: 60 n.
    assert epochs_within(125.0, 20, steps_per_epoch=10.0, pilots=8, rehearsals=4) == 2
    assert pilot_steps(10_000) == 100


def test_a_budget_shortens_the_run_and_one_that_is_too_small_ships_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_seconds_of_steps", lambda runner, batches: (4.0, 1.0))
    recipe = type(RECIPE)(**{**RECIPE.__dict__, "learning_rate": 1e-3, "budget_s": 18.0})

    def tune(recipe, name):
        network, model, examples, probe = setting(rows=60)
        return lp_ft(model, network, examples, probe, recipe, scratch=tmp_path / name, run="a")

    tuned = tune(recipe, "some")  # an epoch is 6 steps, and validating 60 rows is worth 2
    assert (tuned.facts["epochs"], len(tuned.facts["history"])) == (1, 1)
    monkeypatch.setattr(runs, "_seconds_of_steps", lambda runner, batches: (0.1, 0.001))
    assert tune(recipe, "some").facts["epochs"] == 1  # as it was planned before it was interrupted
    assert tune(recipe, "fast").facts["epochs"] == RECIPE.epochs
    monkeypatch.setattr(runs, "_seconds_of_steps", lambda runner, batches: (4.0, 3.0))
    tuned = tune(recipe, "none")
    assert tuned.shipped == "probe"
    assert "budget_s: 18 is too little" in tuned.why


def test_the_time_of_a_step_is_measured_and_leaves_no_trace(tmp_path):
    network, model, examples, probe = setting(rows=60)
    generous = type(RECIPE)(**{**RECIPE.__dict__, "learning_rate": 1e-3, "budget_s": 1e6})
    measured = lp_ft(model, network, examples, probe, generous, scratch=tmp_path, run="a")
    network, model, examples, probe = setting(rows=60)
    plain = type(RECIPE)(**{**RECIPE.__dict__, "learning_rate": 1e-3})
    assert lp_ft(model, network, examples, probe, plain, scratch=tmp_path / "b", run="a").facts == measured.facts
