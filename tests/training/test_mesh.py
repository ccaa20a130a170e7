import dataclasses
import itertools

import jax
import numpy as np
import pytest

from detailclip_jax.training import mesh


def test_the_axes_are_data_and_fsdp():
    assert dict(mesh.make_mesh().shape) == {"data": 8, "fsdp": 1}
    grid = mesh.make_mesh(fsdp=2)
    assert dict(grid.shape) == {"data": 4, "fsdp": 2}
    assert [device.id for device in grid.devices[1]] == [2, 3]  # neighbours share a copy of the state


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU's device, as far as a mesh looks at it."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    device_kind: str
    platform: str = "tpu"
    core_on_chip: int = 0
    slice_index: int = 0


def tpu_slice(kind, x, y, z=1):
    """Chips of a torus, each host with a square of 2 x 2."""
    places = itertools.product(range(z), range(y), range(x))
    host = lambda x_, y_, z_: (z_ * (y // 2) + y_ // 2) * (x // 2) + x_ // 2
    return [Chip(n, (a, b, c), host(a, b, c), kind) for n, (c, b, a) in enumerate(places)]


SLICES = [("TPU v6 lite", 4, 4), ("TPU v5 lite", 8, 8), ("TPU v4", 4, 4, 4), ("TPU v5", 4, 4, 8)]


@pytest.mark.parametrize("chips", SLICES)
@pytest.mark.parametrize(("fsdp", "hosts"), [(1, 1), (2, 1), (4, 1), (8, 2)])
def test_a_host_s_devices_share_a_state_on_tpus_too(chips, fsdp, hosts):
    grid = mesh.make_mesh(tpu_slice(*chips), fsdp)
    assert mesh.fsdp_hosts(grid) == hosts
    order = [device.process_index for device in grid.devices.flat]
    assert order == sorted(order)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_put_shards_the_first_axis(fsdp):
    batch = mesh.put({"x": np.arange(16).reshape(16, 1)}, mesh.make_mesh(fsdp=fsdp))
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(jax.device_get(batch["x"])[:, 0], np.arange(16))
