"""x kernel, as every linear layer takes it: one product of two matrices, in the computing type.

A product of float32 arrays is exact in float32.  GPUs and TPUs would round its factors to TensorFloat-32 or bfloat16:
every product says its precision.  `model.matmul_precision` or `jax.default_matmul_precision` ask for another one.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

EXACT = "highest"  # jax's name for the precision of float32 products without rounded factors
PRECISIONS = ("default", "high", EXACT)  # jax's: "default" is the backend's fastest, "high" TensorFloat-32 on GPUs
PRODUCT = "product"  # the name of their results, by which rematerialisation may keep them


def precision_of(dtype: Any) -> str | None:
    """The precision of a product in `dtype`: exact in float32, the backend's own in half precision.

    None where `jax.default_matmul_precision` says it.
    """
    told = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return None if told or jnp.dtype(dtype) != jnp.float32 else EXACT


def matmul_precision(name: str | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which products have the precision of that name; None leaves it as it is."""
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)


def product(
    x: Float[Array, "*batch D"], kernel: Float[Array, "D M"], dtype: Any = jnp.float32, out: Any = None
) -> Float[Array, "*batch M"]:
    """x kernel over the last axis of x: both rounded to `dtype`, sums in float32, the result in `out` (or `dtype`).

    The leading axes are flattened: the same numbers, but on a CPU XLA computes the kernel's gradient twice as fast.
    Gradients come in the types of x and kernel; in half precision that of a float32 kernel is not rounded on its way.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    out = dtype if out is None else out
    if rows.dtype == kernel.dtype == jnp.float32:
        made: Array = jnp.matmul(rows, kernel, precision=precision_of(dtype))
    else:
        made = _half(rows, kernel, out)
    return _named(made.astype(out).reshape(*x.shape[:-1], -1))


def _name(x: Array) -> Array:
    """x under the name `PRODUCT`, half precision as its bits.

    A loop over layers keeps what is named for all of them: XLA's CPU backend reads one layer's bfloat16 out of that
    through a float32 copy of the whole, but not one layer's integers.
    """
    if x.dtype.itemsize != 2:
        return checkpoint_name(x, PRODUCT)
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), PRODUCT)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


_named = jax.custom_jvp(_name)  # differentiation passes the bits by; it must meet `_name` bare to see the name
_named.defjvp(lambda primals, tangents: (_name(*primals), tangents[0]))


def spread(row: Float[Array, "..."], shape: tuple[Any, ...], dtype: Any) -> Float[Array, "..."]:
    """The row in every place of `shape`, in `dtype`; its gradient adds up in the row's own type and not in `dtype`."""
    return jnp.broadcast_to(row, shape).astype(dtype)


def plus(x: Float[Array, "*batch M"], row: Float[Array, "M"]) -> Float[Array, "*batch M"]:
    """x + row in the type of x; the row's gradient adds up in its own."""
    return x + (row if row.dtype == x.dtype else spread(row, x.shape, x.dtype))


def rows_at(table: Float[Array, "N D"], index: Int[Array, "B K"], dtype: Any) -> Float[Array, "B K D"]:
    """table[index] of a small float32 table, in `dtype`; its gradient is sum over b, k of (index[b, k] = n) g[b, k].

    That is a product, with sums in float32.  What differentiation writes is a scatter of many rows into few: float
    atomics on a GPU, in no fixed order, and hundreds of times as slow from jaxlib 0.10.2 until jax 0.11.1
    (github.com/jax-ml/jax/issues/38806).
    """
    made: Array = _rows_at(table, index, dtype)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows_at(table: Array, index: Array, dtype: Any) -> Array:
    return table[index].astype(dtype)


def _rows_forward(table: Array, index: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _rows_at(table, index, dtype), (jnp.arange(len(table)), index)


def _rows_backward(dtype: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    numbers, index = saved
    is_row, rows = (index.reshape(-1, 1) == numbers).astype(dtype), g.reshape(-1, g.shape[-1])
    over_rows = (((0,), (0,)), ((), ()))
    made = jax.lax.dot_general(is_row, rows, over_rows, precision="highest", preferred_element_type=jnp.float32)
    return made, None


_rows_at.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _half(x: Float[Array, "R D"], kernel: Float[Array, "D M"], out: Any) -> Float[Array, "R M"]:
    """In the type of x, with the gradient's products in it as well."""
    return _dot(x, kernel.astype(x.dtype), (1, 0), out)


def _half_forward(x: Array, kernel: Array, out: Any) -> tuple[Array, tuple[Array, Array]]:
    return _half(x, kernel, out), (x, kernel)


def _half_backward(out: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """The kernel's gradient is x^T g: what differentiation writes, (g^T x)^T, XLA's CPU backend runs more slowly."""
    x, kernel = saved
    g = g.astype(x.dtype)
    return _dot(g, kernel.astype(x.dtype), (1, 1), x.dtype), _dot(x, g, (0, 0), kernel.dtype)


_half.defvjp(_half_forward, _half_backward)


def _dot(a: Array, b: Array, axes: tuple[int, int], out: Any) -> Array:
    """Sums over an axis of each.  XLA's CPU backend is twice as fast in half precision where it may return float32."""
    made = jnp.float32 if jax.default_backend() == "cpu" else out
    dimensions = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=made).astype(out)
