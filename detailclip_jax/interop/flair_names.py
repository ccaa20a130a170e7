"""Parameter names of FLAIR's published checkpoints: open_clip's encoders, its own projections and pool."""

from detailclip_jax.interop import openai
from detailclip_jax.interop.measure import Spec
from detailclip_jax.interop.tables import SAME, Entry, Table, cross_pool

IMAGE_PROJECTION, TEXT_PROJECTION, POOL = "image_post.proj", "text_post.proj", "visual_proj"


def flair_table(spec: Spec) -> Table:
    """A FLAIR checkpoint.  One projection is for patches and CLS token; the pool's zero key has no parameter."""
    return Table(
        [
            *openai.image(spec.size.depth, IMAGE_PROJECTION),
            *openai.text(spec.size.text_depth, TEXT_PROJECTION),
            Entry("logit_bias/value", "logit_bias", SAME),
            *cross_pool("caption_pool", POOL, norms="qkv"),
        ]
    )
