"""Saves an imported model as an ordinary checkpoint at step 0."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.runtime import provenance
from detailclip_jax.training import checkpoint
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.workdirs import FOLDER
from detailclip_jax.types import Params


def save(workdir: str | Path, variables: Mapping[str, Params], config: ConfigDict, origin: str) -> None:
    """Writes the output of `interop.load` to a workdir that `checkpoint.load` and `config.init` can read.

    It has no moments of an optimizer: training starts from it as a new run, see `config.init`. Raises ValueError if the
    workdir already holds checkpoints.
    """
    workdir = Path(workdir)
    if any((workdir / FOLDER).glob("*")):
        raise ValueError(f"{workdir} already contains checkpoints; choose another folder")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=dict(variables["params"]),
        ema_params=dict(variables["ema_params"]),
        batch_stats={"student": {}, "teacher": {}, **variables["batch_stats"]},
        opt_state={},
        centers=dict(variables.get("centers", {})),
        rng=jax.random.key_data(jax.random.key(config.seed)),
    )
    run_config.claim_workdir(workdir, config)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(0, jax.device_put(state), {"examples": 0}, _record(config, origin))
    checkpoints.close()


def _record(config: ConfigDict, origin: str) -> dict[str, object]:
    return {
        "config": run_config.to_json(config),
        "git_revision": provenance.git_revision(),
        "versions": provenance.versions(),
        "data_fingerprint": f"imported from {origin}",
    }
