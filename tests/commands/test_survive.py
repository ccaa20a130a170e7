"""A small part of tests/survive.py, and all of it among the slow tests."""

import random

import jax
import numpy as np
import pytest
import survive
from tiny import tiny_config

from detailclip_jax.config import command_line, run_config
from detailclip_jax.training import experiment
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Two checkpoints of a state of the smallest networks."""
    config, workdir = tiny_config("clip"), tmp_path_factory.mktemp("small") / "run"
    run_config.claim_workdir(workdir, config)
    shapes = experiment.build(config, make_mesh(jax.devices()[:1])).state_shapes
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jax.device_put(rng.random(x.shape).astype(x.dtype), x.sharding), shapes)
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(step, state, {"examples": 8 * step}, {"config": run_config.to_json(config)})
    checkpoints.close()
    return workdir


def test_the_flags_of_the_run_are_accepted(tmp_path):
    """Among them a dictionary of evaluators."""
    argv = survive.command(tmp_path)[2:]
    assert "--config.evaluators={" in " ".join(argv)
    assert command_line.checked(argv, command_line.spec_of(argv)) == argv


@pytest.mark.check
def test_damaged_checkpoints_are_refused_and_named(small_run):
    cases = list(survive.damaged(small_run, 10, random.Random(0)))
    assert [case for case in cases if case.wrong] == [] and len({case.what for case in cases}) == 10


@pytest.mark.slow
def test_signals_from_the_first_millisecond_on_end_prepare(tmp_path):
    """The command that has workers, and that starts without jax."""
    commands = survive.Commands(survive.Trial(tmp_path, random.Random(0)), ["prepare"])
    assert [case for case in commands.signals(4) if case.wrong] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["--kills=100", "--stops=100", "--damaged=100", "--signals=100"])
def test_a_run_survives(part):
    none = [f"--{name}=0" for name in ("kills", "stops", "damaged", "signals") if name not in part]
    assert survive.main([part, *none, "--seed=1"]) == 0
