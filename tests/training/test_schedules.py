import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_segmentation_step import tiny as tiny_segmentation
from tiny import program_of

from detailclip_jax.dense import fine_tuning, runs
from detailclip_jax.training import mesh, schedules


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


@pytest.mark.parametrize(("first", "last"), [(0, 10), (5, 25), (5, 5), (0, 1)])
def test_a_weight_is_0_then_rises_by_half_a_cosine_then_stays(first, last):
    def expected(t):
        if t < first or t >= last:
            return 2.0 * (t >= last)
        return 2.0 * (1 - math.cos(math.pi * (t - first) / (last - first))) / 2

    schedule = schedules.ramp(2.0, first, last)
    np.testing.assert_allclose([schedule(t) for t in range(30)], [*map(expected, range(30))], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "given", "other"),
    [
        (schedules.ramp, (2.0, 10, 40), (1.0, 0, 0)),
        (schedules.warmup_cosine, (1e-6, 5e-4, 1e-5, 10, 100), (0.0, 1e-3, 1e-6, 0, 30, False)),
        (schedules.cosine, (0.996, 1.0, 100), (0.98, 0.99, 30)),
        (schedules.epoch_warmup, (0.04, 0.07, 1, 10), (0.05, 0.06, 4, 3)),
        (fine_tuning.stepwise, (1e-4, [80, 110], 5, 0.001), (2e-4, [8, 11], 0, 0.1)),
    ],
)
def test_other_numbers_of_a_schedule_are_the_same_program(make, given, other):
    step = jax.jit(lambda schedule, step: schedule(step))
    values = [[float(step(make(*numbers), jnp.int32(t))) for t in (0, 1, 50, 99)] for numbers in (given, other)]
    assert step._cache_size() == 1
    expected = [[float(make(*numbers)(t)) for t in (0, 1, 50, 99)] for numbers in (given, other)]
    np.testing.assert_allclose(values, expected, rtol=2e-6)


OTHER_RUN = {
    "total_steps": 37,
    "steps_per_epoch": 7,
    "seed": 5,
    "optimizer.learning_rate": 3e-3,
    "optimizer.learning_rate_end": 2e-5,
    "optimizer.warmup_start": 1e-5,
    "optimizer.peak_twice": False,
    "optimizer.warmup_steps": 4,
    "optimizer.weight_decay": 0.07,
    "ema.start": 0.9,
    "ema.end": 0.95,
    "losses.teacher_temperature": (0.05, 0.06),
    "losses.patch_temperature": (0.03, 0.05),
    "losses.temperature_epochs": 3,
}


@pytest.mark.check
@pytest.mark.parametrize("method", ["dino", pytest.param("detailclip", marks=pytest.mark.slow)])
def test_a_run_of_another_length_rate_or_seed_has_the_same_program(method):
    """DINO's has a scheduled weight decay, and a last layer that waits; a weight that rises has other numbers too."""
    one = {"losses.ramps.cls": (0.2, 0.5)}
    other = OTHER_RUN | {"losses.ramps.cls": (0.1, 0.9), "losses.weights.cls": 0.3}
    if method == "dino":
        one |= {"optimizer.weight_decay_end": 0.4, "optimizer.frozen_prototype_epochs": 1.0}
        other = other | {"optimizer.weight_decay_end": 0.3, "optimizer.frozen_prototype_epochs": 2.0}
    assert program_of(method, one) == program_of(method, other)


@pytest.mark.check
def test_a_dense_run_of_another_length_or_rate_has_the_same_program():
    changes = {"total_steps": 9, "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.3, "seed": 3}
    programs = []
    for fields in ({}, changes | {"optimizer.warmup_steps": 3}):
        built = runs.build(tiny_segmentation(**fields), mesh.make_mesh(jax.devices()[:1]))
        programs.append(built.train_step.lower(built.state_shapes, built.batch_shapes()).as_text())
    assert programs[0] == programs[1]
