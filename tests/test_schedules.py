import math

import numpy as np
import pytest

from detailclip_jax.training import schedules


def reference_learning_rate(t, warmup, total, start=1e-6, peak=5e-4, end=1e-5):
    """As the reference builds it: two lists laid end to end."""
    rising = np.linspace(start, peak, warmup)
    falling = [end + 0.5 * (peak - end) * (1 + math.cos(math.pi * i / (total - warmup))) for i in range(total - warmup)]
    return [*rising, *falling][t]


@pytest.mark.parametrize("t", [0, 1, 8, 9, 10, 11, 50, 99])
def test_learning_rate(t):
    schedule = schedules.warmup_cosine(1e-6, 5e-4, 1e-5, 10, 100)
    np.testing.assert_allclose(schedule(t), reference_learning_rate(t, 10, 100), rtol=2e-5)


def test_peak_is_reached_twice_and_the_end_never():
    schedule = schedules.warmup_cosine(1e-6, 5e-4, 1e-5, 10, 100)
    np.testing.assert_allclose([schedule(9), schedule(10)], 5e-4, rtol=1e-6)
    assert float(schedule(99)) > 1e-5


def test_no_warmup_and_a_run_of_one_step():
    np.testing.assert_allclose(schedules.warmup_cosine(1e-6, 5e-4, 1e-5, 0, 1)(0), 5e-4, rtol=1e-6)


@pytest.mark.parametrize("t", [0, 1, 50, 99])
def test_teacher_momentum(t):
    expected = 1 - 0.5 * 0.004 * (1 + math.cos(math.pi * t / 100))
    np.testing.assert_allclose(schedules.cosine(0.996, 1.0, 100)(t), expected, rtol=1e-6)


def test_patch_temperature_changes_after_the_first_epoch():
    schedule = schedules.epoch_warmup(0.04, 0.07, 1, 10)
    np.testing.assert_allclose([schedule(t) for t in (0, 9, 10, 25)], [0.04, 0.04, 0.07, 0.07], rtol=1e-6)


def test_a_temperature_rises_over_epochs_as_linspace():
    schedule = schedules.epoch_warmup(0.04, 0.07, 4, 10)
    expected = np.concatenate([np.linspace(0.04, 0.07, 4), [0.07, 0.07]])
    np.testing.assert_allclose([schedule(10 * epoch + 3) for epoch in range(6)], expected, rtol=1e-6)


def test_warmup_is_shortened_where_it_does_not_fit():
    assert schedules.clamp_warmup(10, 100) == 10
    assert schedules.clamp_warmup(100, 100) == 10
    assert schedules.clamp_warmup(3586, 1) == 0
