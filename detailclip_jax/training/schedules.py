"""Schedules over steps, with the reference's exact formulas: step t from 0, T steps in total, W warm-up steps."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp

from detailclip_jax.types import Array, Int, Scalar

Step: TypeAlias = Int[Array, ""] | int
Schedule: TypeAlias = Callable[[Any], Any]  # step -> float32 scalar


def warmup_cosine(
    start: float, peak: float, end: float, warmup_steps: int, total_steps: int, peak_twice: bool = True
) -> Schedule:
    """Learning-rate schedule: linear from `start` to `peak`, then half a cosine towards `end`.

        t < W:  start + (peak - start) t / (W - 1)
        t >= W: end + (peak - end) / 2 (1 + cos(pi (t - W) / (T - W)))

    As in the reference, the peak is reached twice (t = W - 1 and t = W) and `end` is never reached.  Without
    `peak_twice` the warm-up divides by W, as in MAE's code: the peak is reached at t = W only.
    """
    rise = max(warmup_steps - peak_twice, 1)

    def schedule(step: Step) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * t / rise
        angle = jnp.pi * (t - warmup_steps) / max(total_steps - warmup_steps, 1)
        falling = end + (peak - end) / 2 * (1 + jnp.cos(angle))
        return jnp.where(t < warmup_steps, rising, falling)

    return schedule


def cosine(start: float, end: float, total_steps: int) -> Schedule:
    """Cosine schedule, used for the teacher's momentum (.996 -> 1 in the reference).

    end - (end - start) / 2 (1 + cos(pi t / T))
    """

    def schedule(step: Step) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        return end - (end - start) / 2 * (1 + jnp.cos(jnp.pi * t / total_steps))

    return schedule


def epoch_warmup(start: float, end: float, num_epochs: int, steps_per_epoch: int) -> Schedule:
    """Temperature schedule: rises in equal steps from `start` in epoch 0 to `end` in epoch num_epochs - 1, then `end`.

    With one epoch, as in the reference (patches: .04, .07), it is `start` in epoch 0 and `end` from epoch 1 on.
    iBOT uses 30 epochs.
    """

    def schedule(step: Step) -> Scalar:
        epoch = jnp.asarray(step) // steps_per_epoch
        rising = start + (end - start) * epoch / max(num_epochs - 1, 1)
        return jnp.where(epoch < num_epochs, rising, end).astype(jnp.float32)

    return schedule


def clamp_warmup(warmup_steps: int, total_steps: int) -> int:
    """Returns `warmup_steps`, or a tenth of `total_steps` if the warm-up does not fit into the run."""
    return warmup_steps if warmup_steps < total_steps else total_steps // 10
