"""The forward pass that all methods share, and the `Method` record that says what differs between methods.

batch -> views -> teacher -> mask -> student -> decoder -> heads -> losses. The EMA update of the teacher happens
before, in `train_step`. A `Method` is a small frozen record of functions; `forward` itself has no branch per method.
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
    """Results of the forward pass on one batch, in the order of computation; losses and figures read them."""

    batch: Batch
    views: Views
    targets: Mapping[str, Tokens]  # teacher tokens, by name of the pass
    hidden: Hidden | None  # over [V, B, N]
    tokens: Mapping[str, Tokens]  # student tokens, by name of the pass
    decoded: Leaf  # [V, B, H, D]; None without a decoder
    text: Leaf  # [B, E]; None without captions
    heads: Mapping[str, Leaf]  # arrays, or `Logits`


class Context(NamedTuple):
    """Further inputs of a loss: training state, the schedules' values at this step, and the mesh axes if any."""

    centers: Mapping[str, Float[Array, "C"]]
    temperatures: Mapping[str, Scalar]  # of the teacher, for "cls" and "patch"
    axis: Axis | None = None
    block: int = 0  # columns of contrastive logits computed at a time; 0 = automatic


class Pass(NamedTuple):
    """One pass of the student: the view that it encodes, and how: `whole`, `visible` or `masked`."""

    view: str
    encode: Callable[..., Tokens]  # (student, view, hidden, one key per image)


class Head(NamedTuple):
    """Runs networks on a `Forward` record; `makes` names its outputs, `reads` the fields of the record it needs."""

    makes: tuple[str, ...]
    run: Callable[[Networks, Networks, Forward], dict[str, Leaf]]
    reads: tuple[str, ...] = ()


class Loss(NamedTuple):
    """A term of eq. 10: reads the entries `reads` of `Forward.heads`, returns its value and metrics to log."""

    reads: tuple[str, ...]
    run: Callable[[Forward, Context], tuple[Scalar, dict[str, Scalar]]]
    whole_batch: bool = False  # True if images interact (contrast, BatchNorm): then it is no mean over images


@dataclasses.dataclass(frozen=True)
class Method:
    """A pretraining method: its networks, passes, mask, heads and losses.

    `mask` returns the patches hidden from the student, `decode` the tokens [V, B, H, D] at removed patches, and `read`
    the caption embeddings [B, E]. Each returns None for methods without it (`no_mask`, `no_decoder`, `no_text`).
    """

    name: str
    parts: tuple[str, ...]  # names of its networks
    ema: tuple[str, ...]  # those of them that the teacher has as well
    targets: Mapping[str, str]  # teacher passes: name -> view
    mask: Callable[[Targets, Views, Batch, Keys], Hidden | None]
    passes: Mapping[str, Pass]  # student passes
    decode: Callable[[Networks, Mapping[str, Tokens], Hidden | None], Array | None]
    read: Callable[[Networks, Batch], Array | None]
    heads: tuple[Head, ...]
    losses: Mapping[str, Loss]
    weights: Mapping[str, float]
    centers: Mapping[str, int]  # name -> C; the head entry "<name>_mean" updates each center
    interpolation: str = "bicubic"  # of positions, for crops of another size: one of models.positions.RECIPES
    peak_twice: bool = True  # True: warm-up over W steps divides by W - 1 (SLIP's family, DINO's); False: by W (MAE)


def forward(method: Method, student: Networks, teacher: Networks, views: Views, batch: Batch, keys: Keys) -> Forward:
    """Runs the forward pass on one device's share of the batch: B images, each with its own random key."""
    targets = {name: encode_target(teacher, views[view]) for name, view in method.targets.items()}
    hidden = method.mask(targets, views, batch, keys)
    tokens = {name: p.encode(student, views[p.view], hidden, keys.of(name)) for name, p in method.passes.items()}
    decoded = method.decode(student, tokens, hidden)
    text = method.read(student, batch)
    return run_heads(method, student, teacher, Forward(batch, views, targets, hidden, tokens, decoded, text, {}))


def run_heads(method: Method, student: Networks, teacher: Networks, line: Forward) -> Forward:
    """Runs the method's heads on the record `line` and returns it with their outputs in `heads`."""
    made = [head.run(student, teacher, line) for head in method.heads]
    return line.replace(heads={name: array for entries in made for name, array in entries.items()})


def encode_target(teacher: Networks, view: View) -> Tokens:
    """Encodes full views with the teacher; returns tokens and CLS attention, without gradient."""
    tokens = fold(lambda images: teacher.image(images, attention=True), view.image)
    return jax.lax.stop_gradient(tokens)


def whole(student: Networks, view: View, hidden: Hidden | None, keys: Array) -> Tokens:
    """Encodes all patches with the student; keys [B] are for drop path."""
    return fold(lambda images, noise: student.image(images, keys=noise), view.image, view_keys(keys, view))


def visible(student: Networks, view: View, hidden: Hidden, keys: Array) -> Tokens:
    """Encodes only the kept patches with the student; hidden patches are dropped."""

    def encode(images: Array, kept: Array, noise: Array) -> Tokens:
        return student.image(images, kept, keys=noise)

    return fold(encode, view.image, hidden.kept, view_keys(keys, view))


def masked(student: Networks, view: View, hidden: Hidden, keys: Array) -> Tokens:
    """Encodes all patches with the student; a learnt mask token replaces the hidden ones."""

    def encode(images: Array, mask: Array, noise: Array) -> Tokens:
        return student.image(images, hidden=mask, mask_token=student.mask_token(), keys=noise)

    return fold(encode, view.image, hidden.mask, view_keys(keys, view))


def view_keys(keys: Array, view: View) -> Array:
    """Derives a key [V, B] for every view of every image from the images' keys [B]."""
    numbers = jnp.arange(len(view.image))
    return jax.vmap(lambda v: jax.vmap(lambda key: jax.random.fold_in(key, v + 1))(keys))(numbers)


def fold(network: Any, *arrays: Any) -> Any:
    """Runs `network` on arrays [V, B, ...] as one batch of V B, and reshapes its outputs to [V, B, ...]."""
    leading = jax.tree.leaves(arrays[0])[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
    return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), network(*flat))


def loop(network: Any, *arrays: Any) -> Any:
    """Runs `network` on arrays [V, B, ...] view by view: for networks with batch statistics (SLIP's BatchNorm)."""
    views = [network(*(array[view] for array in arrays)) for view in range(arrays[0].shape[0])]
    return jax.tree.map(lambda *x: jnp.stack(x), *views)


def losses(method: Method, line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes eq. 10: the weighted sum of the loss terms, and a dictionary of it, every term and their metrics."""
    total, metrics = jnp.zeros(()), {}
    for name, loss in method.losses.items():
        metrics[name], logged = loss.run(line, context)
        metrics.update(logged)
        total = total + method.weights[name] * metrics[name]
    return total, {"loss": total, **metrics}


def build(method: Method) -> Method:
    """Returns the method without loss terms of weight 0 and without the heads that only these need.

    `weights` may have entries for terms of other methods; they are ignored. Raises ValueError if a term has no
    weight, if all weights are 0, or if a term reads an entry that no head returns.
    """
    if missing := set(method.losses) - set(method.weights):
        raise ValueError(f"losses.weights has no entry for {sorted(missing)} of {method.name}; 0 disables a term")
    active = {name: loss for name, loss in method.losses.items() if method.weights[name]}
    if method.losses and not active:
        raise ValueError(f"every term of {method.name} has weight 0: {dict(method.weights)}")
    made = {name for head in method.heads for name in head.makes}
    for name, loss in active.items():
        if missing := set(loss.reads) - made:
            raise ValueError(f"loss {name!r} reads {sorted(missing)}, but the heads return {sorted(made)}")
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
    """Returns None: `Method.decode` of methods without a decoder."""


def no_mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> None:
    """Returns None: `Method.mask` of methods without masking."""


def no_text(student: Networks, batch: Batch) -> None:
    """Returns None: `Method.read` of methods without captions."""
