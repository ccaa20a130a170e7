"""The image encoder g: a ViT that can encode a subset of the patches and return its CLS attention."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from detailclip_jax.data.native_aspect import Native
from detailclip_jax.kernels.products import broadcast, rows_at
from detailclip_jax.models.attention import Kernel
from detailclip_jax.models.attention_pool import AttentionPool
from detailclip_jax.models.block import (
    Block,
    BlockInit,
    Gather,
    branch_scales,
    run_blocks,
    run_blocks_with_values,
)
from detailclip_jax.models.initial_values import XAVIER, normal, uniform_fan_in
from detailclip_jax.models.layers import LayerNorm, Linear, activation_named, mean_of
from detailclip_jax.models.patchify import at_patch_size, patchify, take
from detailclip_jax.models.positions import (
    RECIPES,
    grid_angles,
    interpolate,
    native_positions,
    rotary_angles,
    sincos_positions,
)
from detailclip_jax.models.registry import Build, Network, ParameterRule
from detailclip_jax.types import FSDP, Array, Bool, Float, Int, Tokens

NORMAL = normal(0.02)
VIT_INIT = BlockInit(qkv=NORMAL, proj=NORMAL, fc1=NORMAL, fc2=NORMAL)
MAE_INIT = BlockInit(qkv=XAVIER, proj=XAVIER, fc1=XAVIER, fc2=XAVIER)
INITS = {"normal": VIT_INIT, "xavier": MAE_INIT}
POOLINGS = ("cls", "mean", "norm_of_mean", "attention", "attention_with_cls")
POSITIONS = ("learnt", "sincos", "rotary", "learnt_rotary")
INITIAL = ("init", "position_std")  # fields of Style that only concern fresh parameters


class Style(NamedTuple):
    """Differences between published ViTs other than size; the defaults are the paper's.

    `pre_norm`: a norm between the positions and the first block (OpenAI's CLIP). `pooling`: what `Tokens.cls` holds:
    "cls", the normalised CLS token; "mean", the mean of the normalised patches; "norm_of_mean", the norm of the
    patches' mean (timm's `fc_norm`; then `Tokens.patches` are not normalised); "attention", the normalised patches
    pooled by `AttentionPool` (SigLIP), without class tokens: the CLS attention is then that of the pool;
    "attention_with_cls", the same with a CLS token among the tokens that are pooled (PE). `pool_heads`: of a pool with
    an MLP of four times the width; 0 for heads and MLP as in the blocks. `positions`: "learnt", "sincos" for fixed ones
    as in MAE, "rotary" for DINOv3's, which turn the queries and keys of patches in every block, or "learnt_rotary", a
    table and PE's rotary ones. Without `final_norm` no norm follows the last block (PE-Spatial). `init`: "normal", or
    "xavier" as in MAE: kernels xavier-uniform, biases 0, except the bias of the patch embedding, which is uniform as in
    PyTorch (a convolution in MAE's code). `position_std`: standard deviation of the initial values of learnt positions.
    """

    norm_eps: float = 1e-6
    activation: str = "gelu"
    pre_norm: bool = False
    patch_bias: bool = True
    pooling: str = "cls"
    positions: str = "learnt"
    init: str = "normal"
    pool_heads: int = 0
    final_norm: bool = True
    position_std: float = 0.02

    @property
    def has_pool(self) -> bool:
        """Whether the image's feature is pooled by attention."""
        return self.pooling.startswith("attention")

    @property
    def num_cls(self) -> int:
        """The number of positions before those of the patches: 1 for the CLS token, 0 without one."""
        return int(self.pooling != "attention")


class VisionTransformer(nn.Module):
    """Pre-norm ViT with a CLS token or an attention pool, positions of any kind and a final norm; no dropout.

        tokens = vit(images)                    # all N patches
        tokens = vit(images, hidden.kept)       # K patches; the others are not embedded
        tokens = vit(images, hidden=mask, mask_token=token)     # N patches; the mask token replaces hidden ones
        vit(images, attention=True).attention   # [B, L, N], CLS attention of eq. 9 before the mean over layers

    `class_tokens` counts the class tokens and registers; the pooling "attention" has none. Those after the first follow
    it, have no position, and are `Tokens.extra`.
    A kept patch has the position of its place in the image; a replaced patch is the mask token plus its position. The
    CLS token is cls_token + positions[0], or cls_token with rotary positions. Positions are interpolated for images of
    another size, which need not be square; their sides must be multiples of the patch size. Native images have any
    grids in one batch, and their positions, which are in a table, are always interpolated linearly. `drop_path` is the
    rate of the last block; rates rise linearly from 0 at the first one. Drop path needs `keys`.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    image_size: int
    dtype: Any = jnp.float32
    remat: str = "none"
    style: Style = Style()
    drop_path: float = 0.0
    kernel: Kernel = "xla"  # of attention
    scan: bool = False  # stack the blocks, and run them in a loop
    interpolation: str = "bicubic"  # of positions, one of positions.RECIPES
    class_tokens: int = 1
    gather: Gather | None = None  # all-gathers one layer at a time in that loop, if parameters are sharded
    mlp_width: int = 0  # hidden units of the MLPs; 0: four times the width

    @property
    def num_class_tokens(self) -> int:
        """The number of tokens before those of the patches: `class_tokens`, or 0 for the pooling "attention"."""
        return self.class_tokens * self.style.num_cls

    def setup(self) -> None:
        """Creates the parameters."""
        if self.style.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.style.pooling!r} is unknown; known: {', '.join(POOLINGS)}")
        if self.style.positions not in POSITIONS:
            raise ValueError(f"positions {self.style.positions!r} are unknown; known: {', '.join(POSITIONS)}")
        if self.style.init not in INITS:
            raise ValueError(f"image_style.init {self.style.init!r} is unknown; known: {', '.join(INITS)}")
        side, kind = self.image_size // self.patch_size, self.style.positions
        uniform = uniform_fan_in(3 * self.patch_size**2)
        init = XAVIER if self.style.init == "xavier" else uniform
        bias = self.style.patch_bias
        self.patch_embed = Linear(self.width, init, self.dtype, uniform, bias)
        first = self.style.num_cls
        if first:
            self.cls_token = self.param("cls_token", NORMAL, (self.width,))
        if self.num_class_tokens > 1:
            self.extra_tokens = self.param("extra_tokens", NORMAL, (self.num_class_tokens - 1, self.width))
        self.table = None  # of positions, one row per token
        if kind.startswith("learnt"):
            self.table = jnp.asarray(
                self.param("positions", normal(self.style.position_std), (side**2 + first, self.width))
            )
        elif kind == "sincos":
            self.table = jnp.asarray(sincos_positions(self.width, side)[1 - first :])
        eps, activation = self.style.norm_eps, activation_named(self.style.activation)
        if self.style.pre_norm:
            self.pre_norm = LayerNorm(eps, self.dtype)
        inits, kernel = INITS[self.style.init], self.kernel
        number = None if self.scan else self.depth
        blocks = [
            Block(self.width, self.num_heads, inits, eps, activation, self.dtype, kernel, mlp_width=self.mlp_width)
            for _ in range(number or 1)
        ]
        self.blocks = blocks if number else blocks[0]
        self.norm = LayerNorm(eps, self.dtype) if self.style.final_norm else lambda x: x
        if self.style.has_pool:
            heads, mlp_width = (self.style.pool_heads, 0) if self.style.pool_heads else (self.num_heads, self.mlp_width)
            self.pool = AttentionPool(
                self.width, heads, inits, eps, self.style.activation, self.dtype, kernel, mlp_width
            )

    def __call__(
        self,
        images: Float[Array, "B H W 3"] | Native,
        kept: Int[Array, "B K"] | None = None,
        attention: bool = False,
        hidden: Bool[Array, "B N"] | None = None,
        mask_token: Float[Array, "D"] | None = None,
        keys: Array | None = None,
        values: bool = False,
    ) -> Tokens:
        """Encodes normalised images; `kept` holds the indices of the patches to encode, None for all.

        Nothing attends to the padding of native images, no pooling contains it, and its tokens have no meaning.
        `mask_token` replaces the patches at which `hidden` is True. `attention` also returns the CLS attention. `keys`
        [B] enable drop path. `values` also returns the value read-out, with a pool what it returns for each patch as
        the query (`AttentionPool.of_each`).
        """
        x, scales = self.embed(images, kept, hidden, mask_token), None
        if keys is not None and self.drop_path:  # a factor for every branch of every block [L, 2, B, 1, 1]
            rates = [self.drop_path * number / max(self.depth - 1, 1) for number in range(self.depth)]
            scales = jnp.stack([branch_scales(fold_in(keys, number), rate) for number, rate in enumerate(rates)])
        real = images.valid if isinstance(images, Native) else None
        mask = None  # True at class tokens and real patches
        if real is not None:
            mask = jnp.pad(real, ((0, 0), (self.num_class_tokens, 0)), constant_values=True)[:, None, None]
        angles = None if isinstance(images, Native) else self.angles(images, kept)
        first = self.num_class_tokens  # place of the first patch
        if self.style.has_pool:
            x, _ = run_blocks(self.blocks, x, scales, False, self.remat, self.depth, self.gather, mask, angles)
            x = self.norm(x)
            cls, row = self.pool(x, attention, mask)
            read = self.pool.of_each(x, mask)[:, first:] if values else None
            return Tokens(cls, x[:, first:], None if row is None else row[:, None, first:], values=read)
        options, read = (self.blocks, x, scales, attention, self.remat, self.depth, self.gather), None
        if values:
            assert real is None  # `methods.build` refuses terms that need squares
            x, rows, read = run_blocks_with_values(*options, angles=angles)
            read = self.norm(read)
        else:
            x, rows = run_blocks(*options, mask, angles)
        maps = None if rows is None else rows[..., first:]
        if self.style.pooling == "norm_of_mean":
            cls, extra, patches = self.norm(_mean(x[:, first:], real)), self.norm(x[:, 1:first]), x[:, first:]
        else:
            x = self.norm(x)
            patches, extra = x[:, first:], x[:, 1:first]
            cls = x[:, 0] if self.style.pooling == "cls" else _mean(patches, real)
        return Tokens(cls, patches, maps, extra if first > 1 else None, None if read is None else read[:, first:])

    def embed(
        self,
        images: Float[Array, "B H W 3"] | Native,
        kept: Int[Array, "B K"] | None = None,
        hidden: Bool[Array, "B N"] | None = None,
        mask_token: Float[Array, "D"] | None = None,
    ) -> Float[Array, "B M D"]:
        """Embeds class tokens and patches and adds positions; `kept` patches are selected before the projection."""
        pixels, positions = self._pixels(images, kept)
        patches = self.patch_embed(pixels)
        if hidden is not None:
            assert mask_token is not None  # `hidden` requires `mask_token`
            patches = jnp.where(hidden[..., None], broadcast(mask_token, patches.shape, self.dtype), patches)
        if positions is not None:
            patches = patches + broadcast(positions, patches.shape, self.dtype)
        x = jnp.concatenate([*self.classes(pixels.shape[0]), patches], 1)
        return self.pre_norm(x) if self.style.pre_norm else x

    def _pixels(
        self, images: Float[Array, "B H W 3"] | Native, kept: Int[Array, "B K"] | None
    ) -> tuple[Float[Array, "B N P"], Float[Array, "#B N D"] | None]:
        """Returns the pixels of the patches, by default of all, and the positions of these, None for rotary ones.

        Raises ValueError for native images and rotary positions.
        """
        first = self.style.num_cls
        if isinstance(images, Native):
            if self.table is None or "rotary" in self.style.positions:
                raise ValueError("native images need positions in a table alone; image_style.positions are rotary")
            positions = native_positions(self.table[first:], images.grid, images.patches.shape[1])
            return at_patch_size(images.patches, self.patch_size), positions
        pixels = patchify(images, self.patch_size)
        if self.table is None:
            return pixels if kept is None else take(pixels, kept), None
        table = interpolate(self.table, self.grid(images), self.interpolation, first)
        if kept is None:
            return pixels, table[None, first:]
        return take(pixels, kept), rows_at(table, first + kept, self.dtype)

    def classes(self, batch: Any) -> list[Float[Array, "B R D"]]:
        """Returns the class tokens, the first with its position, then the others; `batch` is symbolic in exports."""
        if not self.num_class_tokens:
            return []
        first = self.cls_token if self.table is None else self.cls_token + self.table[0]
        tokens = [first[None]] + ([self.extra_tokens] if self.num_class_tokens > 1 else [])
        return [broadcast(token, (batch, *token.shape), self.dtype) for token in tokens]

    def grid(self, images: Float[Array, "B H W 3"]) -> tuple[int, int]:
        """Returns the rows and columns of patches of images."""
        return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

    def angles(
        self,
        images: Float[Array, "B H W 3"],
        kept: Int[Array, "B K"] | None = None,
        counts: Int[Array, "B 2"] | None = None,
    ) -> Float[Array, "#B M a"] | None:
        """Returns the angles of rotary positions, 0 for class tokens, as `embed` orders them; None for other positions.

        `counts` are the rows and columns of patches of each image, if they are fewer than those of the array.
        """
        if "rotary" not in self.style.positions:
            return None
        places, head_width = np.indices(self.grid(images)).reshape(2, -1).T, self.width // self.num_heads
        if self.style.positions == "learnt_rotary":
            angles = grid_angles(places + self.style.num_cls, head_width)[None]
        elif counts is None:
            angles = rotary_angles(places, self.grid(images), head_width)[None]
        else:
            angles = rotary_angles(places, counts[:, None], head_width)
        if kept is not None:
            angles = take(jnp.broadcast_to(angles, (kept.shape[0], *angles.shape[1:])), kept)
        return jnp.pad(angles, ((0, 0), (self.num_class_tokens, 0), (0, 0)))


def _mean(patches: Float[Array, "B N D"], real: Bool[Array, "B N"] | None) -> Float[Array, "B D"]:
    """Computes the mean of the real patches; None for all."""
    return patches.mean(1) if real is None else mean_of(patches, real).astype(patches.dtype)


def fold_in(keys: Array, number: int) -> Array:
    """Derives keys [B] for the block `number`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def image_encoder(build: Build) -> VisionTransformer:
    """Builds the image encoder of a config.

    Raises ValueError for an unknown interpolation, and for class tokens that its pooling does not have.
    """
    model, size, style = build.model, build.size, Style(**build.model.image_style)
    if model.interpolation not in RECIPES:
        raise ValueError(f"interpolation {model.interpolation!r} is unknown; known: {', '.join(RECIPES)}")
    if model.class_tokens > 1 and not style.num_cls:
        raise ValueError(
            f"model.class_tokens {model.class_tokens}: an image encoder with image_style.pooling 'attention' has none; "
            "choose a method with one caption per image, or start from another encoder"
        )
    return VisionTransformer(
        size.patch_size,
        size.width,
        size.depth,
        size.num_heads,
        model.image_size,
        build.dtype,
        model.remat,
        style,
        model.drop_path,
        build.kernel(size.width, size.num_heads),
        model.scan,
        model.interpolation,
        model.class_tokens,
        mlp_width=size.mlp_width,
    )


NETWORKS = {
    "image": Network(
        image_encoder,
        # the reference stores both with leading axes of 1, so it decays them
        (
            *(ParameterRule(name, decayed=True, vector=True) for name in ("cls_token", "extra_tokens")),
            ParameterRule("positions", decayed=True, spec=P(None, FSDP)),
            ParameterRule("pool/probe"),  # SigLIP's code decays kernels only
        ),
        frozen={"patch_embed/.*": "freeze_patch_embed"},
        adopted=("size", "custom", "image_size", "image_style"),
    )
}
