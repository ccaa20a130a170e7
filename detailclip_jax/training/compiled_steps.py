"""The training step of a run, compiled for every shape of its batches."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from detailclip_jax.runtime.progress import Clock
from detailclip_jax.runtime.start import part_ended
from detailclip_jax.training.session import Run
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, PyTree


class Programs:
    """The training step, compiled when the first batch of a shape comes, or before by `compile`.

    `shapes` are those of all kinds of batches. A run with another step for its end (`Experiment.step_after`) compiles
    again when it comes there.
    """

    def __init__(self, run: Run, clock: Clock, state: TrainState, num_done: int):
        """Stores shapes and shardings of `state`, after `num_done` steps; `clock` excludes the time of compiling."""
        self._run, self._clock, self._num_done = run, clock, num_done
        self._state, self._step = shapes_of(state), run.experiment.step_after(num_done)
        self._programs: dict[Any, Callable[..., Any]] = {}
        self.shapes = run.task.batch_shapes(run)

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        """Computes the next state and the scalars of the step from this process's part of a batch."""
        run = self._run
        if (step := run.experiment.step_after(self._num_done)) is not self._step:
            self._step, self._programs = step, {}
        self._num_done += 1
        batch = run.experiment.put(run.task.trim(run, batch))
        return self.compile(shapes_of(batch))(state, batch)

    def compile(self, batch: PyTree) -> Callable[..., Any]:
        """Returns the program for a batch of these shapes; compiles it the first time."""
        key = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if key not in self._programs:
            run, began = self._run, time.perf_counter()
            about = run.task.about_batch(run, batch)
            say = f"compiling the training step{about}: seconds for a tiny model, minutes for a large one ..."
            with self._clock.paused():
                run.console.live(say)
                self._programs[key] = self._step.compile(self._state, batch)
                part_ended("compiled step")
                several = f" (program {len(self._programs)} of {len(self.shapes)})" if len(self.shapes) > 1 else ""
                took = time.perf_counter() - began
                run.console.say(f"compiled the training step{about} in {took:.1f} s{several}")
        return self._programs[key]


def shapes_of(tree: PyTree) -> PyTree:
    """Returns the shapes of a tree of arrays or of shapes, with their shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
