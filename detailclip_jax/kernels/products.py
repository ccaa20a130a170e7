"""Matrix products of the linear layers, with explicit precision, and additions and look-ups with float32 gradients.

Products of float32 arrays are computed in full float32. GPUs and TPUs would otherwise round the factors to
TensorFloat-32 or bfloat16, so every product states its precision. `model.matmul_precision` or
`jax.default_matmul_precision` set another one.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

EXACT = "highest"  # jax's name for float32 products without rounded factors
PRECISIONS = ("default", "high", EXACT)  # jax's: "default" is the backend's fastest, "high" TensorFloat-32 on GPUs
PRODUCT = "product"  # checkpoint name of the results; the rematerialisation policy "dots" saves them


def precision_of(dtype: Any) -> str | None:
    """Returns the precision of a product in `dtype`: "highest" for float32, None (the backend's) for half precision.

    It is also None if `jax.default_matmul_precision` is set, so that this setting applies.
    """
    is_set = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return None if is_set or jnp.dtype(dtype) != jnp.float32 else EXACT


def matmul_precision(name: str | None) -> contextlib.AbstractContextManager[Any]:
    """Returns a context manager that sets the precision of products; None leaves the precision unchanged."""
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)


def product(
    x: Float[Array, "*batch D"], kernel: Float[Array, "D M"], dtype: Any = jnp.float32, out: Any = None
) -> Float[Array, "*batch M"]:
    """Computes x kernel over the last axis of x: factors in `dtype`, sums in float32, result in `out` (or `dtype`).

    The leading axes are flattened: this changes no number, but XLA's CPU backend computes the kernel's gradient twice
    as fast. Gradients have the types of x and kernel; the gradient of a float32 kernel is never rounded to half
    precision.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    out = dtype if out is None else out
    if rows.dtype == kernel.dtype == jnp.float32:
        result: Array = jnp.matmul(rows, kernel, precision=precision_of(dtype))
    else:
        result = _half(rows, kernel, out)
    return _named(result.astype(out).reshape(*x.shape[:-1], -1))


def _name(x: Array) -> Array:
    """Attaches the checkpoint name `PRODUCT` to x; half-precision values are named as integers of the same bits.

    A loop over layers saves the named values of all layers in one array. To read one layer of a bfloat16 array, XLA's
    CPU backend first copies the full array to float32; for integers it does not.
    """
    if x.dtype.itemsize != 2:
        return checkpoint_name(x, PRODUCT)
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), PRODUCT)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


# Custom JVP: the bitcast is not differentiable. The rule calls the undecorated `_name`, because rematerialisation does
# not see names inside a custom_jvp function.
_named = jax.custom_jvp(_name)
_named.defjvp(lambda primals, tangents: (_name(*primals), tangents[0]))


def broadcast(row: Float[Array, "..."], shape: tuple[Any, ...], dtype: Any) -> Float[Array, "..."]:
    """Broadcasts `row` to `shape` and casts to `dtype`; its gradient is summed in the type of `row`, not in `dtype`."""
    return jnp.broadcast_to(row, shape).astype(dtype)


def plus(x: Float[Array, "*batch M"], row: Float[Array, "M"]) -> Float[Array, "*batch M"]:
    """Computes x + row in the type of x; the gradient of `row` is summed in the type of `row`."""
    return x + (row if row.dtype == x.dtype else broadcast(row, x.shape, x.dtype))


def rows_at(table: Float[Array, "N D"], index: Int[Array, "B K"], dtype: Any) -> Float[Array, "B K D"]:
    """Computes table[index] of a small float32 table in `dtype`, with a gradient that is a matrix product.

        gradient_n = sum over b, k of (index[b, k] = n) g[b, k],  with sums in float32

    The default gradient is a scatter-add of many rows into few. On a GPU it uses float atomics in no fixed order, and
    it is hundreds of times slower from jaxlib 0.10.2 until jax 0.11.1 (github.com/jax-ml/jax/issues/38806).
    """
    result: Array = _rows_at(table, index, dtype)
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows_at(table: Array, index: Array, dtype: Any) -> Array:
    return table[index].astype(dtype)


def _rows_forward(table: Array, index: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _rows_at(table, index, dtype), (jnp.arange(len(table)), index)


def _rows_backward(dtype: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    numbers, index = saved
    is_row, rows = (index.reshape(-1, 1) == numbers).astype(dtype), g.reshape(-1, g.shape[-1])
    over_rows = (((0,), (0,)), ((), ()))
    gradient = jax.lax.dot_general(is_row, rows, over_rows, precision="highest", preferred_element_type=jnp.float32)
    return gradient, None


_rows_at.defvjp(_rows_forward, _rows_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _half(x: Float[Array, "R D"], kernel: Float[Array, "D M"], out: Any) -> Float[Array, "R M"]:
    """Computes x kernel with both factors in the type of x; the gradients' products use this type as well."""
    return _dot(x, kernel.astype(x.dtype), (1, 0), out)


def _half_forward(x: Array, kernel: Array, out: Any) -> tuple[Array, tuple[Array, Array]]:
    return _half(x, kernel, out), (x, kernel)


def _half_backward(out: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Computes the gradients g kernel^T of x and x^T g of the kernel."""
    x, kernel = saved
    g = g.astype(x.dtype)
    return _dot(g, kernel.astype(x.dtype), (1, 1), x.dtype), _kernel_gradient(x, g).astype(kernel.dtype)


_half.defvjp(_half_forward, _half_backward)


def _kernel_gradient(x: Float[Array, "R D"], g: Float[Array, "R M"]) -> Float[Array, "D M"]:
    """Computes x^T g in float32.

    XLA's CPU backend multiplies in bfloat16 only if the summed axis of the first factor is its last one in memory;
    else it converts both to float32, which halves the rate. So x^T is stored there. The barrier keeps XLA from turning
    (x^T g)^T, the gradient of a transposed kernel, into g^T x: a bfloat16 product that this backend cannot run.
    """
    usual = lambda x, g: _dot(x, g, (0, 0), jnp.float32)  # noqa: E731
    if x.dtype != jnp.bfloat16:
        return usual(x, g)

    def stored(x: Array, g: Array) -> Array:
        transposed = with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))
        return jax.lax.optimization_barrier(_dot(transposed, g, (1, 0), jnp.float32))

    gradient: Array = jax.lax.platform_dependent(x, g, cpu=stored, default=usual)
    return gradient


def _dot(a: Array, b: Array, axes: tuple[int, int], out: Any) -> Array:
    """Contracts one axis of each array. In half precision XLA's CPU backend is twice as fast with float32 outputs."""
    dimensions = ((axes[:1], axes[1:]), ((), ()))
    usual = functools.partial(jax.lax.dot_general, dimension_numbers=dimensions, preferred_element_type=out)
    if out == jnp.float32:
        return usual(a, b)
    single = functools.partial(usual, preferred_element_type=jnp.float32)
    contracted: Array = jax.lax.platform_dependent(a, b, cpu=lambda a, b: single(a, b).astype(out), default=usual)
    return contracted
