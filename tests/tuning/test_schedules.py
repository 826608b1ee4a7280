"""The learning rate over the steps of training."""

import pytest

from regraft.tuning.schedules import warmup_cosine


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (5, 0.05), (10, 0.1), (60, 0.05), (110, 0.0)])
def test_warmup_cosine_at_its_landmarks(step, expected):
    assert warmup_cosine(step, total_steps=110, warmup_steps=10, peak=0.1) == pytest.approx(expected)


def test_without_warmup_the_schedule_starts_at_its_peak():
    assert warmup_cosine(0, total_steps=10, warmup_steps=0, peak=0.3) == 0.3


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_schedule_is_refused(step):
    with pytest.raises(ValueError, match=r"step must be in \[0, 10\]"):
        warmup_cosine(step, total_steps=10, warmup_steps=2, peak=0.1)
