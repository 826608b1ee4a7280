"""Several devices, several processes, slices of a batch and lower precision: the same training, faster or smaller."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tasks.finetune
from regraft.backbones.extractor import build_extractor
from regraft.errors import ResourceError, SettingsError, TrainingError
from regraft.files import read_json
from regraft.paths import REPOSITORY
from regraft.settings import FinetuneSettings
from regraft.tuning import runs
from regraft.tuning.classifier import load_classifier
from regraft.tuning.devices import ONE_DEVICE, Devices, best_precision, failures_explained, rows_of
from regraft.tuning.loop import Trainer
from regraft.tuning.objective import CLASSES, LIKENESS
from regraft.workers import Worker, this_worker, wait_for_others
from tests.tuning.on_two_devices import IMAGES, LABELS, network, outcome
from tests.tuning.test_finetune_stage import SEED, make_project
from tests.tuning.test_finetune_ways import always_ship

HERE = Path(__file__).parent


def on_two_devices(what):
    """Return what `on_two_devices.py` prints."""
    command = [sys.executable, str(HERE / "on_two_devices.py"), what]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment(REPOSITORY)
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def environment(*paths, **more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **more}


def test_two_devices_train_like_one_and_continue_to_the_same_bytes():
    found = on_two_devices("few")
    assert found["replicas"] == 2
    assert max(found["apart"].values()) < 1e-5
    assert found["continued"]


@pytest.mark.slow
def test_two_devices_train_like_one_for_every_task_and_in_half_precision():
    apart = on_two_devices("many")["apart"]
    assert apart.pop("float16") < 0.05
    assert max(apart.values()) < 1e-5


@pytest.fixture(scope="module")
def whole_batches():
    return outcome(ONE_DEVICE)


@pytest.mark.parametrize("slices", [2, 4, 16])
def test_slices_of_a_batch_of_nine_take_the_step_of_the_whole_batch(whole_batches, slices):
    np.testing.assert_allclose(outcome(ONE_DEVICE, accumulate=slices), whole_batches, atol=1e-5)


def test_a_weight_without_influence_stays_as_it_is_in_slices_too():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((3,))
    both = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2, name="unused")(inputs)])
    model = keras.Model(inputs, both(inputs)[0])
    unused = both.get_layer("unused").get_weights()[0]
    trainer = Trainer(model, accumulate=2)
    trainer.step(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), 0.1)
    assert (both.get_layer("unused").get_weights()[0] == unused).all()


def test_parts_of_a_batch_are_as_equal_as_can_be_and_leave_no_row_out():
    assert [rows_of(part, 3, 10) for part in range(3)] == [(0, 3), (3, 6), (6, 10)]
    assert [rows_of(part, 4, 2) for part in range(4)] == [(0, 0), (0, 1), (1, 1), (1, 2)]


def test_contrastive_learning_refuses_slices_in_a_sentence():
    with pytest.raises(ValueError, match="accumulate has no meaning with strategy contrastive: set it to 1"):
        FinetuneSettings(strategy="contrastive", accumulate=2)
    with pytest.raises(ValueError, match="compares all examples of a batch: accumulate must be 1, got 2"):
        Trainer(network(ONE_DEVICE), LIKENESS, accumulate=2)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_only_the_backbone_computes_in_lower_precision_and_only_in_training(precision):
    trainer = Trainer(network(ONE_DEVICE), CLASSES, devices=Devices(None, precision))
    before = trainer.logits([(IMAGES, None)])
    first = trainer.step(IMAGES, LABELS["classification"], 0.01)
    assert types_of(trainer._step, "Conv2D", "Conv2DBackpropFilter") == {precision}
    assert types_of(trainer._step, "MatMul", "Mean", "SparseSoftmaxCrossEntropyWithLogits") == {"float32"}
    assert types_of(trainer._forward, "Conv2D", "MatMul") == {"float32"}
    assert {weight.dtype for weight in trainer.model.weights} == {"float32"}
    assert {layer.dtype_policy.name for layer in trainer.model._flatten_layers()} == {"float32"}
    np.testing.assert_array_equal(before, Trainer(network(ONE_DEVICE)).logits([(IMAGES, None)]))
    for _ in range(20):
        last = trainer.step(IMAGES, LABELS["classification"], 0.01)
    assert last < first


def types_of(function, *operations):
    graph = function.get_concrete_function().graph
    return {made.outputs[0].dtype.name for made in graph.get_operations() if made.type in operations}


def test_gradients_are_clipped_at_their_true_size_in_float16_too():
    """AdamW's first moment after one step is a tenth of the clipped gradient; losses are scaled by 32,768 meanwhile."""
    norms = []
    for precision in ("float32", "float16"):
        trainer = Trainer(network(ONE_DEVICE), clip_norm=0.01, devices=Devices(None, precision))
        trainer.step(IMAGES, LABELS["classification"], 0.01)
        moments = [variable for variable in trainer._optimizer.variables if variable.path.endswith("_momentum")]
        norms.append(np.sqrt(sum((moment.numpy() ** 2).sum() for moment in moments)))
    np.testing.assert_allclose(norms, [0.001, 0.001], rtol=1e-3)


@pytest.mark.parametrize(
    ("capabilities", "best"),
    [
        ([], "float32"),
        ([(8, 0)], "bfloat16"),
        ([(9, 0), (7, 5)], "float16"),
        ([(7, 0)], "float16"),
        ([(6, 1), (8, 6)], "float32"),
    ],
)
def test_precision_follows_the_weakest_gpu(capabilities, best):
    assert best_precision(capabilities) == best


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("image"), "image")


def test_a_model_trained_in_bfloat16_in_slices_ships_in_float32_and_the_report_says_so(project, monkeypatch):
    always_ship(monkeypatch)
    settings = FinetuneSettings(epochs=1, batch_size=8, learning_rate=1.0e-3, precision="bfloat16", accumulate=2)
    tasks.finetune.run(settings, SEED, project)
    report, times = (read_json(project.reports / name) for name in ("training.json", "training_time.json"))
    assert (report["precision"], report["replicas"], times["devices"]) == ("bfloat16", 1, ["CPU"])
    classifier = load_classifier(project.model, project.backbones)
    assert {weight.dtype for weight in classifier.model.weights} == {"float32"}
    untouched = build_extractor(project.backbones, image_size_px=32).model.get_weights()
    tuned = classifier.extractor.model.get_weights()
    assert any((now != then).any() for now, then in zip(tuned, untouched, strict=True))


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), MemoryError()])
def test_running_out_of_memory_says_at_what_size_and_what_to_do(project, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(runs, "train", fail)
    settings = FinetuneSettings(epochs=2, batch_size=8, learning_rate=1.0e-3, accumulate=2)
    expected = (
        r"out of memory in training at batch size 8, image size 32 px\. Set finetune\.accumulate: 4 .* smaller fin"
    )
    with pytest.raises(TrainingError, match=expected):
        tasks.finetune.run(settings, SEED, project)


def test_a_lost_worker_is_an_error_worth_another_try_only_where_there_are_workers():
    lost = tf.errors.UnavailableError(None, None, "Socket closed")

    class Several(Devices):
        span_processes = True

    sizes: dict[str, Any] = {"batch_size": 8, "accumulate": 1, "image_size_px": None}
    with (
        pytest.raises(ResourceError, match=r"another worker is gone .* Start all workers again"),
        failures_explained(Several(), **sizes),
    ):
        raise lost
    with pytest.raises(tf.errors.UnavailableError), failures_explained(ONE_DEVICE, **sizes):
        raise lost


def cluster(**tasks_by_kind):
    return {"cluster": tasks_by_kind, "task": {"type": "worker", "index": 0}}


def test_tf_config_says_which_worker_this_is(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert (this_worker().number, this_worker().count) == (0, 1)
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster(worker=["a:1", "b:1"])))
    assert this_worker() == Worker(0, ("a:1", "b:1"))
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster(worker=["a:1", "b:1"], chief=["c:1"])))
    assert this_worker() == Worker(1, ("c:1", "a:1", "b:1"))


@pytest.mark.parametrize(
    "said",
    [
        "worker 1",
        "[]",
        json.dumps(cluster(worker=[])),
        json.dumps(cluster(worker=["a:1"], ps=["b:1"])),
        json.dumps(cluster(worker=["a", "b"])),
    ],
)
def test_a_tf_config_of_another_form_is_refused(monkeypatch, said):
    monkeypatch.setenv("TF_CONFIG", said)
    with pytest.raises(SettingsError, match="the environment variable TF_CONFIG must be like"):
        this_worker()


def free_addresses(count):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners)
    for listener in listeners:
        listener.close()
    return addresses


def test_a_worker_that_does_not_come_is_named():
    addresses = free_addresses(2)
    with pytest.raises(ResourceError, match=f"no worker has answered at {addresses[1]} for 0 s"):
        wait_for_others(Worker(0, addresses), timeout_s=0.0)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ResourceError, match=f"cannot listen at {address}"):
            wait_for_others(Worker(0, (address, "127.0.0.1:1")), timeout_s=0.0)


ONE_WORKER = """
import logging, os, signal, sys
from pathlib import Path
from regraft.errors import RegraftError
from regraft.paths import Paths
from regraft.settings import FinetuneSettings
from regraft.tuning import loop
import tasks.finetune

step, dies_at, taken = loop.Trainer.step, int(sys.argv[2]), []

def step_or_die(self, *arguments):
    taken.append(arguments)
    if len(taken) == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)

loop.Trainer.step = step_or_die
try:
    settings = FinetuneSettings(epochs=2, batch_size=8, learning_rate=1.0e-3, strategy="full")
    tasks.finetune.run(settings, 7, Paths(Path(sys.argv[1])))
except RegraftError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def train_in_two_processes(root, scratch, dies_at=(0, 0)):
    """Return exit code and output of each of two workers on one project."""
    addresses = list(free_addresses(2))
    workers = []
    for number in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        settings = {"TF_CONFIG": json.dumps(config), "REGRAFT_SCRATCH": str(scratch / str(number))}
        command = [sys.executable, "-c", ONE_WORKER, str(root), str(dies_at[number])]
        workers.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(REPOSITORY, REGRAFT_CHECKPOINT_S="0", **settings),
            )
        )
    try:
        outputs = [worker.communicate(timeout=200)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, output) for worker, output in zip(workers, outputs, strict=True)]


@pytest.mark.slow
def test_two_processes_train_as_one_and_after_a_loss_go_on_from_what_the_chief_kept(project, tmp_path):
    def made():
        return (project.model / "model.weights.h5").read_bytes(), (project.reports / "training.json").read_bytes()

    assert [code for code, _ in train_in_two_processes(project.root, tmp_path / "whole")] == [0, 0]
    whole, report = made(), read_json(project.reports / "training.json")
    assert report["replicas"] == 2
    (chief, said), (worker, _) = train_in_two_processes(project.root, tmp_path / "broken", dies_at=(0, 7))
    assert (chief, worker) == (75, -9)
    assert "another worker is gone" in said
    assert [code for code, _ in train_in_two_processes(project.root, tmp_path / "broken")] == [0, 0]
    assert made() == whole
    tasks.finetune.run(FinetuneSettings(epochs=2, batch_size=8, learning_rate=1.0e-3, strategy="full"), SEED, project)
    alone = read_json(project.reports / "training.json")
    losses = [[epoch["train_loss"] for epoch in told["history"]] for told in (alone, report)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
