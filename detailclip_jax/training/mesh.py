"""The device mesh with axes "data" and "fsdp": batches are sharded over both axes, parameters over "fsdp" only."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.runtime.devices import first_device, memory_of
from detailclip_jax.types import BATCH, DATA, FSDP, Axis, Batch, PyTree


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
    """Makes a mesh of all devices, or of the given ones: [devices / fsdp, fsdp] along "data" and "fsdp".

    Devices of one host are neighbours: if `fsdp` divides their number, no "fsdp" group spans hosts (see `fsdp_hosts`).
    Raises ValueError if `fsdp` does not divide the number of devices, and NoDevice if there is no device.
    """
    if devices is None:
        first_device()  # raises NoDevice if there is none
        devices = jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        fitting = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(f"mesh.fsdp {fsdp} does not divide {len(devices)} devices; valid values are {fitting}")
    # jax.make_mesh aligns axes with a TPU's torus, across hosts, and raises for shapes that do not fit the torus.
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host).reshape(-1, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def platform_of(mesh: Mesh) -> str:
    """Returns the platform of the mesh's devices, "cpu", "gpu" or "tpu", which need not be that of this process."""
    platform: str = mesh.devices.flat[0].platform
    return platform


def device_memory(mesh: Mesh) -> int:
    """Returns the bytes that jax may use on each device of a mesh; 0 if unknown (CPU)."""
    return memory_of((mesh.local_devices or mesh.devices.flat)[0])


def fsdp_hosts(mesh: Mesh) -> int:
    """Returns the largest number of processes whose devices share one copy of the training state."""
    return max(len({device.process_index for device in row}) for row in mesh.devices)


def batch_axis(mesh: Mesh) -> Axis | None:
    """Returns the mesh axes that divide the batch; None for a single device, which needs no collectives."""
    return BATCH if mesh.size > 1 else None


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which axis 0 is divided over all devices."""
    return NamedSharding(mesh, P(BATCH))


def check_batch_size(batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises ValueError, with the nearest valid sizes, if the batch does not divide over devices and chunks."""
    parts = mesh.devices.size * accumulation
    if batch_size > 0 and batch_size % parts == 0:
        return
    below = batch_size // parts * parts
    nearest = " and ".join(str(size) for size in (below, below + parts) if size > 0)
    word = "the nearest valid sizes are" if below > 0 else "the smallest valid size is"
    chunks = f" of {accumulation} chunks each" if accumulation > 1 else ""
    raise ValueError(
        f"batch_size {batch_size} does not divide over {mesh.devices.size} devices{chunks}; {word} {nearest}"
    )


def put(batch: Batch, mesh: Mesh) -> Batch:
    """Makes global arrays, sharded over all devices, from this process's part of the batch."""
    sharding = sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places the whole arrays on every device; arrays that are already replicated are not copied."""
    return jax.device_put(tree, replicated(mesh))
