"""The device mesh: batches are spread over both of its axes, "data" and "fsdp"; parameters, if at all, over "fsdp"."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.runtime.devices import first_device
from detailclip_jax.types import BATCH, DATA, FSDP, Batch, PyTree


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
    """A mesh of all devices (or those given), [devices / fsdp, fsdp] along "data" and "fsdp".

    A host's devices are neighbours: they alone share "fsdp" where it divides their number, see `fsdp_hosts`.
    Raises ValueError unless it divides all devices, NoDevice where there are none.
    """
    if devices is None:
        first_device()  # or NoDevice
        devices = jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        fitting = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(f"mesh.fsdp {fsdp} does not divide {len(devices)} devices; it can be {fitting}")
    # jax.make_mesh lays axes along a TPU's torus, across hosts, and refuses what does not fit it.
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host).reshape(-1, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def fsdp_hosts(mesh: Mesh) -> int:
    """The most processes that devices which share a divided state belong to."""
    return max(len({device.process_index for device in row}) for row in mesh.devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """Axis 0 is divided over the devices."""
    return NamedSharding(mesh, P(BATCH))


def check_batch_size(batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """ValueError with the nearest sizes that work, unless the batch divides over the devices and their chunks."""
    parts = mesh.devices.size * accumulation
    if batch_size > 0 and batch_size % parts == 0:
        return
    below = batch_size // parts * parts
    nearest = " and ".join(str(size) for size in (below, below + parts) if size > 0)
    word = "nearest are" if below > 0 else "the smallest is"
    chunks = f" of {accumulation} chunks each" if accumulation > 1 else ""
    raise ValueError(
        f"batch_size {batch_size} does not divide over {mesh.devices.size} devices{chunks}; {word} {nearest}"
    )


def put(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch as global arrays, sharded over all devices."""
    sharding = sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays whole on every device; those that are already are not copied."""
    return jax.device_put(tree, replicated(mesh))


__all__ = [
    "BATCH",
    "DATA",
    "FSDP",
    "check_batch_size",
    "fsdp_hosts",
    "make_mesh",
    "put",
    "replicate",
    "replicated",
    "sharded",
]
