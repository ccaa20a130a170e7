"""SuperCLIP's term L_set: the image predicts which tokens its captions have (arXiv 2512.14480).

Equations: `losses.token_set`. The classifier reads the mean of the patches after the final norm, without class token
and projection. An image has the tokens of all its captions. Any method with captions can have the term L_set, by
`losses.weights.token_set`.

Differences from the published code: it counts start, end and padding among the tokens, with a weight near 0 because
nearly all captions have them; here they are no targets. It fails with gradient accumulation; here the counts are those
of the whole batch. The paper prints w = ln(|D| / (1 + df)); the code's form is used.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from detailclip_jax.data.tokenizer import PAD
from detailclip_jax.data.vocabularies import CLIP
from detailclip_jax.kernels.chunked_logits import automatic_chunk_logits
from detailclip_jax.losses.token_set import document_counts, inverse_frequency, token_set_loss
from detailclip_jax.methods.components import own_patches_pass
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, WholeBatch, fold, uses
from detailclip_jax.methods.running_statistics import SUM, Running, add_counts
from detailclip_jax.models.heads import TokenHead
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.registry import Network
from detailclip_jax.types import Array, Int, Scalar


def token_set(method: Method, config: ConfigDict) -> Method:
    """Adds the term L_set, for the first of the method's passes whose class tokens captions are compared with.

    Raises ValueError for a method without captions or with blocks behind the encoder, and for unfit `losses.token_ids`.
    """
    name, size, ids = own_patches_pass(method, "token_set"), config.model.vocab_size, predicted_ids(config)
    network = Network(
        lambda build: TokenHead(build.size.width, len(ids), build.dtype), reload_if_equal=("losses.token_ids",)
    )
    heads = feature_head(name, network), layer_head(network, size)
    return method.plus(heads, token_set_term(ids, config))


def predicted_ids(config: ConfigDict) -> Int[np.ndarray, "C"]:
    """Returns the token ids that the head predicts: `losses.token_ids`, or the whole vocabulary.

    Raises ValueError for ids that repeat or that the vocabulary lacks, and without ids for another tokenizer than
    CLIP's, whose special ids are not known here.
    """
    ids, size = config.losses.token_ids, config.model.vocab_size
    if not ids and config.data.tokenizer != CLIP:
        raise ValueError(
            f"losses.token_ids is (), CLIP's whole vocabulary, but data.tokenizer is {config.data.tokenizer!r}; list "
            "the ids that the term token_set predicts, without special ids"
        )
    if twice := [one for one, number in collections.Counter(ids).items() if number > 1]:
        raise ValueError(f"losses.token_ids has {twice[0]} twice; write each id once")
    if max(ids, default=0) >= size:
        raise ValueError(f"losses.token_ids has {max(ids)}, but the largest id of the vocabulary is {size - 1}")
    return np.array(ids or range(size), np.int32)


def classes_of(ids: Int[np.ndarray, "C"], vocab_size: int) -> Int[np.ndarray, "N"]:
    """Returns the class of each token id, -1 for one that is no target.

    In a whole vocabulary, CLIP's, these are padding, start and end.
    """
    classes = np.full(vocab_size, -1, np.int32)
    classes[ids] = np.arange(len(ids))
    if len(ids) == vocab_size:
        classes[[PAD, vocab_size - 2, vocab_size - 1]] = -1  # the last two: start and end
    return classes


def feature_head(name: str, network: Network) -> Head:
    """Head of the classifier's input: the normalised mean of the patches of the student's pass `name`."""

    @uses(token_head=network)
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {"set_features": fold(student.token_head.features, record.tokens[name].patches.mean(-2))}

    return Head(("set_features",), run, per_image=True)


def layer_head(network: Network, vocab_size: int) -> Head:
    """Head of the classifier's parameters, and of the numbers of images: those with a token, for each id, and all."""

    @uses(token_head=network)
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        kernel, bias = student.token_head.layer()
        counts = document_counts(tokens_of(record), vocab_size)
        return {"set_kernel": kernel, "set_bias": bias, "token_set_sum": counts}

    return Head(("set_kernel", "set_bias", "token_set_sum"), run)


def tokens_of(record: Forward) -> Int[Array, "B CT"]:
    """Returns the tokens of all captions of an image in one row."""
    return record.batch["text"].reshape(len(record.batch["text"]), -1)


def token_set_term(ids: Int[np.ndarray, "C"], config: ConfigDict) -> Loss:
    """Term of L_set; the weights of the tokens count all images so far and those of the whole batch."""
    classes, most = classes_of(ids, config.model.vocab_size), config.losses.chunk_logits

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads, axis = record.heads, whole_batch.axis
        tokens, counts = tokens_of(record), heads["token_set_sum"]
        counts = add_counts(context.running["token_set"], jax.lax.psum(counts, axis) if axis else counts)
        weights = inverse_frequency(counts)[ids]
        layer, targets = (heads["set_kernel"], heads["set_bias"]), jnp.asarray(classes)[tokens]
        most_logits = automatic_chunk_logits() if most is None else most
        loss, accuracy = token_set_loss(heads["set_features"], *layer, targets, weights, most_logits)
        return loss, {"token_set_accuracy": accuracy}

    return Loss(
        "token_set",
        ("set_features", "set_kernel", "set_bias"),
        run,
        over="batch",
        running=Running("token_set_sum", SUM, P()),
        whole_captions=True,
    )
