"""The heads of a RoI: classes and boxes (mmdet's Shared4Conv1FC), and masks (arXiv 1703.06870, figure 4, right)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.detection.fpn import Conv1, Conv3
from detailclip_jax.dense.segmentation.convolution import ConvNormRelu
from detailclip_jax.dense.segmentation.upernet import Doubling
from detailclip_jax.models.initial_values import KAIMING, XAVIER, normal
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
        logits = Linear(self.num_classes + 1, normal(0.01), self.dtype, out=jnp.float32, name="classifier")(x)
        offsets = Linear(4 * self.num_classes, normal(0.001), self.dtype, out=jnp.float32, name="regressor")(x)
        return logits, offsets.reshape(len(x), self.num_classes, 4)


class MaskHead(nn.Module):
    """Convolutions 3 x 3 with ReLU, a transposed convolution that doubles the resolution, ReLU, a 1 x 1 convolution."""

    num_classes: int
    width: int = 256
    num_convs: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "R s s C"]) -> Float[Array, "R m m K"]:
        """Returns float32 logits with twice the resolution of `pooled`."""
        x = pooled
        for number in range(self.num_convs):
            x = nn.relu(Conv3(self.width, KAIMING, self.dtype, name=f"conv_{number}")(x))
        x = nn.relu(Doubling(self.dtype, name="up")(x))
        classifier = Conv1(self.num_classes, KAIMING, self.dtype, jnp.float32, name="classifier")
        return classifier(x)
