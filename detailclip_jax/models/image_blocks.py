"""The image head of dino.txt: new blocks over all tokens of an image encoder (arXiv 2412.16334).

    y = LayerNorm(block_2(block_1([CLS, further class tokens, patches])))      embedding = [y_CLS, mean of y_patches]

The blocks have no positions, SwiGLU instead of an MLP, no bias of queries, keys and values, and a factor for each
channel of a branch that starts at 1e-5: at first they change nothing. No projection follows, so that a patch y_i has
half the width of the embedding. Sizes and constants are those of the published code (`VisionHead`).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import Kernel
from detailclip_jax.models.block import Block, branch_scales, run_blocks
from detailclip_jax.models.layers import LayerNorm, swiglu
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.models.text_encoder import mean_of
from detailclip_jax.models.vit import VIT_INIT, fold_in
from detailclip_jax.types import Array, Bool, Float, Leaf, Tokens

NUM_BLOCKS, DROP_PATH, LAYER_SCALE, EPS = 2, 0.3, 1e-5, 1e-5
FIRST_KEY = 1000  # of their drop path: the encoder's takes the numbers of its blocks


def hidden_width(width: int) -> int:
    """Returns the hidden units of SwiGLU: two thirds of 4 D, rounded up to a multiple of 64."""
    return -(-(8 * width // 3) // 64) * 64


class ImageBlocks(nn.Module):
    """The new blocks and their final norm. Drop path needs `keys`, one per image; its rate is that of all blocks."""

    width: int
    num_heads: int
    dtype: Any = jnp.float32
    kernel: Kernel = "xla"
    remat: str = "none"

    def setup(self) -> None:
        """Creates the parameters."""
        options = self.width, self.num_heads, VIT_INIT, EPS, swiglu, self.dtype, self.kernel
        kinds = {"mlp_width": hidden_width(self.width), "layer_scale": LAYER_SCALE, "qkv_bias": False}
        self.blocks = [Block(*options, **kinds) for _ in range(NUM_BLOCKS)]
        self.norm = LayerNorm(EPS, self.dtype)

    def __call__(
        self, x: Float[Array, "B M D"], keys: Array | None = None, mask: Bool[Array, "B 1 1 M"] | None = None
    ) -> Float[Array, "B M D"]:
        """Computes all tokens from those of the encoder: class tokens, then patches; `mask` is True at real ones."""
        scales = None
        if keys is not None:
            scales = jnp.stack([branch_scales(fold_in(keys, FIRST_KEY + n), DROP_PATH) for n in range(NUM_BLOCKS)])
        x, _ = run_blocks(self.blocks, x, scales, remat=self.remat, mask=mask)
        return self.norm(x)

    def aligned(self, tokens: Tokens, keys: Array | None = None, real: Bool[Array, "B N"] | None = None) -> Tokens:
        """Computes CLS, patches and their mean of encoded images.

        `real` is False at the padding of native images.
        """
        extra = [] if tokens.extra is None else [tokens.extra]
        x = jnp.concatenate([tokens.cls[:, None], *extra, tokens.patches], 1)
        first, mask = x.shape[1] - tokens.patches.shape[1], None
        if real is not None:
            mask = jnp.pad(real, ((0, 0), (first, 0)), constant_values=True)[:, None, None]
        x = self(x, keys, mask)
        patches = x[:, first:]
        mean = patches.astype(jnp.float32).mean(1) if real is None else mean_of(patches, real)
        return Tokens(x[:, 0], patches, mean=mean)

    def embedding(self, tokens: Tokens, real: Bool[Array, "B N"] | None = None) -> Float[Array, "B E"]:
        """Computes the embedding of encoded images."""
        return joined(self.aligned(tokens, real=real))


def joined(tokens: Leaf) -> Float[Array, "*batch E"]:
    """Returns the embedding [CLS, mean of the patches], in float32, of what `ImageBlocks.aligned` makes."""
    return jnp.concatenate([tokens.cls.astype(jnp.float32), tokens.mean], -1)


def image_blocks(build: Build) -> ImageBlocks:
    """Builds the image head; ValueError for an encoder that has no class token, or whose feature is another."""
    size, pooling = build.size, build.model.image_style.pooling
    if pooling != "cls":
        raise ValueError(
            f"the blocks of dinotxt take a class token, but image_style.pooling is {pooling!r}; start from an encoder "
            "with pooling 'cls', such as CLIP's, DINO's or TIPS's"
        )
    kernel = build.kernel(size.width, size.num_heads)
    return ImageBlocks(size.width, size.num_heads, build.dtype, kernel, build.model.remat)


BLOCKS = "blocks"  # `Network.kind` of a projection with blocks before it
IMAGE_BLOCKS = Network(image_blocks, kind=BLOCKS)


def has_blocks(networks: Mapping[str, Network]) -> bool:
    """Whether a method with these networks has the new blocks in place of a projection of images."""
    return networks.get("image_projection") == IMAGE_BLOCKS
