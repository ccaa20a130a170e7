"""The image encoder g: a ViT that can encode some of its patches and say where its CLS token looked."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import BlockInit, LayerNorm, activation_named, block_class, uniform_fan_in
from detailclip_jax.patches import patchify, take
from detailclip_jax.types import Array, Float, Int, Tokens

NORMAL = nn.initializers.normal(0.02)
VIT_INIT = BlockInit(qkv=NORMAL, proj=NORMAL, fc1=NORMAL, fc2=NORMAL)
POOLINGS = ("cls", "mean", "norm_of_mean")


class Style(NamedTuple):
    """What tells the ViTs of the field apart beside their size; the defaults are the paper's.

    `pre_norm` is a norm between the positions and the first block (OpenAI's CLIP).  `pooling` says what stands for
    the image: the normalised CLS token, the mean of the normalised patches, or the norm of the mean of the patches
    (timm's `fc_norm`; the patches themselves are not normalised then).
    """

    norm_eps: float = 1e-6
    activation: str = "gelu"
    pre_norm: bool = False
    patch_bias: bool = True
    pooling: str = "cls"


class VisionTransformer(nn.Module):
    """Pre-norm ViT with CLS token, learnable positions and a final norm; no dropout.

        tokens = vit(images)                    # all N patches
        tokens = vit(images, hidden.kept)       # K of them: the rest is never embedded
        vit(images, attention=True).attention   # [B, L, N], the CLS rows of eq. 9 before the mean over layers

    Positions are added before tokens are dropped; the CLS token is cls_token + positions[0].
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    image_size: int
    dtype: Any = jnp.float32
    remat: str = "none"
    style: Style = Style()

    def setup(self) -> None:
        """Creates the parameters."""
        if self.style.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.style.pooling!r} is unknown; known: {', '.join(POOLINGS)}")
        num_patches = (self.image_size // self.patch_size) ** 2
        fan_in = 3 * self.patch_size**2
        init = uniform_fan_in(fan_in)
        bias = self.style.patch_bias
        self.patch_embed = nn.Dense(self.width, bias, dtype=self.dtype, kernel_init=init, bias_init=init)
        self.cls_token = self.param("cls_token", NORMAL, (self.width,))
        self.positions = self.param("positions", NORMAL, (num_patches + 1, self.width))
        eps, activation = self.style.norm_eps, activation_named(self.style.activation)
        if self.style.pre_norm:
            self.pre_norm = LayerNorm(eps, self.dtype)
        block = block_class(self.remat)
        self.blocks = [block(self.num_heads, VIT_INIT, eps, activation, self.dtype) for _ in range(self.depth)]
        self.norm = LayerNorm(eps, self.dtype)

    def __call__(
        self, images: Float[Array, "B S S 3"], kept: Int[Array, "B K"] | None = None, attention: bool = False
    ) -> Tokens:
        """Encodes normalised images; `kept` are the positions of the patches to encode, None for all."""
        x, rows = self.embed(images, kept), []
        for block in self.blocks:
            x, row = block(x, None, None, attention)
            rows.append(row)
        maps = jnp.stack(rows, 1)[..., 1:] if attention else None
        if self.style.pooling == "norm_of_mean":
            return Tokens(cls=self.norm(x[:, 1:].mean(1)), patches=x[:, 1:], attention=maps)
        x = self.norm(x)
        cls = x[:, 0] if self.style.pooling == "cls" else x[:, 1:].mean(1)
        return Tokens(cls=cls, patches=x[:, 1:], attention=maps)

    def embed(self, images: Float[Array, "B S S 3"], kept: Int[Array, "B K"] | None) -> Float[Array, "B M D"]:
        """CLS and patch tokens with their positions; patches are picked before they are projected."""
        pixels = patchify(images, self.patch_size)
        positions = self.positions[None, 1:]
        if kept is not None:
            pixels = take(pixels, kept)
            positions = self.positions[1 + kept]
        patches = self.patch_embed(pixels) + positions.astype(self.dtype)
        cls = (self.cls_token + self.positions[0]).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(images), 1, self.width)), patches], 1)
        return self.pre_norm(x) if self.style.pre_norm else x
