"""The pre-norm transformer block of all encoders and of the decoder, and sequences of blocks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.products import PRODUCT, rows_at
from detailclip_jax.models.attention import Attention, Kernel, rotate
from detailclip_jax.models.initial_values import OF_BLOCKS, ZEROS, constant
from detailclip_jax.models.layers import Initialiser, LayerNorm, Linear, exact_gelu, swiglu
from detailclip_jax.types import Array, Bool, Float, Int, PyTree

Gather: TypeAlias = Callable[[PyTree], PyTree]  # all-gather: sharded parameters -> full parameters on all devices


class BlockInit(NamedTuple):
    """Initialisers of one block."""

    qkv: Initialiser
    proj: Initialiser
    fc1: Initialiser
    fc2: Initialiser
    fc1_bias: Initialiser = ZEROS
    fc2_bias: Initialiser = ZEROS


class Table(NamedTuple):
    """Tokens that all images share, and their query, key and value."""

    tokens: Float[Array, "N D"]
    projected: Float[Array, "N E"]


class Mlp(nn.Module):
    """Two linear layers with an activation between them; the hidden layer has four times the width, or `hidden`.

    With `swiglu` the first layer has twice as many outputs: gate and value of each hidden unit.
    """

    inits: BlockInit
    activation: Callable[[Array], Array]
    dtype: Any = jnp.float32
    hidden: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Applies the MLP to each token."""
        width, inits = x.shape[-1], self.inits
        outputs = (self.hidden or 4 * width) * (2 if self.activation is swiglu else 1)
        fc1 = Linear(outputs, inits.fc1, self.dtype, inits.fc1_bias, name="fc1")
        fc2 = Linear(width, inits.fc2, self.dtype, inits.fc2_bias, name="fc2")
        return fc2(self.activation(fc1(x)))


class LayerScale(nn.Module):
    """A factor for each channel of a branch; all start at `start`."""

    start: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Multiplies the channels by their factors."""
        return x * self.param("scale", constant(self.start), (x.shape[-1],)).astype(x.dtype)


class Block(nn.Module):
    """Pre-norm block: x + attention(norm1(x)), then + mlp(norm2(x)).

    With `layer_scale` both branches are multiplied by factors for each channel, which start there.
    Three variants give the same numbers: `__call__` computes all tokens; `at_queries` computes selected query tokens;
    `with_table` computes tokens together with rows of a table that all images share.
    """

    width: int
    num_heads: int
    inits: BlockInit
    eps: float
    activation: Callable[[Array], Array] = exact_gelu
    dtype: Any = jnp.float32
    kernel: Kernel = "xla"
    causal: bool = False
    mlp_width: int = 0  # hidden units of the MLP; 0: four times the width
    layer_scale: float = 0.0
    qkv_bias: bool = True

    def setup(self) -> None:
        """Creates the parameters."""
        self.norm1, self.norm2 = (LayerNorm(self.eps, self.dtype) for _ in range(2))
        inits = self.inits.qkv, self.inits.proj
        self.attn = Attention(self.width, self.num_heads, *inits, self.dtype, self.kernel, self.qkv_bias)
        self.mlp = Mlp(self.inits, self.activation, self.dtype, self.mlp_width)
        if self.layer_scale:
            self.ls1, self.ls2 = (LayerScale(self.layer_scale) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        scale: Float[Array, "2 B 1 1"] | None = None,
        cls_row: bool = False,
        mask: Bool[Array, "#B 1 1 N"] | None = None,
        angles: Float[Array, "#B N a"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N"] | None]:
        """Computes all tokens, and with `cls_row` the CLS attention; `scale` holds drop path's factor per branch.

        `mask` is True at the tokens that are attended to; `angles` are those of rotary positions.
        """
        qkv = self.qkv(x, angles)
        attended, row = self.attn(qkv[..., : self.width], qkv[..., self.width :], mask, self.causal, cls_row)
        return self._add(x, attended, scale), row

    def qkv(self, x: Float[Array, "B N D"], angles: Float[Array, "#B N a"] | None = None) -> Float[Array, "B N E"]:
        """Computes query, key and value of all tokens, concatenated; `angles` turn query and key."""
        qkv = self.attn.project(self.norm1(x))
        return qkv if angles is None else rotate(qkv, angles, self.num_heads)

    def values(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Computes the tokens if each attended to itself alone: MaskCLIP's value read-out."""
        return self._add(x, self.attn.proj(self.attn.project(self.norm1(x), 2)))

    def at_queries(
        self, x: Float[Array, "B N D"], queries: Float[Array, "B Q D"], mask: Bool[Array, "#B 1 #Q N"] | None = None
    ) -> Float[Array, "B Q D"]:
        """Computes only the query tokens `queries`, which attend to all tokens `x`; `mask` is True where they may."""
        pairs = self.attn.project(self.norm1(x), 1)
        attended, _ = self.attn(self.attn.project(self.norm1(queries), 0, 1), pairs, mask)
        return self._add(queries, attended)

    def table(self, tokens: Float[Array, "N D"]) -> Table:
        """Normalises and projects tokens that all images share: once, not once per image."""
        return Table(tokens, self.attn.project(self.norm1(tokens)).astype(jnp.float32))

    def with_table(
        self,
        x: Float[Array, "B M D"],
        table: Table,
        index: Int[Array, "B H"],
        compute_all: bool = True,
    ) -> Float[Array, "B R D"]:
        """Computes the tokens [x, table[index]], concatenated; `index` selects rows of the table for each image.

        Without `compute_all` only the tokens of the table are computed; they still attend to `x`.
        """
        shared = rows_at(table.projected, index, self.dtype)
        tokens = rows_at(table.tokens, index, self.dtype)
        projected = self.attn.project(self.norm1(x), 0 if compute_all else 1)
        pairs = jnp.concatenate([projected[..., -2 * self.width :], shared[..., self.width :]], 1)
        query = shared[..., : self.width]
        if compute_all:
            query = jnp.concatenate([projected[..., : self.width], query], 1)
            tokens = jnp.concatenate([x, tokens], 1)
        return self._add(tokens, self.attn(query, pairs)[0])

    def _add(self, x: Array, attended: Array, scale: Array | None = None) -> Array:
        first, second = (self.ls1, self.ls2) if self.layer_scale else (lambda branch: branch,) * 2
        x = x + _scaled(first(attended), scale, 0)
        return x + _scaled(second(self.mlp(self.norm2(x))), scale, 1)


def _scaled(branch: Array, scale: Array | None, number: int) -> Array:
    return branch if scale is None else branch * scale[number].astype(branch.dtype)


def branch_scales(keys: Array, rate: float) -> Float[Array, "2 B 1 1"]:
    """Draws drop path's factors for both branches of a block: 0 if the branch is dropped, else 1 / (1 - rate).

    `keys` [B] holds one key per image.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (2,)))(keys)
    return (kept.T / (1 - rate))[..., None, None]


REMAT = {
    "auto": None,  # left open, without a training step (`experiment.settled`)
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
TURNS = 4  # parts of a batch, see `recomputed_in_turns`


def recomputed(run: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """Wraps a function of a block and arrays so that the backward pass recomputes it.

    `remat` "none" recomputes nothing, "dots" saves only the results of matrix products, "full" saves nothing.
    Raises ValueError for other values.
    """
    if remat not in REMAT:
        raise ValueError(f"model.remat {remat!r} is unknown; known: {', '.join(REMAT)}")
    return run if REMAT[remat] is None else nn.remat(run, policy=REMAT[remat])


def recomputed_in_turns(run: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """Wraps a function of a block and arrays [B, ...] like `recomputed`, and runs it on a part of the images at a time.

    For a block that is not in a loop over blocks: a loop over `TURNS` parts of the batch, or over fewer that divide it.
    The backward pass then holds what is recomputed for one part. XLA's CPU backend recomputes in loops only: elsewhere
    it finds the first computation again and keeps its results.
    """
    run_part = recomputed(run, remat)

    def in_turns(block: Block, *arrays: Array) -> Array:
        if REMAT[remat] is None or block.is_initializing():
            return run_part(block, *arrays)
        turns = math.gcd(len(arrays[0]), TURNS)
        parts = [x.reshape(turns, -1, *x.shape[1:]) for x in arrays]
        loop = nn.scan(
            lambda block, carry, part: (carry, run_part(block, *part)),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        made = loop(block, None, parts)[1]
        return made.reshape(-1, *made.shape[2:])

    return in_turns


def gathered(run: Callable[..., Any], remat: str, gather: Gather) -> Callable[..., Any]:
    """Wraps a function of a block with sharded parameters: `gather` all-gathers them for the duration of the call.

    The backward pass gathers them again. `remat` "none" is treated as "dots", so that no full parameter is saved for
    the backward pass.
    """
    gathering = nn.map_variables(run, "params", trans_in_fn=gather)
    return recomputed(gathering, "dots" if REMAT[remat] is None else remat)


def run_blocks(
    blocks: Block | Sequence[Block],
    x: Float[Array, "B N D"],
    scales: Float[Array, "L 2 B 1 1"] | None = None,
    cls_rows: bool = False,
    remat: str = "none",
    depth: int = 0,
    gather: Gather | None = None,
    mask: Bool[Array, "#B 1 1 N"] | None = None,
    angles: Float[Array, "#B N a"] | None = None,
) -> tuple[Float[Array, "B N D"], Float[Array, "B L N"] | None]:
    """Runs a sequence of blocks; returns the tokens, and with `cls_rows` the CLS attention of each block.

    `blocks` is a sequence, or one block whose parameters have `depth` layers along a leading axis. The latter runs as
    a loop (`nn.scan`): the same numbers, but a smaller program. If parameters are sharded, `gather` all-gathers one
    layer at a time inside the loop. `mask` is True at the tokens that are attended to; `angles` are those of rotary
    positions. cuDNN's attention wants even lengths: all blocks share one more token, which nothing attends to.
    """
    length, first = x.shape[1], blocks if isinstance(blocks, Block) else next(iter(blocks), None)
    if length % 2 and first is not None and first.kernel == "cudnn":
        x, mask, angles = one_more(x, mask, angles)
        x, rows = run_blocks(blocks, x, scales, cls_rows, remat, depth, gather, mask, angles)
        return x[:, :length], None if rows is None else rows[..., :length]

    def run(block: Block, x: Array, scale: Array | None) -> tuple[Array, Any]:
        return block(x, scale, cls_rows, mask, angles)

    if isinstance(blocks, Block):
        x, rows = loop_over(run, blocks, remat, depth, gather)(blocks, x, scales)
        return x, jnp.moveaxis(rows, 0, 1) if cls_rows else None
    rows, run_one = [], recomputed(run, remat)
    for number, block in enumerate(blocks):
        x, row = run_one(block, x, None if scales is None else scales[number])
        rows.append(row)
    return x, jnp.stack(rows, 1) if cls_rows else None


def one_more(
    x: Float[Array, "B N D"], mask: Bool[Array, "#B 1 1 N"] | None = None, angles: Float[Array, "#B N a"] | None = None
) -> tuple[Float[Array, "B M D"], Bool[Array, "#B 1 1 M"], Float[Array, "#B M a"] | None]:
    """Adds a token of zeros to which no token attends; returns the arguments of a block for M = N + 1 tokens."""
    real = jnp.ones((1, 1, 1, x.shape[1]), bool) if mask is None else mask
    of_tokens = ((0, 0), (0, 1), (0, 0))
    turned = None if angles is None else jnp.pad(angles, of_tokens)
    return jnp.pad(x, of_tokens), jnp.pad(real, ((0, 0), (0, 0), (0, 0), (0, 1))), turned


def run_blocks_with_values(
    blocks: Block | Sequence[Block],
    x: Float[Array, "B N D"],
    scales: Float[Array, "L 2 B 1 1"] | None = None,
    cls_rows: bool = False,
    remat: str = "none",
    depth: int = 0,
    gather: Gather | None = None,
    angles: Float[Array, "#B N a"] | None = None,
) -> tuple[Float[Array, "B N D"], Float[Array, "B L N"] | None, Float[Array, "B N D"]]:
    """Runs a sequence of blocks as `run_blocks` does; returns also the last one's value read-out, `Block.values`."""
    if not isinstance(blocks, Block):
        *most, last = blocks
        x, rows = run_blocks(most, x, scales, cls_rows, remat, angles=angles)
        read = recomputed(Block.values, remat)(last, x)
        x, row = run_blocks([last], x, None if scales is None else scales[-1:], cls_rows, remat, angles=angles)
        return x, None if rows is None or row is None else jnp.concatenate([rows, row], 1), read

    def run(block: Block, carry: tuple[Array, Array], scale: Array | None) -> tuple[tuple[Array, Array], Any]:
        after, row = block(carry[0], scale, cls_rows, angles=angles)
        return (after, carry[0]), row

    def last_layer(params: PyTree) -> PyTree:
        layer = jax.tree.map(lambda leaf: leaf[-1], params)
        return layer if gather is None else gather(layer)

    (x, before), rows = loop_over(run, blocks, remat, depth, gather)(blocks, (x, x), scales)
    read = before if blocks.is_initializing() else gathered(Block.values, remat, last_layer)(blocks, before)
    return x, jnp.moveaxis(rows, 0, 1) if cls_rows else None, read


def loop_over(run: Callable[..., Any], block: Block, remat: str, depth: int, gather: Gather | None) -> Any:
    """Returns a loop (`nn.scan`) of `run` over the stacked layers of a block, see `run_blocks`."""
    one = recomputed(run, remat) if gather is None or block.is_initializing() else gathered(run, remat, gather)
    return nn.scan(
        one, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth, metadata_params=OF_BLOCKS
    )
