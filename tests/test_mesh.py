import jax
import numpy as np
import pytest

from detailclip_jax import mesh


def test_batch_size_names_the_nearest():
    grid = mesh.make_mesh()
    mesh.check_batch_size(16, grid)
    with pytest.raises(ValueError, match="batch_size 20 does not divide over 8 devices; nearest are 16 and 24"):
        mesh.check_batch_size(20, grid)
    with pytest.raises(ValueError, match="batch_size 3 does not divide over 8 devices; the smallest is 8"):
        mesh.check_batch_size(3, grid)


def test_put_shards_the_first_axis():
    batch = mesh.put({"x": np.arange(16).reshape(16, 1)}, mesh.make_mesh())
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(jax.device_get(batch["x"])[:, 0], np.arange(16))
