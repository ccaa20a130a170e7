"""Training-free dense read-outs: patch features of a CLIP ViT that text embeddings can be compared with.

CLIP trains its class token only. Each read-out changes the last block, without training, so that the patch tokens keep
to their own place. With x the tokens before the last block, h = norm1(x), q, k, v its projections per head, d the width
of a head, S the softmax over keys and O the output projection:

    plain           the block as trained: y = x + O S(q k^T / sqrt d) v;  y + MLP(norm2 y)
    maskclip        y = x + O v;  y + MLP(norm2 y)                                              arXiv 2112.01071
    maskclip_bare   O v: no residual, no MLP
    sclip           A = S(q q^T / sqrt d) + S(k k^T / sqrt d);  y = x + O A v;  y + MLP(norm2 y)     2312.01597
    naclip          A = S(k k^T / sqrt d + w), w_ij = exp(-|i - j|^2 / (2 * 5^2)), 0 at CLS;  O A v  2404.08181
    clearclip       O S(q q^T / sqrt d) v                                                        2407.12442
    tips            as maskclip, with positions interpolated as in TIPS's code                      2410.16512
    gem             of the last six blocks: a side stream g, which starts as the first one's x;
                    g + O mean over z in (q, k, v) of A_z v;  A_z = S(t z z^T), no MLP           2312.00878

Final norm and image projection follow, or dino.txt's two new blocks, as trained. Before the projection, an attention
pool (SigLIP's) takes each token alone, as maskclip's block does. The shares of sclip's A sum to 2, as
published. In gem z is first normalised, averaged once by S(t z z^T) and normalised again; t is the mean length of the
tokens h of the image, over sqrt d.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.kernels.products import precision_of
from detailclip_jax.models.block import Block, run_blocks
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Array, Float

GAUSSIAN_WIDTH = 5.0  # of naclip's neighbourhood: the standard deviation in patches
EPS = 1e-12  # of norms in gem, as PyTorch's normalize

Grid = tuple[int, int]  # rows and columns of patches
Angles = Float[Array, "#B M a"] | None  # of rotary positions
Heads = Float[Array, "B M heads d"]  # M tokens: class tokens, the first of them CLS, then N patches


class Readout(NamedTuple):
    """One read-out: `run` computes the tokens after the last `num_blocks` blocks from the tokens before them.

    `interpolation` is the recipe for positions of another grid in the published code, see `positions.RECIPES`.
    """

    run: Callable[[Sequence[Block], Float[Array, "B M D"], Grid, Angles], Float[Array, "B M D"]]
    num_blocks: int = 1
    interpolation: str = "ibot"


def read_out(
    encoder: VisionTransformer,
    images: Float[Array, "B H W 3"],
    readout: Readout,
    project: Callable[[Float[Array, "B M D"]], Float[Array, "B M E"]] = lambda x: x,
) -> Float[Array, "B rows columns E"]:
    """Patch tokens of normalised images after the read-out, the final norm and `project`, which takes all tokens.

    `encoder` is bound to parameters, and its blocks are not stacked; H and W are multiples of the patch size. An
    encoder with fewer blocks than the read-out uses gives all of them.
    """
    grid, angles = encoder.grid(images), encoder.angles(images)
    blocks = list(encoder.blocks)  # type: ignore[arg-type]
    first = max(len(blocks) - readout.num_blocks, 0)
    x, _ = run_blocks(blocks[:first], encoder.embed(images), angles=angles)
    x = encoder.norm(readout.run(blocks[first:], x, grid, angles))
    x = project(encoder.pool.alone(x) if encoder.style.has_pool else x)
    return x[:, encoder.num_class_tokens :].reshape(len(x), *grid, -1)


def plain(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """The block as trained."""
    return blocks[-1](x, angles=angles)[0]


def maskclip(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """Every token attends to itself alone; residual and MLP stay."""
    return blocks[-1].values(x)


def maskclip_bare(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """The values through the output projection."""
    attn = blocks[-1].attn
    return attn.proj(attn.project(blocks[-1].norm1(x), 2))


def sclip(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """Correlative self-attention: queries attend to queries, keys to keys, and both shares are added."""
    query, key, value = heads(blocks[-1], x, angles)
    shares = attention(query, query) + attention(key, key)
    return with_mlp(blocks[-1], x + output(blocks[-1], shares, value))


def naclip(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """Keys attend to keys, with a bonus for near patches; no residual, no MLP."""
    _, key, value = heads(blocks[-1], x, angles)
    return output(blocks[-1], attention(key, key, bonus=neighbourhood(grid, x.shape[1])), value)


def clearclip(
    blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None
) -> Float[Array, "B M D"]:
    """Queries attend to queries; no residual, no MLP."""
    query, _, value = heads(blocks[-1], x, angles)
    return output(blocks[-1], attention(query, query), value)


def gem(blocks: Sequence[Block], x: Float[Array, "B M D"], grid: Grid, angles: Angles = None) -> Float[Array, "B M D"]:
    """Adds the self-self attention of all blocks to a side stream; the tokens themselves pass the blocks as trained."""
    side = x
    for block in blocks:
        side = side + self_self_attention(block, x, angles)
        x, _ = block(x, angles=angles)
    return side


READOUTS = {
    "plain": Readout(plain),
    "maskclip": Readout(maskclip),
    "maskclip_bare": Readout(maskclip_bare),
    "sclip": Readout(sclip),
    "naclip": Readout(naclip),
    "clearclip": Readout(clearclip),
    "gem": Readout(gem, num_blocks=6, interpolation="timm"),
    "tips": Readout(maskclip, interpolation="tips"),
}


def heads(block: Block, x: Float[Array, "B M D"], angles: Angles = None) -> tuple[Heads, Heads, Heads]:
    """q, k and v of a block, per head."""
    qkv = block.qkv(x, angles).reshape(*x.shape[:2], 3, block.num_heads, -1)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def attention(
    query: Heads, key: Heads, scale: float | Float[Array, "B 1 1 1"] | None = None, bonus: np.ndarray | float = 0.0
) -> Float[Array, "B heads M M"]:
    """S(scale q k^T + bonus) per head, in float32; `scale` None is 1 / sqrt d."""
    precision = precision_of(query.dtype)
    logits = jnp.einsum("bihd,bjhd->bhij", query, key, precision=precision, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * (query.shape[-1] ** -0.5 if scale is None else scale) + bonus)


def mix(shares: Float[Array, "B heads M M"], value: Heads) -> Heads:
    """A v per head."""
    precision = precision_of(value.dtype)
    return jnp.einsum("bhij,bjhd->bihd", shares.astype(value.dtype), value, precision=precision)


def output(block: Block, shares: Float[Array, "B heads M M"], value: Heads) -> Float[Array, "B M D"]:
    """O A v: the heads' outputs, concatenated, through the output projection."""
    mixed = mix(shares, value)
    return block.attn.proj(mixed.reshape(*mixed.shape[:2], -1))


def with_mlp(block: Block, x: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
    """x + MLP(norm2 x), the second half of a block."""
    return x + block.mlp(block.norm2(x))


def neighbourhood(grid: Grid, num_tokens: int) -> np.ndarray:
    """naclip's w [M, M]: a Gaussian of the distance between patches, the last of M tokens; 0 for class tokens."""
    place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    squared = ((place[:, None] - place) ** 2).sum(-1)
    before = (num_tokens - len(place), 0)
    return np.pad(np.exp(-squared / (2 * GAUSSIAN_WIDTH**2)), (before, before)).astype(np.float32)


def self_self_attention(block: Block, x: Float[Array, "B M D"], angles: Angles = None) -> Float[Array, "B M D"]:
    """O mean over z in (q, k, v) of A_z v, gem's addition to the side stream."""
    h = block.norm1(x).astype(jnp.float32)
    projected = heads(block, x, angles)
    length = jnp.linalg.norm(h, axis=-1).mean(-1)
    inverse = (length * projected[0].shape[-1] ** -0.5)[:, None, None, None]
    shares = jnp.stack([attention(z, z, inverse) for z in (settled(each, inverse) for each in projected)]).mean(0)
    return output(block, shares, projected[2])


def settled(z: Heads, inverse: Float[Array, "B 1 1 1"]) -> Heads:
    """z, normalised, averaged over similar tokens once, and normalised again."""
    z = unit(z)
    return unit(mix(attention(z, z, inverse), z))


def unit(z: Heads) -> Heads:
    """z divided by its length."""
    length = jnp.linalg.norm(z.astype(jnp.float32), axis=-1, keepdims=True)
    return (z / jnp.maximum(length, EPS)).astype(z.dtype)
