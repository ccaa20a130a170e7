"""The one straight line that every method takes, and the record that varies.

batch -> views -> teacher -> mask -> student -> decoder -> heads -> losses.  (The teacher moved before, see
`train_step`.)  A method is a `Method`: a small frozen record of functions.  Moving from one method to the next is a
change of a few of its cells; `forward` itself has no `if`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from detailclip_jax.models.towers import Networks
from detailclip_jax.types import Array, Axis, Batch, Float, Hidden, Keys, Leaf, Scalar, Tokens, View

Views = Mapping[str, View]
Targets = Mapping[str, Tokens]


class Forward(struct.PyTreeNode):
    """What is known of a batch, filled in the order in which it becomes known; losses and figures read it."""

    batch: Batch
    views: Views
    targets: Mapping[str, Tokens]  # the teacher's tokens, by pass
    hidden: Hidden | None  # over [V, B, N]
    tokens: Mapping[str, Tokens]  # the student's tokens, by pass
    decoded: Leaf  # [V, B, H, D]; None without a decoder
    text: Leaf  # [B, E]; None without captions
    heads: Mapping[str, Leaf]  # arrays, or `Logits`


class Context(NamedTuple):
    """What a loss knows beside the record: training state, this step's schedules, and the mesh's axes if any."""

    centers: Mapping[str, Float[Array, "C"]]
    temperatures: Mapping[str, Scalar]  # of the teacher, for "cls" and "patch"
    axis: Axis | None = None
    block: int = 0  # columns of contrastive logits made at a time; 0 chooses


class Pass(NamedTuple):
    """One pass of the student: the view it reads, and how: `whole`, `visible` or `masked`."""

    view: str
    encode: Callable[..., Tokens]  # (student, view, hidden, one key per image)


class Head(NamedTuple):
    """Runs networks on the record: `makes` names what it returns, `reads` the networks' outputs it needs."""

    makes: tuple[str, ...]
    run: Callable[[Networks, Networks, Forward], dict[str, Leaf]]
    reads: tuple[str, ...] = ()


class Loss(NamedTuple):
    """A term of eq. 10: reads entries of `Forward.heads`, returns its value and what to log beside it."""

    reads: tuple[str, ...]
    run: Callable[[Forward, Context], tuple[Scalar, dict[str, Scalar]]]
    whole_batch: bool = False  # compares images, or heads it reads normalise over them: no mean over images


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    name: str
    parts: tuple[str, ...]  # networks it owns
    ema: tuple[str, ...]  # those of them that the teacher has too
    targets: Mapping[str, str]  # teacher passes: name -> view
    mask: Callable[[Targets, Views, Batch, Keys], Hidden | None]
    passes: Mapping[str, Pass]  # student passes
    decode: Callable[[Networks, Mapping[str, Tokens], Hidden | None], Array | None]
    read: Callable[[Networks, Batch], Array | None]
    heads: tuple[Head, ...]
    losses: Mapping[str, Loss]
    weights: Mapping[str, float]
    centers: Mapping[str, int]  # name -> C; each is moved by the head entry "<name>_mean"
    interpolation: str = "bicubic"  # of positions for crops of another size: one of models.positions.RECIPES
    peak_twice: bool = True  # warm-up over W steps divides by W - 1 (SLIP's family, DINO's); False: by W (MAE)


def forward(method: Method, student: Networks, teacher: Networks, views: Views, batch: Batch, keys: Keys) -> Forward:
    """Runs the line on one device's share of the batch: B images, each with its own random key."""
    targets = {name: encode_target(teacher, views[view]) for name, view in method.targets.items()}
    hidden = method.mask(targets, views, batch, keys)
    tokens = {name: p.encode(student, views[p.view], hidden, keys.of(name)) for name, p in method.passes.items()}
    decoded = method.decode(student, tokens, hidden)
    text = method.read(student, batch)
    return run_heads(method, student, teacher, Forward(batch, views, targets, hidden, tokens, decoded, text, {}))


def run_heads(method: Method, student: Networks, teacher: Networks, line: Forward) -> Forward:
    """The record with what the row's heads make of it."""
    made = [head.run(student, teacher, line) for head in method.heads]
    return line.replace(heads={name: array for entries in made for name, array in entries.items()})


def encode_target(teacher: Networks, view: View) -> Tokens:
    """The teacher on whole views, with its CLS attention, outside of any gradient."""
    tokens = fold(lambda images: teacher.image(images, attention=True), view.image)
    return jax.lax.stop_gradient(tokens)


def whole(student: Networks, view: View, hidden: Hidden | None, keys: Array) -> Tokens:
    """The student on all patches; keys [B] are for its drop path."""
    return fold(lambda images, noise: student.image(images, keys=noise), view.image, view_keys(keys, view))


def visible(student: Networks, view: View, hidden: Hidden, keys: Array) -> Tokens:
    """The student on the kept patches alone: hidden ones are dropped."""

    def encode(images: Array, kept: Array, noise: Array) -> Tokens:
        return student.image(images, kept, keys=noise)

    return fold(encode, view.image, hidden.kept, view_keys(keys, view))


def masked(student: Networks, view: View, hidden: Hidden, keys: Array) -> Tokens:
    """The student on all patches, the hidden ones replaced by a learnt token."""

    def encode(images: Array, mask: Array, noise: Array) -> Tokens:
        return student.image(images, hidden=mask, mask_token=student.mask_token(), keys=noise)

    return fold(encode, view.image, hidden.mask, view_keys(keys, view))


def view_keys(keys: Array, view: View) -> Array:
    """A key [V, B] for every view of every image, from the images' own."""
    numbers = jnp.arange(len(view.image))
    return jax.vmap(lambda v: jax.vmap(lambda key: jax.random.fold_in(key, v + 1))(keys))(numbers)


def fold(network: Any, *arrays: Any) -> Any:
    """Runs `network` on [V, B, ...] arrays as one batch of V B, and unfolds what comes back."""
    leading = jax.tree.leaves(arrays[0])[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
    return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), network(*flat))


def loop(network: Any, *arrays: Any) -> Any:
    """Runs `network` on [V, B, ...] arrays view by view: for networks that look at their batch (SLIP's BatchNorm)."""
    views = [network(*(array[view] for array in arrays)) for view in range(arrays[0].shape[0])]
    return jax.tree.map(lambda *x: jnp.stack(x), *views)


def losses(method: Method, line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
    """Eq. 10: the weighted sum of the terms, and every term by its name."""
    total, metrics = jnp.zeros(()), {}
    for name, loss in method.losses.items():
        metrics[name], logged = loss.run(line, context)
        metrics.update(logged)
        total = total + method.weights[name] * metrics[name]
    return total, {"loss": total, **metrics}


def build(method: Method) -> Method:
    """The row without the terms of weight 0 and without the heads that only they needed.

    `weights` may name terms of other rows: they do not concern this one.  Raises ValueError that names the term, what
    it reads and what the heads make, if a row cannot run.
    """
    if missing := set(method.losses) - set(method.weights):
        raise ValueError(f"losses.weights has no entry for {sorted(missing)} of {method.name}; 0 switches a term off")
    active = {name: loss for name, loss in method.losses.items() if method.weights[name]}
    if method.losses and not active:
        raise ValueError(f"every term of {method.name} has weight 0: {dict(method.weights)}")
    made = {name for head in method.heads for name in head.makes}
    for name, loss in active.items():
        if missing := set(loss.reads) - made:
            raise ValueError(f"loss {name!r} reads {sorted(missing)}, but the heads make {sorted(made)}")
    return _prune(method, active)


def _prune(method: Method, active: Mapping[str, Loss]) -> Method:
    wanted = {name for loss in active.values() for name in loss.reads}
    heads = tuple(head for head in method.heads if wanted & set(head.makes))
    decodes = any("decoded" in head.reads for head in heads)
    return dataclasses.replace(
        method,
        losses=active,
        weights={name: method.weights[name] for name in active},
        heads=heads,
        decode=method.decode if decodes else no_decoder,
        centers={name: size for name, size in method.centers.items() if f"{name}_mean" in wanted},
    )


def no_decoder(student: Networks, tokens: Mapping[str, Tokens], hidden: Hidden | None) -> None:
    """For rows that decode nothing."""


def no_mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> None:
    """For rows that see everything."""


def no_text(student: Networks, batch: Batch) -> None:
    """For rows without captions."""
