"""Saves an imported model as an ordinary checkpoint at step 0."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.runtime import provenance
from detailclip_jax.runtime.devices import first_device
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.workdirs import FOLDER
from detailclip_jax.types import Params


def save(workdir: str | Path, variables: Mapping[str, Params], config: ConfigDict, origin: str) -> None:
    """Writes the output of `interop.load` to a workdir that `checkpoint.load` and `config.init` can read.

    The optimizer's moments are zero, and so are centers missing in `variables`; the teacher is the imported one. Raises
    ValueError if the workdir already holds checkpoints.
    """
    workdir = Path(workdir)
    if any((workdir / FOLDER).glob("*")):
        raise ValueError(f"{workdir} already contains checkpoints; choose another folder")
    built = experiment.build(config, make_mesh([first_device()]))
    known = built.state_shapes.replace(
        params=dict(variables["params"]),
        ema_params=dict(variables["ema_params"]),
        batch_stats={**built.state_shapes.batch_stats, **variables["batch_stats"]},
        centers={**built.state_shapes.centers, **variables.get("centers", {})},
        rng=jax.random.key_data(jax.random.key(config.seed)),
    )
    state = jax.device_put(jax.tree.map(_zeros_for_shape, known))
    run_config.claim_workdir(workdir, config)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(0, state, {"examples": 0}, _record(config, origin))
    checkpoints.close()


def _zeros_for_shape(leaf: Any) -> Any:
    """Replaces a shape by zeros; arrays are unchanged."""
    return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _record(config: ConfigDict, origin: str) -> dict[str, object]:
    return {
        "config": run_config.to_json(config),
        "git_revision": provenance.git_revision(),
        "versions": provenance.versions(),
        "data_fingerprint": f"imported from {origin}",
    }
