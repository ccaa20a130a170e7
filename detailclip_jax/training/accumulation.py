"""Gradient accumulation that changes no number: a device takes its rows of the batch chunk by chunk.

Terms that are means over images split as they are.  The others (CLIP and SimCLR compare images, BatchNorm normalises
over them) read class tokens and captions of the whole batch, which are small.  So the networks run on a chunk at a
time, then those terms on all embeddings; backwards every chunk runs again, with the gradient to its embeddings known
(GradCache, arXiv 2101.06983).  Memory is that of one chunk, for one more forward pass.
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

Embeddings = Mapping[str, Any]  # of a line: "targets" and "tokens" by pass, [V, B, D], and "text", [B, E] or None


def losses_of(chunks: int) -> Callable[..., Any]:
    """How a device makes its losses: on all of its rows at once, or in so many chunks."""
    return device_losses if chunks == 1 else partial(chunked_losses, chunks=chunks)


def chunked_losses(
    params: Params, teacher: Params, stats: Stats, batch: Batch, keys: Keys, context: Context, setup: Setup, chunks: int
) -> tuple[tuple[Scalar, Metrics, dict[str, Array]], Stats]:
    """What `train_step.device_losses` returns, to rounding, with the networks' memory of 1 / chunks of the rows."""
    by_image, by_batch = (setup._replace(method=terms(setup.method, whole)) for whole in (False, True))

    @partial(jax.checkpoint, prevent_cse=False)  # within a scan the two passes cannot be merged
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
    """The row with those of its terms that need the whole batch, or the others, and their heads alone."""
    kept = {name: loss for name, loss in method.losses.items() if loss.whole_batch == whole_batch}
    wanted = {name for loss in kept.values() for name in loss.reads}
    heads = tuple(head for head in method.heads if wanted & set(head.makes))
    return dataclasses.replace(method, losses=kept, heads=heads)


def split(rows: PyTree, chunks: int) -> PyTree:
    """[B, ...] -> [chunks, B / chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), rows)


def embeddings(line: Forward) -> Embeddings:
    """What terms of the whole batch read: one vector per view, and per caption."""
    classes = {kind: {name: t.cls for name, t in getattr(line, kind).items()} for kind in ("targets", "tokens")}
    return {**classes, "text": line.text}


def rejoin(batch: Batch, embedded: Embeddings) -> Forward:
    """A line of all chunks with their embeddings, and no patches."""
    tokens = {kind: {n: _class_tokens(x) for n, x in embedded[kind].items()} for kind in ("targets", "tokens")}
    text = embedded["text"]
    text = None if text is None else text.reshape(-1, text.shape[-1])
    return Forward(batch, {}, tokens["targets"], None, tokens["tokens"], None, text, {})


def _class_tokens(chunks: Float[Array, "A V B D"]) -> Tokens:
    cls = jnp.moveaxis(chunks, 0, 1).reshape(chunks.shape[1], -1, chunks.shape[-1])
    return Tokens(cls, patches=cls[:, :, None][:, :, :0])
