"""Batch normalisation with statistics of the global batch and PyTorch's running statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.models.initial_values import ONES, ZEROS, uniform_fan_in
from detailclip_jax.models.layers import Linear
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.types import Array, Axis, Bool, Float

EPS = 1e-5
KEEP = 0.9  # decay of the running statistics per batch


class BatchNorm(nn.Module):
    """Computes (x - mean) / sqrt(variance + 1e-5) scale + bias per feature, with statistics of the global batch.

        running = .9 running + .1 batch

    As in PyTorch, normalisation uses the biased variance of the batch, and the running variance is updated with the
    unbiased one (times n / (n - 1)). `axis` is the mesh axis over which the batch is sharded, None if `x` is the
    whole batch.

    With `train` the batch's statistics are used and the running statistics are updated; their collection
    "batch_stats" must be mutable. Without `train` the running statistics are used and stay unchanged. The statistics
    of the batch count only `valid` entries; a batch without any leaves the running statistics unchanged.
    """

    axis: Axis | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool, valid: Bool[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Normalises in float32 and returns `dtype`; `valid` None counts all entries."""
        width = x.shape[-1]
        mean = self.variable("batch_stats", "mean", ZEROS, None, (width,))
        variance = self.variable("batch_stats", "variance", ONES, None, (width,))
        scale = self.param("scale", ONES, (width,))
        bias = self.param("bias", ZEROS, (width,))
        x = x.astype(jnp.float32)
        now = mean.value, variance.value
        if train and not self.is_initializing():
            *now, count = self._statistics(x, valid)
            moved_mean = KEEP * mean.value + (1 - KEEP) * now[0]
            moved_variance = KEEP * variance.value + (1 - KEEP) * now[1] * count / jnp.maximum(count - 1, 1)
            for running, moved in ((mean, moved_mean), (variance, moved_variance)):
                running.value = jnp.where(count > 0, moved, running.value)
        return ((x - now[0]) * jax.lax.rsqrt(now[1] + EPS) * scale + bias).astype(self.dtype)

    def _statistics(
        self, x: Float[Array, "B D"], valid: Bool[Array, "B"] | None
    ) -> tuple[Float[Array, "D"], Float[Array, "D"], Any]:
        """Returns mean and biased variance of the global batch, and the number of its entries that count."""
        total = len(x) * (jax.lax.axis_size(self.axis) if self.axis else 1)
        share = 1 if valid is None else self._over_mesh(valid.mean(dtype=jnp.float32))
        counted = True if valid is None else valid[:, None]

        def mean_of(values: Array) -> Array:
            return self._over_mesh(jnp.where(counted, values, 0).mean(0)) / jnp.where(share > 0, share, 1)

        mean = mean_of(x)
        return mean, mean_of(jnp.square(x - mean)), share * total

    def _over_mesh(self, mean: Float[Array, "*D"]) -> Float[Array, "*D"]:
        return jax.lax.pmean(mean, self.axis) if self.axis else mean


class BatchNormMlp(nn.Module):
    """MLP with BatchNorm and ReLU between its linear layers: SLIP's SSL head, BYOL's projector and predictor.

    `widths` are the output widths of the layers. Kernels and biases are initialised as in PyTorch,
    U(+-1/sqrt(fan_in)).
    """

    widths: tuple[int, ...]
    bias: bool
    axis: Axis | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], train: bool) -> Float[Array, "B F"]:
        """Computes the last layer's output in float32; `train` is passed to BatchNorm."""
        for index, width in enumerate(self.widths):
            if index:
                x = nn.relu(BatchNorm(self.axis, self.dtype, name=f"norm_{index - 1}")(x, train))
            init = uniform_fan_in(x.shape[-1])
            x = Linear(width, init, self.dtype, init, self.bias, name=f"linear_{index}")(x)
        return x.astype(jnp.float32)


def ssl_head(build: Build) -> BatchNormMlp:
    """Builds SLIP's head for SimCLR: three layers."""
    size = build.size
    return BatchNormMlp((size.ssl_width, size.ssl_width, size.ssl_output), True, build.axis, build.dtype)


def byol_mlp(build: Build) -> BatchNormMlp:
    """Builds A-CLIP's projector or predictor for BYOL: two layers."""
    return BatchNormMlp((build.size.ssl_width, build.size.ssl_output), False, build.axis, build.dtype)


NETWORKS = {
    "ssl_head": Network(ssl_head, batch_norm=True),
    "byol_projector": Network(byol_mlp, batch_norm=True),
    "byol_predictor": Network(byol_mlp, batch_norm=True),
}
