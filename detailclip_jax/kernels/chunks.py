"""Sums over many items in chunks, so that intermediate results exist for one chunk at a time."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, PyTree, Scalar

Term = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[Scalar, dict[str, Scalar]]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def total(
    term: Term, weights: PyTree, fixed: PyTree, items: PyTree, targets: PyTree
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes sum_i term(weights, fixed, items[i], targets[i]), and the sums of the metrics that `term` also returns.

    `items` and `targets` hold the chunks along their first axis; one chunk is computed at a time. The sum is
    differentiable with respect to `weights` and `items`. Their gradients are computed chunk by chunk in the forward
    pass, so no intermediate result of a chunk is saved and nothing is computed twice. The metrics have no gradient.
    """
    return _sum_chunks(lambda item, target: (term(weights, fixed, item, target), None), items, targets)[0]


def _total_forward(term: Term, weights: PyTree, fixed: PyTree, items: PyTree, targets: PyTree) -> tuple[PyTree, PyTree]:
    gradient = jax.value_and_grad(term, argnums=(0, 2), has_aux=True)

    def of_chunk(item: PyTree, target: PyTree) -> tuple[tuple[PyTree, PyTree], PyTree]:
        value, (of_weights, of_item) = gradient(weights, fixed, item, target)
        return (value, of_weights), of_item

    (value, of_weights), of_items = _sum_chunks(of_chunk, items, targets)
    return value, (of_weights, of_items)


def _total_backward(term: Term, saved: PyTree, cotangents: tuple[Array, Any]) -> tuple[PyTree, None, PyTree, None]:
    of_weights, of_items = jax.tree.map(lambda x: (cotangents[0] * x).astype(x.dtype), saved)
    return of_weights, None, of_items, None


total.defvjp(_total_forward, _total_backward)


def _sum_chunks(of_chunk: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], items: PyTree, targets: PyTree) -> Any:
    """Returns the sum of the first results of `of_chunk`, and its second results stacked over chunks."""
    if jax.tree.leaves(items)[0].shape[0] == 1:
        summed, kept = of_chunk(*jax.tree.map(lambda x: x[0], (items, targets)))
        return summed, jax.tree.map(lambda x: x[None], kept)

    def add(so_far: PyTree, chunk: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        summed, kept = of_chunk(*chunk)
        return jax.tree.map(jnp.add, so_far, summed), kept

    shapes, _ = jax.eval_shape(of_chunk, *jax.tree.map(lambda x: x[0], (items, targets)))
    return jax.lax.scan(add, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes), (items, targets))


def split(arrays: PyTree, most: int) -> PyTree:
    """Splits arrays [n, ...] into chunks [k, m, ...] of at most `most` items; k is minimal, and 0 means one chunk.

    Zeros pad the last chunk. If the weight of each item is one of the arrays, the padding gets weight 0.
    """
    count = jax.tree.leaves(arrays)[0].shape[0]
    num_chunks = math.ceil(count / most) if most else 1
    size = math.ceil(count / num_chunks)

    def cut(x: Array) -> Array:
        filled = jnp.pad(x, [(0, num_chunks * size - count)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(num_chunks, size, *x.shape[1:])

    return jax.tree.map(cut, arrays)
