"""The rate of a plain matrix product on the devices of a mesh: what a step could reach if it were products alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from detailclip_jax.kernels.products import precision_of
from detailclip_jax.training import mesh as meshes

DTYPES = ("float32", "bfloat16")
SIDES = {"cpu": 2048}  # of the square factors: large enough for the full rate, small enough for a fraction of a second
SIDE = 8192  # on other platforms


class Product:
    """A product of two square matrices on every device of a mesh: factors in `dtype`, sums and result in float32.

    Float32 products are exact, as in a step. A call runs `times` products and waits for the last.
    """

    def __init__(self, dtype: str, mesh: Mesh, times: int = 4):
        """Makes the factors; the first call compiles."""
        self.dtype, self.times = dtype, times
        side = SIDES.get(mesh.devices.flat[0].platform, SIDE)
        self.operations = 2.0 * side**3 * mesh.size * times  # of a call, on all devices
        left, right = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
        self.left = jax.device_put(jnp.tile(left, (mesh.size, 1)), meshes.sharded(mesh))
        self.right = meshes.replicate(right, mesh)
        self._multiply = jax.jit(self._product)

    def _product(self, left: Any, right: Any) -> Any:
        return jnp.matmul(left, right, precision=precision_of(self.dtype), preferred_element_type=jnp.float32)

    def __call__(self) -> None:
        """Runs the products."""
        jax.block_until_ready([self._multiply(self.left, self.right) for _ in range(self.times)])
