"""Exact gradient accumulation (GradCache, arXiv 2101.06983): each device processes its share of the batch in chunks.

The losses and gradients equal those of the whole batch.  A loss term that is a mean over images is computed chunk by
chunk.  The other terms (CLIP and SimCLR compare images, BatchNorm normalises over them) need the CLS tokens and caption
embeddings of all chunks, which are small.  The networks therefore run on one chunk at a time, and these terms are
computed on all embeddings afterwards.  The backward pass runs every chunk again, with the gradient of its embeddings
already known.  The memory is that of one chunk; the cost is one more forward pass.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.methods.forward import Context, Forward, Method, losses, run_heads
from detailclip_jax.training.train_step import (
    Metrics,
    Setup,
    Stats,
    center_means,
    device_losses,
    run_line,
    run_networks,
    scale_metric,
)
from detailclip_jax.types import Array, Batch, Float, Keys, Params, PyTree, Scalar, Tokens

Embeddings = Mapping[str, Any]  # "targets" and "tokens" by name of the pass, [V, B, D]; "text", [B, E] or None


def losses_of(chunks: int) -> Callable[..., Any]:
    """Returns the function that computes a device's losses: in one piece for `chunks` = 1, else in `chunks` chunks."""
    return device_losses if chunks == 1 else partial(chunked_losses, chunks=chunks)


def chunked_losses(
    params: Params, teacher: Params, stats: Stats, batch: Batch, keys: Keys, context: Context, setup: Setup, chunks: int
) -> tuple[tuple[Scalar, Metrics, dict[str, Array]], Stats]:
    """Computes the result of `train_step.device_losses` chunk by chunk.

    The result differs by rounding only.  The networks need the memory of 1 / `chunks` of the device's images.
    """
    by_image, by_batch = (setup._replace(method=terms(setup.method, whole)) for whole in (False, True))

    @partial(jax.checkpoint, prevent_cse=False)  # inside a scan XLA cannot merge the two forward passes
    def chunk(nothing: None, rows: tuple[Batch, Array]) -> tuple[None, PyTree]:
        line, _ = run_line(params, teacher, stats, rows[0], Keys(keys.step, rows[1]), by_image)
        total, metrics = losses(by_image.method, line, context)
        return None, ((total, metrics, center_means(line, setup)), embeddings(line))

    _, (values, embedded) = jax.lax.scan(chunk, None, split((batch, keys.image), chunks))
    total, metrics, means = jax.tree.map(lambda x: x.mean(0), values)
    line, stats = run_networks(
        partial(run_heads, by_batch.method, line=rejoin(batch, embedded)), params, teacher, stats, setup
    )
    whole_total, whole_metrics = losses(by_batch.method, line, context)
    total = total + whole_total
    return (total, metrics | whole_metrics | {"loss": total} | scale_metric(line), means), stats


def terms(method: Method, whole_batch: bool) -> Method:
    """Returns the method with only the terms that need the whole batch (or only the others), and only their heads."""
    kept = {name: loss for name, loss in method.losses.items() if loss.whole_batch == whole_batch}
    wanted = {name for loss in kept.values() for name in loss.reads}
    heads = tuple(head for head in method.heads if wanted & set(head.makes))
    return dataclasses.replace(method, losses=kept, heads=heads)


def split(rows: PyTree, chunks: int) -> PyTree:
    """Splits axis 0 of every array: [B, ...] -> [chunks, B / chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), rows)


def embeddings(line: Forward) -> Embeddings:
    """Returns the inputs of the terms that need the whole batch: one vector per view and one per caption."""
    classes = {kind: {name: t.cls for name, t in getattr(line, kind).items()} for kind in ("targets", "tokens")}
    return {**classes, "text": line.text}


def rejoin(batch: Batch, embedded: Embeddings) -> Forward:
    """Builds a `Forward` record of the whole batch from the embeddings of all chunks; it has no patch tokens."""
    tokens = {kind: {n: _class_tokens(x) for n, x in embedded[kind].items()} for kind in ("targets", "tokens")}
    text = embedded["text"]
    text = None if text is None else text.reshape(-1, text.shape[-1])
    return Forward(batch, {}, tokens["targets"], None, tokens["tokens"], None, text, {})


def _class_tokens(chunks: Float[Array, "A V B D"]) -> Tokens:
    cls = jnp.moveaxis(chunks, 0, 1).reshape(chunks.shape[1], -1, chunks.shape[-1])
    return Tokens(cls, patches=cls[:, :, None][:, :, :0])
