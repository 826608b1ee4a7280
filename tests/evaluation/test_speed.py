"""Speed is counted over real calls, with a warm-up that does not count."""

import time

import numpy as np

from regraft.evaluation.speed import measure_speed


def test_inputs_go_in_one_at_a_time_and_in_full_batches_even_when_there_are_few():
    sizes: list[int] = []

    def answer(inputs):
        sizes.append(len(inputs))
        time.sleep(1e-4 * len(inputs))
        return np.zeros((len(inputs), 2), np.float32)

    speed = measure_speed(answer, [b"a", b"b", b"c"], batch_size=8, budget_s=0.0)
    assert speed["latency_ms"]["calls"] == 20
    assert speed["throughput"]["calls"] == 3
    assert sizes == [1] * 23 + [8] * 6  # three calls to warm up before each
    assert 0.1 <= speed["latency_ms"]["p50"] <= speed["latency_ms"]["p99"]
    assert 0 < speed["throughput"]["examples_per_s"] <= 10_000
