"""False captions as a term of other methods: `losses.weights.negatives`, `data.negatives`, `losses.negatives_scope`.

The text encoder also encodes the false captions of an image, and the image is to score its true captions above them.
Equations: `losses.negatives`, with a softmax for methods whose captions compete for an image, and a sigmoid for those
with a bias (`siglip`). The false captions of the scope "image" are compared with their own image, those of "batch" with
all. They are no captions: no other term reads them, and no text is to find its image among others by them.

With the scope "batch" and the weight of `clip` the sum of both terms is NegCLIP's loss. Differences from its published
code and CE-CLIP's: the batch is the global one, not that of a device, and a mean runs over the images that have false
captions.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.losses.negatives import false_texts_loss, joined_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, WholeBatch, networks_of, uses
from detailclip_jax.models.networks import Networks
from detailclip_jax.types import Array, Scalar

FALSE = ("false_embedding", "false_counts")


def negatives(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the images that captions are compared with.

    Raises ValueError for a method without captions, and for a config without false captions.
    """
    components.captioned_pass(method, "negatives")
    check_false(config, "negatives")
    return method.plus((false_head(method),), negatives_term(method, config))


def check_false(config: ConfigDict, term: str) -> None:
    """Raises ValueError that names the `term` for a config without false captions."""
    if not config.data.negatives:
        raise ValueError(
            f"losses.weights.{term} {config.losses.weights[term]:g} reads false captions, but "
            "data.negatives is 0; set it to the number of false captions of an example, or the weight to 0"
        )


def false_head(method: Method) -> Head:
    """Head of the embeddings [K, B, E] of false captions, encoded as true ones are, and which of them count."""

    @uses(**networks_of([method.encode_text]))
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        texts = method.encode_text(student, {"text": record.batch["false"]})
        assert texts is not None  # the method has captions
        return dict(zip(FALSE, (texts.embedding, record.batch["false_valid"].T.astype(jnp.float32)), strict=True))

    return Head(FALSE, run, per_image=True)


def negatives_term(method: Method, config: ConfigDict) -> Loss:
    """Term of the false captions; it logs how often a true caption has a higher logit than all false ones."""
    scope, captions = config.losses.negatives_scope, components.compared_captions(config)
    scalars = [name for name in ("logit_scale", "logit_bias") if any(name in head.makes for head in method.heads)]

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads = record.heads
        false, counts = (heads[name] for name in FALSE)
        embeddings = heads["image_embedding"], record.text.embedding[:captions], false, counts > 0
        scale, bias = jnp.exp(heads["logit_scale"]), heads.get("logit_bias")
        loss, accuracy = false_texts_loss(*embeddings, scale, bias, whole_batch.axis)
        if scope == "batch":
            loss = joined_loss(*embeddings, scale, bias, whole_batch.axis, whole_batch.block)
        return loss, {"negatives_accuracy": accuracy}

    return Loss("negatives", ("image_embedding", *scalars, *FALSE), run, over="batch")
