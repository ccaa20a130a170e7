"""Captions against their own false ones as a term of other methods: `losses.weights.intra_modal`, `data.negatives`.

The text encoder moves a caption away from the false ones of the same image (CE-CLIP). It helps where neither encoder
knows a fact yet: the term `negatives` gives the text encoder no gradient for a fact that images do not show, and the
image encoder none for one that texts do not distinguish. Equation: `losses.intra_modal`.

Differences from the published code: it compares a caption with the false captions of all images of a device, and in its
last version the first of these is the right answer. Here a caption has its own false ones, and the image is the right
answer.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.losses.intra_modal import intra_modal_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Loss, Method, WholeBatch
from detailclip_jax.methods.negatives import FALSE, check_false, false_head
from detailclip_jax.types import Scalar


def intra_modal(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the images that captions are compared with.

    Raises ValueError for a method without captions, and for a config without false captions.
    """
    components.captioned_pass(method, "intra_modal")
    check_false(config, "intra_modal")
    captions = components.compared_captions(config)

    def term(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads = record.heads
        embeddings = heads["image_embedding"], record.text.embedding[:captions], heads[FALSE[0]], heads[FALSE[1]] > 0
        loss, cosine = intra_modal_loss(*embeddings, jnp.exp(heads["logit_scale"]), whole_batch.axis)
        return loss, {"false_cosine": cosine}

    reads = ("image_embedding", "logit_scale", *FALSE)
    return method.plus((false_head(method),), Loss("intra_modal", reads, term, over="batch"))
