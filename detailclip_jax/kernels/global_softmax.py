"""Contrastive cross-entropies over the global batch, with logits computed in blocks of columns.

`losses.clip` and `losses.simclr` have the formulas in their plain form; it runs where all logits of a device fit
into one block (`fits`).

A contrastive loss is log sum_j exp(x_i . y_j) - x_i . y_i. The sum runs over the batch of all devices; the full logits
would be the largest array of a step (8,192 x 65,536 on each of 8 devices). Here a device computes one block of columns
at a time: the forward pass keeps a running maximum and sum, the backward pass recomputes the logits. Padding columns
fill the last block and are excluded from the sum, so the batch may have any size.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from detailclip_jax.types import Array, Axis, Bool, Float, Int, Scalar

LOGITS = 2**20  # largest number of logits in a block of automatic size: 4 MB in float32

# An example has K embeddings (its views, its caption), numbered by "kind". A contrast is the kind of the rows, and the
# kinds of the columns that they are compared with; the kind of the positive pair comes first.
Contrast = tuple[int, tuple[int, ...]]


def gather(rows: Shaped[Array, "B ..."], axis: Axis | None) -> Shaped[Array, "G ..."]:
    """All-gathers the rows of all devices in one collective; its transpose is one reduce-scatter."""
    return jax.lax.all_gather(rows, axis, axis=0, tiled=True) if axis else rows


def local_rows(num_rows: int, axis: Axis | None) -> Int[Array, "B"]:
    """Returns the indices of this device's rows among the gathered ones."""
    return jnp.arange(num_rows) + (jax.lax.axis_index(axis) * num_rows if axis else 0)


def fits(block: int, num_rows: int, num_columns: int, num_pairs: int = 1) -> bool:
    """Whether all columns fit into one block; see `block_size`.

    `num_pairs` logits of each row and column are in one array: for every pair of a view and a caption.
    """
    return block_size(block, num_rows * num_pairs, num_columns) >= num_columns


def block_size(block: int, num_rows: int, num_columns: int) -> int:
    """Returns the number of columns per block: `block`, or for 0 that of the fewest blocks within `LOGITS` logits.

    These blocks are of equal size but for the last, which is padded.
    """
    if block:
        return min(block, num_columns)
    num_blocks = math.ceil(num_columns / max(LOGITS // num_rows, 1))
    return math.ceil(num_columns / num_blocks)


def blockwise_cross_entropies(
    rows: Float[Array, "B K E"],
    columns: Float[Array, "G K E"],
    scale: Scalar | float,
    index: Int[Array, "B"],
    contrasts: tuple[Contrast, ...],
    block: int = 0,
) -> tuple[Float[Array, "n B"], Int[Array, "n B"]]:
    """Computes the cross-entropy of each contrast (k, kinds) and row i, and the index of its largest logit.

        log sum_{l in kinds, j} exp(scale rows_ik . columns_jl) - scale rows_ik . columns_{index_i, kinds_0}

    `index` holds each row's place among the columns. If l = k, column index_i is excluded: it is the row itself. The
    second result is j in the first of `kinds`, G + j in the second. `block` columns are computed at a time (0 =
    automatic, see `block_size`). Gradients to rows, columns and scale are exact.
    """
    num_kinds = max(len(kinds) for _, kinds in contrasts)  # their logits are concatenated
    size = block_size(block, len(rows) * num_kinds, len(columns))
    return _cross_entropies(rows, columns, scale, index, contrasts, size)


def _forward(rows: Array, columns: Array, scale: Any, index: Array, contrasts: tuple[Contrast, ...], block: int) -> Any:
    def meet(carry: Any, numbered: Any) -> Any:
        column_block = _block(numbered, index, len(columns))
        kinds = [_logits(rows, scale, column_block, contrast) for contrast in contrasts]
        return [_advance(met, column_block, logits, len(columns)) for met, logits in zip(carry, kinds)], None

    zeros = jnp.zeros(len(rows))
    start = _Met(jnp.full_like(zeros, -jnp.inf), zeros, zeros, jnp.zeros(len(rows), jnp.int32))
    met, _ = jax.lax.scan(meet, [start] * len(contrasts), _numbered(columns, block))
    peak, total, pair, nearest = (jnp.stack(arrays) for arrays in zip(*met))
    return (peak - pair + jnp.log(total), nearest), (rows, columns, scale, index, peak + jnp.log(total))


def _backward(contrasts: tuple[Contrast, ...], block: int, saved: Any, cotangents: Any) -> Any:
    rows, columns, scale, index, sums = saved

    def meet(to_rows: list[Array], numbered: Any) -> Any:
        column_block = _block(numbered, index, len(columns))
        to_block = list(jnp.zeros_like(jnp.moveaxis(numbered[0], 1, 0)))
        for (row, kinds), one_sum, weight in zip(contrasts, sums, scale * cotangents[0]):
            for kind, share in zip(kinds, _shares(rows, scale, column_block, (row, kinds), one_sum)):
                share = weight[:, None] * share
                to_rows[row] += _product("bc,ce->be", share, column_block.columns[:, kind])
                to_block[kind] += _product("bc,be->ce", share, rows[:, row])
        return to_rows, jnp.stack(to_block, 1)

    start = list(jnp.zeros_like(jnp.moveaxis(rows, 1, 0)))
    to_rows, to_columns = jax.lax.scan(meet, start, _numbered(columns, block))
    to_rows = jnp.stack(to_rows, 1)
    to_columns = to_columns.reshape(-1, *columns.shape[1:])[: len(columns)]
    return to_rows, to_columns, jnp.sum(rows * to_rows) / scale, None


_cross_entropies: Any = jax.custom_vjp(lambda *inputs: _forward(*inputs)[0], nondiff_argnums=(4, 5))
_cross_entropies.defvjp(_forward, _backward)


class _Block(NamedTuple):
    columns: Float[Array, "C K E"]
    numbers: Int[Array, "C"]
    itself: Bool[Array, "B C"]  # True where a column belongs to the row's example
    filler: Bool[Array, "C"]  # True at padding columns


class _Met(NamedTuple):
    """Running statistics of each row over the columns of the blocks so far."""

    peak: Float[Array, "B"]  # the largest logit
    total: Float[Array, "B"]  # sum of exp(logit - peak)
    pair: Float[Array, "B"]  # logit of the positive pair
    nearest: Int[Array, "B"]  # index of the largest logit


def _numbered(columns: Float[Array, "G K E"], block: int) -> tuple[Float[Array, "n C K E"], Int[Array, "n C"]]:
    """Splits columns into blocks and returns them with the columns' indices; zeros pad the last block."""
    num_blocks = math.ceil(len(columns) / block)
    filled = jnp.pad(columns, ((0, num_blocks * block - len(columns)), (0, 0), (0, 0)))
    return filled.reshape(num_blocks, block, *columns.shape[1:]), jnp.arange(len(filled)).reshape(-1, block)


def _block(numbered: tuple[Array, Array], index: Array, size: int) -> _Block:
    columns, numbers = numbered
    return _Block(columns, numbers, numbers == index[:, None], numbers >= size)


def _logits(rows: Array, scale: Any, block: _Block, contrast: Contrast) -> list[Array]:
    """Computes logits [B, C] of a block for each kind of column."""
    row, kinds = contrast
    logits = [scale * _product("be,ce->bc", rows[:, row], block.columns[:, kind]) for kind in kinds]
    left_out = [block.filler | block.itself if kind == row else block.filler for kind in kinds]
    return [jnp.where(out, -jnp.inf, x) for out, x in zip(left_out, logits)]


def _shares(rows: Array, scale: Any, block: _Block, contrast: Contrast, sums: Array) -> list[Array]:
    """Computes the gradient to the block's logits for each kind of column: softmax, minus 1 at the positive pair."""
    first, *others = (jnp.exp(x - sums[:, None]) for x in _logits(rows, scale, block, contrast))
    return [first - block.itself, *others]


def _advance(met: _Met, block: _Block, kinds: list[Array], size: int) -> _Met:
    """Updates the statistics with the logits `kinds` of one block; the batch has `size` columns of each kind."""
    logits = jnp.concatenate(kinds, 1)
    places = jnp.concatenate([block.numbers + kind * size for kind in range(len(kinds))])
    highest, place = logits.max(1), places[logits.argmax(1)]
    better = (highest > met.peak) | ((highest == met.peak) & (place < met.nearest))  # of equal logits the lower index
    peak = jnp.maximum(met.peak, highest)
    total = met.total * jnp.exp(met.peak - peak) + jnp.exp(logits - peak[:, None]).sum(1)
    pair = met.pair + jnp.where(block.itself, kinds[0], 0).sum(1)
    return _Met(peak, total, pair, jnp.where(better, place, met.nearest))


def _product(formula: str, a: Array, b: Array) -> Array:
    return jnp.einsum(formula, a, b, precision="highest")
