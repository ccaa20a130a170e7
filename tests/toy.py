"""A run whose experiment is so small that it compiles at once: one weight that is pulled towards 3.

    python tests/toy.py WORKDIR STEPS

trains and saves every fourth step, as the command does once it has read its flags.
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.methods.encode import Encode
from detailclip_jax.runtime import errors, processes
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import train as training
from detailclip_jax.training.mesh import make_mesh, put, replicated
from detailclip_jax.training.session import Run
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import ScheduledStep

SMALLEST = Path(__file__).parent / "configs/smallest.py"
NEVER = 10**6


class Method(NamedTuple):
    terms: dict
    name: str = "pull"
    has_text: bool = False
    heads: tuple = ()
    losses: tuple = ()
    contrast: str = ""
    continues: str = ""
    crops: frozenset = frozenset({"large"})


class Experiment:
    """What the loop needs of one; the term "cls" is nan at step `bad_step`."""

    def __init__(self, bad_step=NEVER):
        self.mesh = make_mesh(jax.devices()[:1])
        self.method = Method({"clip": None, "cls": None})
        self.encode = Encode(*[None] * len(Encode._fields))  # replaced by tests that evaluate
        everywhere = replicated(self.mesh)
        step = jax.jit(lambda state, batch, _: self._step(state, batch, bad_step), donate_argnums=0)
        self.train_step = ScheduledStep(step, ())
        self.state_shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(self._state)
        )

    @staticmethod
    def _state():
        weight = {"weight": jnp.zeros(4)}
        return TrainState(jnp.int32(0), weight, {}, {}, (), {}, jax.random.key_data(jax.random.key(0)))

    def init(self, seed):
        return jax.jit(self._state, out_shardings=replicated(self.mesh))()

    def step_after(self, num_done):
        return self.train_step

    def put(self, batch):
        return put(batch, self.mesh)

    def replicated(self, state):
        return state

    def parameter_table(self):
        return "one weight"

    @staticmethod
    def _step(state, batch, bad_step):
        step = state.step + 1
        weight = state.params["weight"]
        pull = 3 - weight + batch["image"]["large"].mean() / 1e4  # the data moves the trajectory
        cls = jnp.where(step == bad_step, jnp.nan, jnp.square(pull).mean())
        state = state.replace(step=step, params={"weight": weight + 0.1 * pull + 0 * cls})
        return state, {"loss": cls + 1, "clip": jnp.float32(1), "cls": cls, "learning_rate": jnp.float32(0.1)}


def toy_run(workdir, bad_step=NEVER, stream=None, **fields):
    """A run whose data are those of the smallest config, with changed fields; its console writes to `stream`."""
    config = run_config.load(str(SMALLEST))
    config.update_from_flattened_dict({"total_steps": 12, "log_every": 3, "checkpoint_every": 4} | fields)
    config = run_config.resolve(config, 2**24)
    run_config.claim_workdir(workdir, config)
    source, console = pretraining.pipeline.open_source(config), Console(stream=stream or io.StringIO())
    return Run(config, workdir, Experiment(bad_step), source, console, pretraining.PRETRAINING)


def train(make_run):
    """The exit code of the command for a run, with the messages of its errors."""

    def command():
        run = make_run()
        with processes.leaving_at_once(), errors.at_work():
            return training.train(run)

    return errors.run(command)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    steps = int(sys.argv[2])
    code = train(lambda: toy_run(Path(sys.argv[1]), stream=sys.stdout, total_steps=steps, log_every=1))
    assert "torch" not in sys.modules  # a run is to start without the seconds of that import
    sys.exit(code)
