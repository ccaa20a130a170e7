"""The network of dense classification: an image encoder, a head on its taps, and an auxiliary head while training."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from detailclip_jax.dense.taps import taps
from detailclip_jax.models.vit import VisionTransformer, fold_in
from detailclip_jax.types import Array, Float

HEAD, AUXILIARY = 1_000_000, 1_000_001  # folded into an image's key; drop path folds in the numbers of the blocks


class HeadLogits(NamedTuple):
    """Logits of both heads; `auxiliary` is None without an auxiliary head, and in evaluation."""

    head: Float[Array, "B h w K"]
    auxiliary: Float[Array, "B h2 w2 K"] | None


class SegmentationModel(nn.Module):
    """Encoder and heads; their parameters are `image`, `head` and `auxiliary`.

    A `frozen` encoder runs as in evaluation (no drop path) and receives no gradient.
    """

    image: VisionTransformer
    head: Any
    auxiliary: Any = None
    frozen: bool = False

    def __call__(
        self, images: Float[Array, "B height width 3"], train: bool = False, keys: Array | None = None
    ) -> HeadLogits:
        """Computes logits of normalised images; `keys` [B] enable drop path and dropout.

        `train` lets BatchNorm use the batch's statistics; the collection "batch_stats" must then be mutable.
        """
        features = taps(self.image, images, None if self.frozen else keys)
        if self.frozen:
            features = _stopped(features)
        head = self.head(features, train, None if keys is None else fold_in(keys, HEAD))
        if self.auxiliary is None or not (train or self.is_initializing()):
            return HeadLogits(head, None)
        return HeadLogits(head, self.auxiliary(features, train, None if keys is None else fold_in(keys, AUXILIARY)))


def _stopped(features: Any) -> Any:
    return lambda *args, **options: jax.lax.stop_gradient(features(*args, **options))
