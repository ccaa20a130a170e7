"""A training step in turn with plain matrix products: the share that it reaches of the rate of products alone."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from detailclip_jax.benchmarks import cost_table, step, timing
from detailclip_jax.benchmarks.step import Result, Stepper
from detailclip_jax.benchmarks.timing import MedianRange
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.kernels.products import precision_of
from detailclip_jax.runtime.progress import Console
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


class Measured(NamedTuple):
    """Seconds of a step, FLOP/s of products on all devices by dtype, and the step's share of those of its own dtype."""

    seconds: MedianRange
    rates: Mapping[str, MedianRange]
    share: MedianRange


def in_turn(result: Result, stepper: Stepper, rounds: int) -> Measured:
    """Measures the step in turn with products of both dtypes; the share is computed round by round."""
    steps = timing.steps_for(timing.interleaved([stepper], 1)[0][0])
    products = [Product(dtype, result.experiment.mesh) for dtype in DTYPES]
    for product in products:
        product()  # compiles
    times, *others = timing.interleaved([functools.partial(stepper, steps), *products], rounds)
    seconds = [time / steps for time in times]
    rates = {product.dtype: [product.operations / time for time in row] for product, row in zip(products, others)}
    return measured(result, seconds, rates)


def measured(result: Result, seconds: Sequence[float], rates: Mapping[str, Sequence[float]]) -> Measured:
    """What the seconds of a step and the rates of products in the same rounds say."""
    operations, own = result.flops * result.variant.batch, rates[result.variant.config.model.dtype]
    share = timing.median_range([operations / (second * rate) for second, rate in zip(seconds, own)])
    spread = {dtype: timing.median_range(values) for dtype, values in rates.items()}
    return Measured(timing.median_range(seconds), spread, share)


def run(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures, prints the table, and returns the record for JSON."""
    console = Console(stream=arguments.progress)
    result = step.analyse(variant, devices, arguments, console)
    console.live("state and first steps")
    found = in_turn(result, Stepper(result), arguments.rounds)
    console.end_live()
    rows = [("step seconds (range)", found.seconds)]
    rows += [(f"products of {d}, GFLOP/s", cost_table.number(rate.median, 1e9)) for d, rate in found.rates.items()]
    print(cost_table.table([*rows, ("share of the product rate (range)", found.share)]))
    return [
        {
            "command": "products",
            "dtype": variant.config.model.dtype,
            "step_seconds": found.seconds.median,
            "step_seconds_range": [found.seconds.low, found.seconds.high],
            "product_flops": {dtype: rate.median for dtype, rate in found.rates.items()},
            "product_share": list(found.share),
        }
    ]
