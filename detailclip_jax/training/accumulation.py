"""The losses of a device's share of the batch, at once or in chunks: exact gradient accumulation (GradCache).

The losses and gradients of several chunks equal those of the whole batch (arXiv 2101.06983).  A loss term that is a
mean over images is computed chunk by chunk.  The other terms (CLIP and SimCLR compare images, BatchNorm normalises over
them) need the class tokens and caption embeddings of all chunks, which are small, and the outputs of heads that are
marked `per_image` (COSMOS's cross-attention).  The networks therefore run on one chunk at a time, and these terms are
computed on all embeddings afterwards.  The backward pass runs every chunk again, with the gradient of its embeddings
already known.  The memory is that of one chunk; the cost is one more forward pass.

With one chunk every term is computed in it, and nothing runs twice.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import struct

from detailclip_jax.methods.method import (
    Context,
    Forward,
    Method,
    WholeBatch,
    restricted,
    run_heads,
    total,
    values,
)
from detailclip_jax.training.forward_pass import ForwardPass, Stats, run, run_networks, running_statistics
from detailclip_jax.training.train_step import Inputs, Outputs
from detailclip_jax.types import Array, Axis, Batch, Float, Keys, PyTree

Embeddings = Mapping[str, Any]  # see `embeddings`


class PretrainingLoss(NamedTuple):
    """Eq. 10 of a method, as the loss of a training step: the mean over devices, each on its share of the batch.

    With several `chunks` the result differs by rounding only, and the networks need the memory of 1 / `chunks` of the
    device's images.
    """

    forward_pass: ForwardPass
    clip_block: int  # columns of contrastive logits computed at a time; 0 = automatic
    chunks: int  # of the batch on each device

    def __call__(self, inputs: Inputs, axis: Axis | None) -> Outputs:
        """Computes the loss; ValueError if a term over the whole batch reads what is only known chunk by chunk."""
        method, (params, teacher) = self.forward_pass.method, (inputs.params, inputs.teacher)
        context = Context(inputs.running, inputs.temperatures, inputs.weights)
        whole_batch = WholeBatch(axis, self.clip_block)
        by_image, by_batch = divide(method, self.chunks)  # with one chunk `by_batch` has no terms
        kept = [name for head in method.heads_of(by_batch.losses) if head.per_image for name in head.makes]

        def chunk(stats: Stats, rows: tuple[Batch, Array]) -> tuple[Stats, PyTree]:
            pass_, keys = self.forward_pass._replace(method=by_image), Keys(inputs.keys.step, rows[1])
            record, stats = run(params, teacher, inputs.running, stats, rows[0], keys, pass_)
            terms = values(by_image, record, context, whole_batch)
            return stats, ((terms, running_statistics(record, method)), embeddings(record, kept))

        rows = inputs.batch, inputs.keys.image
        if self.chunks == 1:
            stats, result = chunk(inputs.stats, rows)
            (terms, statistics), embedded = jax.tree.map(lambda x: x[None], result)
        else:  # inside a scan XLA cannot merge the two forward passes
            again = jax.checkpoint(chunk, prevent_cse=False)
            stats, ((terms, statistics), embedded) = jax.lax.scan(again, inputs.stats, split(rows, self.chunks))
        metrics = jax.tree.map(lambda x: x.mean(0), terms)
        statistics = {name: method.running[name].rule.of_chunks(x) for name, x in statistics.items()}
        heads = partial(run_heads, by_batch, record=rejoin(inputs.batch, embedded))
        record, stats = run_networks(heads, params, teacher, stats, self.forward_pass.model)
        metrics |= values(by_batch, record, context, whole_batch)
        loss = total(method, metrics, context.weights)
        metrics, statistics = metrics | {"loss": loss}, statistics | running_statistics(record, method)
        if axis:
            loss, metrics = jax.lax.pmean((loss, metrics), axis)
            statistics = {name: method.running[name].rule.of_devices(x, axis) for name, x in statistics.items()}
        return Outputs(loss, metrics, statistics, stats)


def divide(method: Method, chunks: int) -> tuple[Method, Method]:
    """Divides a method's terms into those of each chunk and those of the whole batch; one chunk is the whole batch.

    Heads marked `per_image` run with the chunks, also for the terms of the whole batch.
    """
    need_whole_batch = [chunks > 1 and method.needs_whole_batch(loss) for loss in method.losses]
    by_image, by_batch = (
        tuple(loss for loss, needs in zip(method.losses, need_whole_batch) if needs is kind) for kind in (False, True)
    )
    late = method.heads_of(by_batch)
    early = [head for head in method.heads if head in method.heads_of(by_image) or (head in late and head.per_image)]
    late = tuple(head for head in late if not head.per_image)
    return restricted(method, by_image, tuple(early)), restricted(method, by_batch, late)


def split(rows: PyTree, chunks: int) -> PyTree:
    """Splits axis 0 of every array: [B, ...] -> [chunks, B / chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), rows)


def embeddings(record: Forward, kept: Iterable[str]) -> Embeddings:
    """Returns the inputs of the terms that need the whole batch: one vector per class token and one per caption.

    "targets", "anchors" and "tokens" hold them by name of the pass, [V, B, ...], "text" and "target_text" are [C, B, E]
    or None, and "heads" has the outputs `kept` of heads that ran on the chunk.
    """
    classes = {
        kind: {name: ClassTokens(t.cls, t.extra, t.mean) for name, t in getattr(record, kind).items()}
        for kind in ("targets", "anchors", "tokens")
    }
    captions = {
        kind: None if (texts := getattr(record, kind)) is None else Captions(texts.embedding)
        for kind in ("text", "target_text")
    }
    return {**classes, **captions, "heads": {name: record.heads[name] for name in kept}}


def rejoin(batch: Batch, embedded: Embeddings) -> Forward:
    """Builds a `Forward` record of the whole batch from the embeddings of all chunks; reading anything else raises."""
    views, hidden, decoded = (Missing(name) for name in ("views", "hidden", "decoded"))
    return Forward(batch, views, hidden=hidden, decoded=decoded, **jax.tree.map(_joined, dict(embedded)))


def _joined(chunks: Float[Array, "A V B *D"]) -> Float[Array, "V AB *D"]:
    return jnp.moveaxis(chunks, 0, 1).reshape(chunks.shape[1], -1, *chunks.shape[3:])


class KnownPart:
    """What the terms of the whole batch know of it; the rest is only known chunk by chunk, and reading it raises."""

    def __getattr__(self, name: str) -> NoReturn:
        """Raises ValueError; AttributeError for special names, by which libraries ask what an object can do."""
        if name.startswith("_"):
            raise AttributeError(name)
        refuse(vars(self).get("_name", name))


class ClassTokens(KnownPart, struct.PyTreeNode):
    """The class tokens of the whole batch."""

    cls: Array
    extra: Array | None = None
    mean: Array | None = None  # of dinotxt


class Captions(KnownPart, struct.PyTreeNode):
    """The caption embeddings [C, B, E] of the whole batch."""

    embedding: Array


class Missing(KnownPart):
    """A field of the record of which nothing is known; reading it raises, as reading its items, length and keys."""

    def __init__(self, name: str):
        """Stores the field's name."""
        self._name = name

    def __getitem__(self, key: Any) -> NoReturn:
        """Raises ValueError."""
        refuse(self._name)

    def __len__(self) -> NoReturn:
        """Raises ValueError."""
        refuse(self._name)

    def __iter__(self) -> NoReturn:
        """Raises ValueError."""
        refuse(self._name)


def refuse(what: str) -> NoReturn:
    """Raises the ValueError of a term that accumulation cannot compute exactly."""
    raise ValueError(
        f"accumulation: a term over the whole batch reads {what!r}, which is only known chunk by chunk, so it would "
        "not be exact; set --config.accumulation=1"
    )
