"""Schedules over steps, with the reference's exact formulas: step t from 0, T steps in total, W warm-up steps.

A schedule is a pytree of its numbers: they are arguments of the compiled step (`train_step.ScheduledStep`), so a
run of another length or another rate compiles nothing.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from detailclip_jax.types import Array, Int, Scalar

Step: TypeAlias = Int[Array, ""] | np.int32 | int
Schedule: TypeAlias = Callable[[Any], Any]  # step -> float32 scalar
Number: TypeAlias = Scalar | np.float32  # of a schedule: an argument of the compiled step, or a constant outside of it


def warmup_cosine(
    start: float, peak: float, end: float, warmup_steps: int, total_steps: int, peak_twice: bool = True
) -> Schedule:
    """Learning-rate schedule: linear from `start` to `peak`, then half a cosine towards `end`.

        t < W:  start + (peak - start) t / (W - 1)
        t >= W: end + (peak - end) / 2 (1 + cos(pi (t - W) / (T - W)))

    As in the reference, the peak is reached twice (t = W - 1 and t = W) and `end` is never reached.  Without
    `peak_twice` the warm-up divides by W, as in MAE's code: the peak is reached at t = W only.
    """
    slope = per_step(peak - start, max(warmup_steps - peak_twice, 1))
    turn = per_step(np.pi, max(total_steps - warmup_steps, 1))
    return of_numbers(_warmup_cosine, start, slope, warmup_steps, end, (peak - end) / 2, turn)


def _warmup_cosine(
    start: Number, slope: Number, warmup_steps: Number, end: Number, height: Number, turn: Number, step: Step
) -> Scalar:
    t = jnp.asarray(step, jnp.float32)
    falling = end + height * (1 + jnp.cos(turn * (t - warmup_steps)))
    return jnp.where(t < warmup_steps, start + slope * t, falling)


def cosine(start: float, end: float, total_steps: int) -> Schedule:
    """Cosine schedule, used for the teacher's momentum (.996 -> 1 in the reference).

    end - (end - start) / 2 (1 + cos(pi t / T))
    """
    return of_numbers(_cosine, end, (end - start) / 2, per_step(np.pi, total_steps))


def _cosine(end: Number, height: Number, turn: Number, step: Step) -> Scalar:
    return end - height * (1 + jnp.cos(turn * jnp.asarray(step, jnp.float32)))


def epoch_warmup(start: float, end: float, num_epochs: int, steps_per_epoch: int) -> Schedule:
    """Temperature schedule: rises in equal steps from `start` in epoch 0 to `end` in epoch num_epochs - 1, then `end`.

    With one epoch, as in the reference (patches: .04, .07), it is `start` in epoch 0 and `end` from epoch 1 on.
    iBOT uses 30 epochs.
    """
    numbers = start, per_step(end - start, max(num_epochs - 1, 1)), end, num_epochs
    return of_numbers(_epoch_warmup, np.int32(steps_per_epoch), *numbers)


def _epoch_warmup(
    steps_per_epoch: Step, start: Number, slope: Number, end: Number, num_epochs: Number, step: Step
) -> Scalar:
    epoch = jnp.asarray(step) // steps_per_epoch
    return jnp.where(epoch < num_epochs, start + slope * epoch, end)


def ramp(end: float, first_step: int, last_step: int) -> Schedule:
    """Schedule of a loss weight: 0 before `first_step`, then half a cosine, and `end` from `last_step` on.

    end / 2 (1 - cos(pi (t - first) / (last - first)))
    """
    return of_numbers(_ramp, end, first_step, last_step, per_step(np.pi, max(last_step - first_step, 1)))


def _ramp(end: Number, first_step: Number, last_step: Number, turn: Number, step: Step) -> Scalar:
    t = jnp.asarray(step, jnp.float32)
    rising = end / 2 * (1 - jnp.cos(turn * (t - first_step)))
    return jnp.where(t >= last_step, end, jnp.where(t < first_step, 0.0, rising))


def of_numbers(function: Callable[..., Scalar], *numbers: Any) -> Schedule:
    """Returns the schedule step -> function(*numbers, step); Python's numbers become float32."""
    return Partial(function, *(np.float32(x) if isinstance(x, int | float) else x for x in numbers))


def per_step(value: float | int, num_steps: int) -> np.float32:
    """Returns value / num_steps as value times the reciprocal, both rounded to float32."""
    return np.float32(value) * (np.float32(1) / np.float32(num_steps))


def clamp_warmup(warmup_steps: int, total_steps: int) -> int:
    """Returns `warmup_steps`, or a tenth of `total_steps` if the warm-up does not fit into the run."""
    return warmup_steps if warmup_steps < total_steps else total_steps // 10
