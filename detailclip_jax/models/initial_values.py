"""Initial values of parameters: their distributions, and values that NumPy draws.

A jitted function of the hundred normal draws of a ViT-B/16 takes longer to compile than NumPy takes to draw them.
NumPy's values are also the same on every backend, number of processes and mesh. `Distribution` is an initialiser for
Flax. `Start` traces networks once for the shape and the distribution of every parameter, and draws the values.
"""

import dataclasses
import functools
import hashlib
import math
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import meta

from detailclip_jax.models import stacking
from detailclip_jax.types import Array, PyTree

Shape = tuple[int, ...]
OF_BLOCKS = {"loop": "blocks"}  # marks the loop over stacked blocks for Flax, which only passes it on
_declaring = ContextVar("declaring", default=False)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Initialiser of Flax that NumPy can draw too: `scale(shape)` times N(0, 1), times U(-1, 1), or itself.

    Flax calls it with a key and a shape. Outside of `Start` it computes the values with jax.
    """

    kind: Literal["normal", "uniform", "constant"]
    scale: Callable[[Shape], float]

    def __call__(self, key: Any, shape: Shape, dtype: Any = jnp.float32) -> Any:
        """Returns values of `shape`; for `Start` zeros, in a box with the distribution."""
        if _declaring.get():
            return Declared(jnp.zeros(shape, dtype), self)
        if self.kind == "constant":
            return jnp.full(shape, self.scale(shape), dtype)
        if self.kind == "normal":
            return jax.random.normal(key, shape, dtype) * self.scale(shape)
        return jax.random.uniform(key, shape, dtype, -1) * self.scale(shape)

    def fill(self, values: np.ndarray, generator: np.random.Generator) -> None:
        """Draws the values of a contiguous float32 array, in place."""
        scale = np.float32(self.scale(values.shape))
        if self.kind == "constant":
            values.fill(scale)
            return
        if self.kind == "normal":
            generator.standard_normal(dtype=np.float32, out=values)
        else:
            generator.random(dtype=np.float32, out=values)
            values *= 2
            values -= 1
        values *= scale


def normal(std: float) -> Distribution:
    """N(0, std^2)."""
    return Distribution("normal", lambda shape: std)


def uniform_fan_in(fan_in: int) -> Distribution:
    """U(+-1/sqrt(fan_in)), the default of PyTorch's Linear and Conv."""
    return Distribution("uniform", lambda shape: fan_in**-0.5)


def constant(value: float) -> Distribution:
    """The same value everywhere."""
    return Distribution("constant", lambda shape: value)


def _fans(shape: Shape) -> tuple[int, int]:
    """Inputs of an output, and outputs of an input, of a kernel [*window, in, out]."""
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


ZEROS, ONES = constant(0.0), constant(1.0)
XAVIER = Distribution("uniform", lambda shape: math.sqrt(6 / sum(_fans(shape))))
"""Xavier-uniform, U(+-sqrt(6 / (fan_in + fan_out)))."""
KAIMING = Distribution("normal", lambda shape: math.sqrt(2 / _fans(shape)[1]))
"""Kaiming-normal of fan-out, N(0, 2 / fan_out), of convolutions before a ReLU."""


class Declared(struct.PyTreeNode, meta.AxisMetadata):
    """A variable's value with its distribution: Flax hands the value to the module, and keeps the box in its tree.

    The box of stacked blocks has the distribution of a block.  What another loop of Flax (`nn.vmap`) stacks has no box
    any more, so that Flax computes its values.
    """

    value: Any
    distribution: Distribution = struct.field(pytree_node=False)
    is_stacked: bool = struct.field(pytree_node=False, default=False)

    def unbox(self) -> Any:
        """Returns the value."""
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        """Returns the box with another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        """Returns the box of stacked blocks, in another loop the value without the box."""
        return self.replace(is_stacked=True) if params == OF_BLOCKS else self.value

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """Returns the box of a block of a stack."""
        return self.replace(is_stacked=False)


class Start(NamedTuple):
    """The initial variables of networks: `make(key)` computes them with jax, and something else.

    `declared` has the shapes of the variables, in boxes with their distributions; `aux` those of the rest.
    """

    make: Callable[[Array], tuple[PyTree, PyTree]]
    declared: PyTree
    aux: PyTree

    @property
    def shapes(self) -> PyTree:
        """The shapes of all variables."""
        return meta.unbox(self.declared)

    def draw(self, seed: int, key: Array) -> PyTree:
        """Returns the values, in NumPy where a `Distribution` is declared.

        Each of these has one random generator, keyed by the seed and the variable's path, so that it depends on
        nothing else. A stacked block has the path and the values of a separate one. The others are computed by Flax,
        from `key`, in one jitted function; Flax gives a stacked block other values than a separate one.
        """
        leaves, structure = jax.tree.flatten_with_path(self.declared, is_leaf=meta.is_axis_metadata)
        values = [np.empty(x.value.shape, np.float32) if isinstance(x, Declared) else None for _, x in leaves]
        drawn = [
            (part, path, leaf.distribution)
            for (keys, leaf), value in zip(leaves, values)
            if value is not None
            for path, part in self._parts([key.key for key in keys], leaf.is_stacked, value)
        ]
        drawn.sort(key=lambda each: -each[0].size)  # no thread is left with a large one at the end
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: each[2].fill(each[0], generator_of(seed, each[1])), drawn))
        wanted = [value is None for value in values]
        make = jax.jit(lambda key: [x for x, want in zip(jax.tree.leaves(self.make(key)[0]), wanted) if want])
        others = iter(make(key) if any(wanted) else [])
        return structure.unflatten([next(others) if value is None else value for value in values])

    def _parts(self, names: list[str], is_stacked: bool, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Returns path and values of a variable; of stacked blocks, those of each block."""
        if not is_stacked:
            return [("/".join(names), values)]
        at = names.index(stacking.STACKED)
        tower = functools.reduce(operator.getitem, names[:at], self.shapes)
        return [
            ("/".join([*names[:at], f"{stacking.STACKED}_{number}", *names[at + 1 :]]), values[layer, ...])
            for layer, number in zip(range(len(values)), stacking.numbers(tower), strict=True)
        ]


def start(make: Callable[[Array], tuple[PyTree, PyTree]]) -> Start:
    """Traces `make(key)`, a function that initialises networks: see `Start`."""

    def traced(key: Array) -> tuple[PyTree, PyTree]:
        token = _declaring.set(True)  # initialisers return boxes
        try:
            return make(key)
        finally:
            _declaring.reset(token)

    return Start(make, *jax.eval_shape(traced, jax.eval_shape(jax.random.key, 0)))


def generator_of(seed: int, path: str) -> np.random.Generator:
    """Returns the random numbers of one variable of a run: NumPy's Philox, keyed by the seed and the path."""
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
