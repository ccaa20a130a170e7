"""The box head: classes and class-specific boxes of RoIs (mmdet's Shared4Conv1FC)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.detection.fpn import XAVIER
from detailclip_jax.dense.segmentation.convolution import ConvNormRelu
from detailclip_jax.models.layers import Linear
from detailclip_jax.types import Array, Axis, Bool, Float


class BoxHead(nn.Module):
    """Convolutions 3 x 3 with BatchNorm and ReLU, one layer with ReLU, and two linear outputs.

    The last of the K + 1 classes is the background. BatchNorm takes the statistics of all valid RoIs of the batch, over
    the devices of `axis`.
    """

    num_classes: int
    width: int = 256
    fc_width: int = 1024
    num_convs: int = 4
    axis: Axis | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "R s s C"], valid: Bool[Array, "R"], train: bool
    ) -> tuple[Float[Array, "R K1"], Float[Array, "R K 4"]]:
        """Returns float32 logits of K classes and the background, and offsets of boxes per class."""
        x = pooled
        for number in range(self.num_convs):
            inside = jnp.broadcast_to(valid[:, None, None], x.shape[:3])
            x = ConvNormRelu(self.width, 3, self.axis, self.dtype, name=f"conv_{number}")(x, train, inside)
        x = x.reshape(len(x), -1)
        x = nn.relu(Linear(self.fc_width, XAVIER, self.dtype, name="fc")(x))
        normal = nn.initializers.normal
        logits = Linear(self.num_classes + 1, normal(0.01), self.dtype, out=jnp.float32, name="classifier")(x)
        offsets = Linear(4 * self.num_classes, normal(0.001), self.dtype, out=jnp.float32, name="regressor")(x)
        return logits, offsets.reshape(len(x), self.num_classes, 4)
