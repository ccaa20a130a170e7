"""The mask head: one mask per class of every RoI (arXiv 1703.06870, figure 4, right)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.detection.fpn import Conv1, Conv3
from detailclip_jax.dense.segmentation.convolution import KAIMING
from detailclip_jax.dense.segmentation.upernet import Doubling
from detailclip_jax.types import Array, Float


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
