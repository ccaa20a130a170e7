"""SigLIP: CLIP with a sigmoid for each pair of an image and a text instead of a softmax (arXiv 2303.15343).

Logarithm of the scale and bias start at ln 10 and -10 (section 3.2 of the paper); both are trained, neither is clamped
nor decayed.
"""

import math

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.losses.sigmoid import sigmoid_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, Pass, WholeBatch, full
from detailclip_jax.models.heads import scalar
from detailclip_jax.types import Scalar


def siglip(config: ConfigDict) -> Method:
    """Builds the method `siglip`."""
    return Method(
        name="siglip",
        passes={"full": Pass("large", full)},
        encode_text=components.encode_text,
        heads=(sigmoid_head("full"),),
        losses=(sigmoid_term(),),
        native=True,
    )


def sigmoid_head(*names: str) -> Head:
    """Joint head of the student's passes `names`, with the two numbers of the sigmoid loss."""
    return components.joint_head(*names, logit_scale=scalar(math.log(10)), logit_bias=scalar(-10.0))


def sigmoid_term() -> Loss:
    """Image-text loss term, with the weight of CLIP's."""

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads, scale = record.heads, jnp.exp(record.heads["logit_scale"])
        images, texts, bias = heads["image_embedding"], record.text.embedding, heads["logit_bias"]
        loss, accuracy = sigmoid_loss(images, texts, scale, bias, whole_batch.axis, whole_batch.block)
        return loss, {"sigmoid_accuracy": accuracy, "logit_scale": scale, "logit_bias": bias}

    return Loss("sigmoid", ("image_embedding", "logit_scale", "logit_bias"), run, over="batch", weighted_by="clip")
