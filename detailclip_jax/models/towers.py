"""The networks of a method in one Flax module, used for the student and for the teacher."""

import flax.linen as nn

from detailclip_jax.models.batch_norm import BatchNormMlp
from detailclip_jax.models.block import Gather
from detailclip_jax.models.decoder import Decoder
from detailclip_jax.models.heads import ClassHead, LogitScale, MaskToken, PixelHead, Projection, PrototypeHead
from detailclip_jax.models.text import TextTransformer
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Array, Float, Int

SCANNED = ("image", "text", "decoder")  # networks whose blocks may be stacked


class Networks(nn.Module):
    """All networks that a method may use; those that it does not use are None.

    There is no teacher class: the teacher is this module bound to the EMA parameters.
    """

    image: VisionTransformer | None = None
    image_projection: Projection | None = None
    text: TextTransformer | None = None
    text_projection: Projection | None = None
    logit_scale: LogitScale | None = None
    decoder: Decoder | None = None
    pixel_head: PixelHead | None = None
    prototype_head: PrototypeHead | None = None
    mask_token: MaskToken | None = None
    ssl_head: BatchNormMlp | None = None
    byol_projector: BatchNormMlp | None = None
    byol_predictor: BatchNormMlp | None = None
    class_head: ClassHead | None = None

    def unrolled(self) -> "Networks":
        """Returns the same networks without stacked blocks: `blocks_0`, `blocks_1`, ..."""
        return self.clone(
            **{name: part.clone(scan=False) for name in SCANNED if (part := getattr(self, name)) is not None}
        )

    def gathering(self, gather: Gather | None) -> "Networks":
        """Returns the same networks for sharded parameters of stacked blocks; `gather` all-gathers them per layer."""
        return self.clone(
            **{name: part.clone(gather=gather) for name in SCANNED if (part := getattr(self, name)) is not None}
        )

    @property
    def gathers(self) -> bool:
        """Whether stacked blocks expect sharded parameters."""
        towers = [part for name in SCANNED if (part := getattr(self, name)) is not None]
        return any(tower.scan and tower.gather is not None for tower in towers)

    def embed_image(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B E"]:
        """Encodes images in the joint space; embeddings are not L2-normalised."""
        return self.image_projection(self.image(images).cls)

    def embed_text(self, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes captions in the joint space; embeddings are not L2-normalised."""
        return self.text_projection(self.text(tokens))
