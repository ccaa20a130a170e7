"""Contrast between phrases as a term of other methods: `losses.weights.text_contrast`, `data.regions` (FG-CLIP 2).

The text encoder encodes the true phrases of regions, as for the term `region_text`, and moves those apart that are near
each other. It reads no image. Equation, and the difference from the published code: `losses.text_contrast`.
"""

from ml_collections import ConfigDict

from detailclip_jax.losses.text_contrast import text_contrast_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Loss, Method, WholeBatch
from detailclip_jax.methods.region_text import PHRASES, check_regions, phrase_head
from detailclip_jax.types import Scalar


def text_contrast(method: Method, config: ConfigDict) -> Method:
    """Adds the term; ValueError for a method without captions, and for a config without regions."""
    components.captioned_pass(method, "text_contrast")
    check_regions(config, "text_contrast")
    return method.plus((phrase_head(method),), Loss("text_contrast", PHRASES, text_contrast_term, over="batch"))


def text_contrast_term(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the loss of the true phrases of all regions of the batch."""
    valid = record.batch["region_text_valid"]
    phrases = record.heads[PHRASES[0]].reshape(valid.shape[1], valid.shape[2], len(valid), -1)[:, 0]
    counts = valid[..., 0].T.reshape(-1)
    phrases = phrases.reshape(len(counts), -1)
    return text_contrast_loss(phrases, counts, whole_batch.axis, whole_batch.block), {}
