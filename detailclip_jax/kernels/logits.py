"""Prototype logits, stored as the two factors of their product."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from detailclip_jax.kernels.products import product
from detailclip_jax.types import Array, Float


class Logits(struct.PyTreeNode):
    """Prototype logits [*batch, C], stored as the factors of the product bottleneck . prototypes^T.

        logits = Logits(bottleneck, prototypes)
        logits[0]                                   # logits of bottleneck[0], in float32
        logits.shape == (*bottleneck.shape[:-1], len(prototypes))

    With 8192 prototypes the logits would be the largest arrays of a step, so losses compute them chunk by chunk. The
    product is computed in `dtype`, with sums in float32.
    """

    bottleneck: Float[Array, "*batch F"]
    prototypes: Float[Array, "C F"]
    dtype: Any = struct.field(pytree_node=False, default=jnp.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits."""
        return (*self.bottleneck.shape[:-1], self.prototypes.shape[0])

    def __getitem__(self, index: Any) -> Float[Array, "*some C"]:
        """Computes the logits of the tokens `bottleneck[index]`, in float32; `logits[...]` computes all."""
        return product(self.bottleneck[index], self.prototypes.T, self.dtype, jnp.float32)

    def mean(self) -> Float[Array, "C"]:
        """Computes the mean over all tokens in float32: by linearity, the logits of the mean bottleneck."""
        mean = self.bottleneck.mean(tuple(range(self.bottleneck.ndim - 1)))
        return jnp.matmul(mean.astype(jnp.float32), self.prototypes.T, precision="highest")
