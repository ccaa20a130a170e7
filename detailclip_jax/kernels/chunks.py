"""Sums over so many items that what is computed of them may not all exist at once."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, PyTree, Scalar

Term = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[Scalar, dict[str, Scalar]]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def total(term: Term, weights: PyTree, fixed: PyTree, items: PyTree, given: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """sum_i term(weights, fixed, items[i], given[i]), and the sums of the scalars that `term` returns beside it.

    `items` and `given` hold the chunks along their first axis; one is computed at a time.  Differentiable by `weights`
    and `items`: their gradients are made chunk by chunk on the way to the sum, so nothing of a chunk outlives it and
    nothing is computed twice.  The scalars beside have no gradient.
    """
    return _sum_chunks(lambda item, beside: (term(weights, fixed, item, beside), None), items, given)[0]


def _total_forward(term: Term, weights: PyTree, fixed: PyTree, items: PyTree, given: PyTree) -> tuple[PyTree, PyTree]:
    gradient = jax.value_and_grad(term, argnums=(0, 2), has_aux=True)

    def of_chunk(item: PyTree, beside: PyTree) -> tuple[tuple[PyTree, PyTree], PyTree]:
        value, (of_weights, of_item) = gradient(weights, fixed, item, beside)
        return (value, of_weights), of_item

    (value, of_weights), of_items = _sum_chunks(of_chunk, items, given)
    return value, (of_weights, of_items)


def _total_backward(term: Term, saved: PyTree, cotangents: tuple[Array, Any]) -> tuple[PyTree, None, PyTree, None]:
    of_weights, of_items = jax.tree.map(lambda x: (cotangents[0] * x).astype(x.dtype), saved)
    return of_weights, None, of_items, None


total.defvjp(_total_forward, _total_backward)


def _sum_chunks(of_chunk: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], items: PyTree, given: PyTree) -> Any:
    """The sum of what `of_chunk` returns first, and what it returns second for every chunk."""
    if jax.tree.leaves(items)[0].shape[0] == 1:
        summed, kept = of_chunk(*jax.tree.map(lambda x: x[0], (items, given)))
        return summed, jax.tree.map(lambda x: x[None], kept)

    def add(so_far: PyTree, chunk: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        summed, kept = of_chunk(*chunk)
        return jax.tree.map(jnp.add, so_far, summed), kept

    shapes, _ = jax.eval_shape(of_chunk, *jax.tree.map(lambda x: x[0], (items, given)))
    return jax.lax.scan(add, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes), (items, given))


def split(arrays: PyTree, most: int) -> PyTree:
    """Arrays [n, ...] as chunks [k, m, ...] of at most `most` items, as few and as equal as can be; 0 is one chunk.

    The last chunk is filled up with zeros: give items a weight, and these have the weight 0.
    """
    count = jax.tree.leaves(arrays)[0].shape[0]
    num_chunks = math.ceil(count / most) if most else 1
    size = math.ceil(count / num_chunks)

    def cut(x: Array) -> Array:
        filled = jnp.pad(x, [(0, num_chunks * size - count)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(num_chunks, size, *x.shape[1:])

    return jax.tree.map(cut, arrays)
