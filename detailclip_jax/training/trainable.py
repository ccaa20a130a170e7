"""What the training loop needs of an experiment: `experiment.Experiment` of pretraining and that of the dense tasks."""

import dataclasses
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import sharding
from detailclip_jax.training.initial_state import InitialState
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import ScheduledStep, Schedules, StepLayout, StepSetup, combined_loss
from detailclip_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Trainable:
    """The state of step 0 and the training step, for a run, a test or a notebook.

    experiment = build(config)
    state = experiment.init(config.seed)
    state, metrics = experiment.train_step(state, experiment.put(batch))
    """

    config: ConfigDict
    model: Any  # the networks without parameters, for one device
    setup: StepSetup  # what a step computes
    layout: StepLayout  # where it computes it
    state_shapes: TrainState  # of jax.ShapeDtypeStruct, with shardings
    initial: InitialState
    train_step: ScheduledStep  # (state, batch) -> (state, metrics); `state` is donated

    @property
    def mesh(self) -> Mesh:
        """The device mesh."""
        return self.layout.mesh

    @property
    def schedules(self) -> Schedules:
        """Learning rate, weight decay, teacher momentum and teacher temperatures as functions of the step."""
        return self.setup.schedules

    def step_after(self, num_done: int) -> ScheduledStep:
        """Returns the step that follows `num_done` steps of a run."""
        return self.train_step

    def init(self, seed: int) -> TrainState:
        """Draws the state of step 0 and places it on the devices."""
        return self.initial.put(seed, self.state_shapes)

    def put(self, batch: Batch) -> Batch:
        """Places this process's part of a batch on the mesh."""
        return meshes.put(batch, self.mesh)

    def combined_loss(self, params: Params, state: TrainState, batch: Batch) -> Any:
        """Computes the loss of a step, see `train_step.combined_loss`; for gradients outside of a step."""
        return combined_loss(params, state, batch, self.setup, self.layout)

    def sharding_table(self) -> str:
        """Formats pattern, sharding and megabytes of the state's arrays."""
        return sharding.table_text(self.state_shapes, sharding.rules(self.setup.networks, self.setup.running))
