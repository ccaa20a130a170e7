"""The device mesh: one axis, over which batches are sharded and on which the losses reduce."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.types import DATA, Batch


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices (or those given) along the axis "data"."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """Axis 0 is divided over the devices."""
    return NamedSharding(mesh, P(DATA))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """ValueError with the nearest sizes that work, unless the batch divides over the devices."""
    devices = mesh.devices.size
    if batch_size > 0 and batch_size % devices == 0:
        return
    below = batch_size // devices * devices
    nearest = " and ".join(str(size) for size in (below, below + devices) if size > 0)
    word = "nearest are" if below > 0 else "the smallest is"
    raise ValueError(f"batch_size {batch_size} does not divide over {devices} devices; {word} {nearest}")


def put(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch as global arrays, sharded along the data axis."""
    sharding = sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
