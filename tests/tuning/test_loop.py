"""The training loop: it learns, stands still where it must, stops when it should, and continues to the same bytes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from regraft.errors import SettingsError, TrainingError
from regraft.tuning.loop import Checkpoint, History, Plan, Trainer, train
from regraft.tuning.scores import Score, score

LABELS = np.arange(64) % 2
NOISE = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
IMAGES = (NOISE + LABELS[:, None, None, None] * 0.5).astype("float32")


def small_network(*, dropout=0.0):
    """A convolution, BatchNormalization with statistics of its own, and a head of two logits."""
    keras.utils.set_random_seed(4)
    images = keras.Input((8, 8, 3))
    hidden = layers.Conv2D(4, 3, name="convolution")(images)
    inner = layers.BatchNormalization(name="normalisation")
    hidden = keras.Sequential([keras.Input((6, 6, 4)), inner, layers.ReLU()], name="nested")(hidden)
    hidden = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(hidden))
    model = keras.Model(images, layers.Dense(2, name="head")(hidden))
    inner.set_weights([np.ones(4), np.zeros(4), np.full(4, 0.2), np.full(4, 1.7)])
    return model


def batches(epoch, taken=0):
    order = np.random.default_rng(epoch).permutation(64)[16 * taken :]
    return tf.data.Dataset.from_tensor_slices((IMAGES[order], LABELS[order])).batch(16)


def plan(**changes):
    return Plan(
        **{"epochs": 3, "steps_per_epoch": 4, "peak_rate": 0.01, "warmup_steps": 2, "patience_epochs": 9, **changes}
    )


def judge(trainer):
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(32)
    return lambda: score(trainer.logits(data), LABELS)


def made_up(*losses):
    """A judge that says what it is told, one loss an epoch."""
    remaining = iter(losses)

    def validate():
        loss = next(remaining)
        return Score(loss, loss, 0.5, np.full(64, loss))

    return validate


def weights(trainer):
    return b"".join(array.tobytes() for array in trainer.model.get_weights())


def test_training_lowers_the_loss_on_learnable_data():
    trainer = Trainer(small_network())
    before = judge(trainer)().log_loss
    history = train(trainer, plan(epochs=8, peak_rate=0.05), batches, judge(trainer))
    assert history.epochs[history.best_epoch - 1].validation_log_loss < 0.7 * before
    assert history.examples == 8 * 64


def test_statistics_of_a_nested_batch_normalisation_stand_still_while_kernels_move():
    trainer = Trainer(small_network())
    normalisation = trainer.model.get_layer("nested").layers[0]
    kernel = trainer.model.get_layer("convolution").get_weights()[0]
    train(trainer, plan(), batches, judge(trainer))
    assert (normalisation.moving_mean.numpy() == np.float32(0.2)).all()
    assert (normalisation.moving_variance.numpy() == np.float32(1.7)).all()
    assert (trainer.model.get_layer("convolution").get_weights()[0] != kernel).any()


def test_a_statistic_that_moves_all_the_same_is_noticed():
    trainer = Trainer(small_network())
    trainer.model.get_layer("nested").layers[0].trainable = True  # as code that unfreezes the whole model would
    with pytest.raises(TrainingError, match="2 BatchNormalization statistics moved although they are frozen"):
        train(trainer, plan(), batches, judge(trainer))


def test_tables_of_embeddings_stay_as_they_are_and_weights_without_influence_do_no_harm():
    keras.utils.set_random_seed(4)
    words = keras.Input((None,), dtype="int32")
    embedded = layers.Embedding(9, 4, name="table")(words)
    mixed = layers.Dense(4, name="mixing")(embedded)
    unused = layers.Dense(3, name="unused")
    model = keras.Model(words, [layers.Dense(2)(layers.GlobalAveragePooling1D()(mixed)), unused(mixed)])
    model = keras.Model(words, model(words)[0])
    trainer = Trainer(model)
    before = {weight.path: weight.numpy() for weight in model.weights}
    for _ in range(3):
        trainer.step(tf.constant([[1, 2, 3], [4, 5, 6]]), tf.constant([0, 1], tf.int64), 0.1)
    moved = {weight.path for weight in model.weights if (weight.numpy() != before[weight.path]).any()}
    assert not any("table" in path or "unused" in path for path in moved)
    assert any("mixing" in path for path in moved)


def test_the_model_ends_with_the_weights_of_its_best_epoch():
    seen = []
    trainer = Trainer(small_network())
    losses = made_up(0.9, 0.5, 0.7)

    def validate():
        seen.append(weights(trainer))
        return losses()

    history = train(trainer, plan(), batches, validate)
    assert history.best_epoch == 2
    assert weights(trainer) == seen[1] != seen[2]


@pytest.mark.parametrize(("spread", "chosen"), [(0.0, 1), (2.0, 2)])
def test_a_later_epoch_is_kept_unless_it_is_clearly_worse_than_the_lowest(spread, chosen):
    # A mean of 0.6 after 0.5 over 64 examples; the standard error of the difference is spread / 8, so 0 or 0.25.
    noise = spread * np.tile([-1.0, 1.0], 32)
    scores = iter([Score(0.5, 0.5, 0.5, np.full(64, 0.5)), Score(0.6, 0.6, 0.5, 0.6 + noise)])
    history = train(Trainer(small_network()), plan(epochs=2), batches, lambda: next(scores))
    assert (history.lowest_epoch, history.best_epoch) == (1, chosen)


def test_training_stops_when_validation_has_not_improved_for_as_long_as_patience_says():
    trainer = Trainer(small_network())
    history = train(trainer, plan(epochs=9, patience_epochs=2), batches, made_up(0.5, 0.6, 0.7, 0.1))
    assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3]


def test_a_loss_that_is_not_a_number_stops_training_and_says_where():
    def broken(epoch, taken):
        images = IMAGES.copy()
        if epoch == 2:
            images[:] = np.inf
        return tf.data.Dataset.from_tensor_slices((images, LABELS)).batch(16)

    trainer = Trainer(small_network())
    # A fused ReLU makes 0 of what is no number: then only the gradient has it, and the loss of the next step.
    with pytest.raises(TrainingError, match=r"in epoch 2 at step [56] of 12 \(learning rate 0\.0\d+\)"):
        train(trainer, plan(), broken, judge(trainer))


def test_a_validation_loss_that_is_not_a_number_stops_training():
    trainer = Trainer(small_network())
    with pytest.raises(TrainingError, match="validation log loss became nan after epoch 1"):
        train(trainer, plan(), batches, made_up(float("nan")))


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 11, 16])
def test_a_run_killed_at_any_step_continues_to_the_same_bytes(tmp_path, steps):
    """With dropout, so that the random state has to be saved too. An epoch has four steps."""

    class Killed(Exception):
        pass

    def run(file, *, killed_after=None):
        trainer = Trainer(small_network(dropout=0.4))
        taken: list[float] = []

        def kill(examples, loss):
            if len(taken) == killed_after:
                raise Killed
            taken.append(loss)

        checkpoint = Checkpoint(file, "a run", interval_s=0.0)
        history = train(trainer, plan(epochs=4), batches, judge(trainer), checkpoint=checkpoint, on_batch=kill)
        return history, weights(trainer), len(taken)

    whole, whole_weights, _ = run(tmp_path / "whole.npz")
    if steps < 16:
        with pytest.raises(Killed):
            run(tmp_path / "half.npz", killed_after=steps)
        continued, continued_weights, taken = run(tmp_path / "half.npz")
        assert taken == 1 + 16 - steps  # one call tells of what was already seen
    else:
        run(tmp_path / "half.npz")
        continued, continued_weights, taken = run(tmp_path / "half.npz")
        assert taken == 1
    assert continued_weights == whole_weights
    assert continued.epochs == whole.epochs


def test_checkpoints_are_spaced_so_that_they_cost_at_most_three_percent(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "run", interval_s=0.001)
    history = History()
    checkpoint.count(history, 20.0)
    assert not checkpoint.is_due()
    assert (history.checkpoints, history.checkpoints_seconds) == (1, 20.0)


def test_a_multiplier_shortens_the_step_of_adam_and_zero_stops_it():
    def moves(multipliers):
        trainer = Trainer(small_network(), multipliers=np.array(multipliers, np.float32))
        before = [weight.numpy() for weight in trainer.model.trainable_variables]
        trainer.step(IMAGES[:16], LABELS[:16], 0.01)
        return [weight.numpy() - start for weight, start in zip(trainer.model.trainable_variables, before, strict=True)]

    whole = moves([1.0, 1.0, 1.0, 1.0])
    parts = moves([0.0, 0.25, 0.5, 1.0])
    assert all(np.abs(move).max() > 0.005 for move in whole)  # Adam's first step is about the rate, whatever the slope
    for share, move, part in zip([0.0, 0.25, 0.5, 1.0], whole, parts, strict=True):
        np.testing.assert_allclose(part, share * move, atol=1e-7)


def test_a_checkpoint_of_another_run_is_ignored(tmp_path):
    file = tmp_path / "checkpoint.npz"
    trainer = Trainer(small_network())
    train(trainer, plan(), batches, judge(trainer), checkpoint=Checkpoint(file, "this run"))
    assert Checkpoint(file, "this run").load() is not None
    assert Checkpoint(file, "that run").load() is None


def test_a_finished_run_is_not_trained_again_from_its_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "run")
    trainer = Trainer(small_network())
    train(trainer, plan(), batches, made_up(0.5, 0.6, 0.7), checkpoint=checkpoint)
    best = weights(trainer)
    trainer = Trainer(small_network())
    train(trainer, plan(), batches, made_up(), checkpoint=checkpoint)
    assert weights(trainer) == best


def test_going_back_to_an_earlier_state_makes_the_same_run_again():
    trainer = Trainer(small_network(dropout=0.4))
    start = trainer.state()
    train(trainer, plan(), batches, judge(trainer))
    first = weights(trainer)
    trainer.restore(start)
    train(trainer, plan(), batches, judge(trainer))
    assert weights(trainer) == first


@pytest.mark.parametrize("said", ["soon", "-1", "inf", "nan", ""])
def test_an_interval_that_is_no_number_of_seconds_is_refused(tmp_path, monkeypatch, said):
    monkeypatch.setenv("REGRAFT_CHECKPOINT_S", said)
    with pytest.raises(SettingsError, match="REGRAFT_CHECKPOINT_S must be a number of seconds"):
        Checkpoint(tmp_path / "checkpoint.npz", "run")


def test_looks_say_what_is_kept_and_when_to_stop_also_after_a_run_was_killed(tmp_path):
    class Looking:
        """Keeps the second of its looks and stops after the third."""

        def __init__(self, trainer):
            self.trainer = trainer

        def take(self):
            return {"weights": weights(self.trainer).hex()}

        def best(self, taken):
            return min(2, len(taken))

        def why_stop(self, taken):
            return "enough" if len(taken) == 3 else None

    class Killed(Exception):
        pass

    def run(file, *, killed_after=None):
        trainer, left = Trainer(small_network()), iter(range(killed_after or 99))

        def kill(examples, loss):
            if next(left, None) is None:
                raise Killed

        checkpoint = Checkpoint(file, "a run", interval_s=0.0)
        history = train(
            trainer,
            plan(epochs=9),
            batches,
            judge(trainer),
            checkpoint=checkpoint,
            on_batch=kill,
            looks=Looking(trainer),
        )
        return history, weights(trainer)

    whole, kept = run(tmp_path / "whole.npz")
    assert len(whole.looks) == len(whole.epochs) == 3
    assert kept.hex() == whole.looks[1]["weights"] != whole.looks[2]["weights"]
    with pytest.raises(Killed):
        run(tmp_path / "half.npz", killed_after=10)  # in the third epoch
    continued, continued_kept = run(tmp_path / "half.npz")
    assert continued.looks == whole.looks
    assert continued_kept == kept
    assert run(tmp_path / "half.npz")[1] == kept  # and once more after its end
