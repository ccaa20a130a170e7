"""Prototype logits as the two factors of their product."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from detailclip_jax.kernels.products import product
from detailclip_jax.types import Array, Float


class Logits(struct.PyTreeNode):
    """Prototype logits [*batch, C], kept as the two factors of which they are the product.

        logits = Logits(bottleneck, prototypes)
        logits[0]                                   # those of bottleneck[0], in float32
        logits.shape == (*bottleneck.shape[:-1], len(prototypes))

    At 8192 prototypes they are the largest arrays of a step: losses make them chunk by chunk, and no array holds all.
    The product is taken in `dtype`, with sums in float32.
    """

    bottleneck: Float[Array, "*batch F"]
    prototypes: Float[Array, "C F"]
    dtype: Any = struct.field(pytree_node=False, default=jnp.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits."""
        return (*self.bottleneck.shape[:-1], self.prototypes.shape[0])

    def __getitem__(self, index: Any) -> Float[Array, "*some C"]:
        """The logits of the tokens that `index` takes out of `bottleneck`; `logits[...]` are all."""
        return product(self.bottleneck[index], self.prototypes.T, self.dtype, jnp.float32)

    def mean(self) -> Float[Array, "C"]:
        """The mean over all tokens, by linearity: the logits of the mean bottleneck, in float32."""
        mean = self.bottleneck.mean(tuple(range(self.bottleneck.ndim - 1)))
        return jnp.matmul(mean.astype(jnp.float32), self.prototypes.T, precision="highest")
