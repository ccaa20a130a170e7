"""SuperCLIP's loss: the image predicts which tokens its captions have (arXiv 2512.14480).

    w_c  = ln((N + 1) / (f_c + 1)),    t_ic = w_c y_ic / sum_c w_c y_ic
    L(i) = - sum_c t_ic log softmax(x_i)_c

y_ic is 1 if a caption of image i has the token c, however often, else 0. f_c counts the images so far whose captions
have c, and N all images so far, this batch included: an inverse document frequency. x_i are the image's logits.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.products import product
from detailclip_jax.renamed import former_names
from detailclip_jax.types import Array, Float, Int, PyTree, Scalar, UInt32

__getattr__ = former_names(__name__)


def token_set_loss(
    features: Float[Array, "V B D"],
    kernel: Float[Array, "D C"],
    bias: Float[Array, "C"],
    tokens: Int[Array, "B M"],
    weights: Float[Array, "C"],
    most_logits: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the mean of the loss over views and images, and how often the highest logit is a token of the image.

    The logits are x = features kernel + bias. `tokens` are the classes from 0 to C - 1 of the words of all captions of
    an image; other numbers are ignored. An image without a token of weight above 0 has loss 0. At most `most_logits`
    logits (0: all), but at least those of one image, are computed at a time.
    """
    num_views, size, _ = features.shape
    flat, every = features.reshape(num_views * size, -1), jnp.tile(tokens, (num_views, 1))
    share = jnp.full(len(flat), 1 / len(flat))
    most = max(1, most_logits // kernel.shape[1]) if most_logits else 0
    items, every, share = chunks.split((flat, every, share), most)
    weights = jax.lax.stop_gradient(weights)
    sums: Any = chunks.total(_term, (kernel, bias), weights, items, (every, share))  # no checker knows a custom_vjp
    return sums[0], sums[1]["accuracy"]


def _term(layer: PyTree, weights: Array, features: Array, items: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    (kernel, bias), (tokens, share) = layer, items
    logits = product(features, kernel, features.dtype, jnp.float32) + bias
    has = token_sets(tokens, kernel.shape[1])
    target = has * weights
    target = target / jnp.maximum(target.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    losses = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
    right = jnp.take_along_axis(has, logits.argmax(-1)[:, None], 1)[:, 0]
    return jnp.dot(share, losses, precision="highest"), {"accuracy": jnp.dot(share, right, precision="highest")}


def token_sets(tokens: Int[Array, "B M"], num_classes: int) -> Float[Array, "B C"]:
    """Computes y: 1 where a row has the class; other numbers than 0 to C - 1 are ignored."""
    known = jnp.where((tokens >= 0) & (tokens < num_classes), tokens, num_classes)
    rows = jnp.zeros((len(tokens), num_classes + 1))
    return rows.at[jnp.arange(len(tokens))[:, None], known].set(1)[:, :num_classes]


def document_counts(tokens: Int[Array, "B T"], num_classes: int) -> UInt32[Array, "M"]:
    """Counts the rows that have each class, each row once, and all rows (the last entry, M = C + 1).

    It takes the memory of the tokens, without y.
    """
    ordered = jnp.sort(tokens, -1)
    first = jnp.concatenate([jnp.ones_like(ordered[:, :1], bool), ordered[:, 1:] != ordered[:, :-1]], -1)
    counted = first & (ordered >= 0) & (ordered < num_classes)
    counts = jnp.zeros(num_classes + 1, jnp.uint32).at[-1].set(len(tokens))
    return counts.at[jnp.where(counted, ordered, 0)].add(counted.astype(jnp.uint32))


def inverse_frequency(counts: UInt32[Array, "M"]) -> Float[Array, "C"]:
    """Computes the weight w of each class from the counts f of N images: ln(1 + (N - f) / (f + 1)).

    N - f is a difference of integers, so that w is exact, and 0, for a class that nearly all images have.
    """
    frequency, num_images = counts[:-1], counts[-1]
    return jnp.log1p((num_images - frequency).astype(jnp.float32) / (frequency.astype(jnp.float32) + 1))
