"""The network of segmentation: encoder, head on its taps, auxiliary head while training; and its loss, by pixels."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.bilinear import resize
from detailclip_jax.dense.segmentation.index_masks import IGNORE
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.taps import taps
from detailclip_jax.models.vit import VisionTransformer, fold_in
from detailclip_jax.types import Array, Float, Int, Scalar, UInt8

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
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of pixels in 0..1
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(
        self, images: Float[Array, "B height width 3"], train: bool = False, keys: Array | None = None
    ) -> HeadLogits:
        """Computes logits of normalised images; `keys` [B] enable drop path and dropout.

        `train` lets BatchNorm use the batch's statistics; the collection "batch_stats" must then be mutable.
        """
        features = taps(self.image, images, None if self.frozen else keys)
        if self.frozen:
            of_encoder = features
            features = lambda *blocks, **options: jax.lax.stop_gradient(of_encoder(*blocks, **options))  # noqa: E731
        head = self.head(features, train, None if keys is None else fold_in(keys, HEAD))
        if self.auxiliary is None or not (train or self.is_initializing()):
            return HeadLogits(head, None)
        return HeadLogits(head, self.auxiliary(features, train, None if keys is None else fold_in(keys, AUXILIARY)))

    def segment(self, windows: UInt8[Array, "B height width 3"]) -> Float[Array, "B h w K"]:
        """Computes the logits of windows of any shape, with the running statistics.

        Axes shorter than a patch are padded to one patch, with zeros (the mean colour) equally at both ends.
        """
        pixels = normalise_pixels(windows, self.mean, self.std)
        missing = [max(self.image.patch_size - side, 0) for side in pixels.shape[1:3]]
        pixels = jnp.pad(pixels, [(0, 0), *((number // 2, number - number // 2) for number in missing), (0, 0)])
        return self(pixels).head


def normalise_content(
    images: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B H W 3"]:
    """Normalises images that fill `size` (height, width); padding becomes 0, the mean of the pixels."""
    rows, columns = (jnp.arange(side) for side in images.shape[1:3])
    inside = (rows[:, None] < size[:, :1, None]) & (columns < size[:, 1:, None])
    return jnp.where(inside[..., None], normalise_pixels(images, mean, std), 0)


def cross_entropy(logits: Float[Array, "B h w K"], labels: Int[Array, "B height width"]) -> Scalar:
    """Mean over all pixels of -log softmax(logits)[label]; ignored pixels count as 0 in the sum.

        L = 1 / (B H W) sum over pixels with a label of -log p(label)

    The logits are resized bilinearly to the labels' size and computed in float32.  Dividing by all pixels, not by the
    labelled ones, follows mmseg; a batch without labelled pixels has loss 0 and no gradient.
    """
    scores = jax.nn.log_softmax(resize(logits.astype(jnp.float32), labels.shape[1:]))
    counted = labels != IGNORE
    picked = jnp.take_along_axis(scores, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    return -jnp.where(counted, picked, 0).mean()


def pixel_accuracy(logits: Float[Array, "B h w K"], labels: Int[Array, "B height width"]) -> tuple[Scalar, Scalar]:
    """Counts the labelled pixels with the right class, and all labelled pixels, as float32.

    The labels are read at the centres of the logits' cells, which is cheap enough for every training step.
    """
    rows, columns = (
        jnp.asarray([(2 * i + 1) * size // (2 * n) for i in range(n)])
        for n, size in zip(logits.shape[1:3], labels.shape[1:])
    )
    small = labels[:, rows][:, :, columns]
    counted = small != IGNORE
    right = (logits.argmax(-1) == small) & counted
    return right.sum().astype(jnp.float32), counted.sum().astype(jnp.float32)
