"""The `Method` record, which says what differs between methods, and the forward pass that all methods share.

batch -> views -> teacher -> mask -> student -> decoder -> heads -> losses. The EMA update of the teacher happens
before, in `train_step`. A `Method` is a small frozen record of functions; `forward` itself has no branch per method.
Networks, centers, and what gradient accumulation may split follow from the record; the weights of the losses are
`config.losses.weights`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from detailclip_jax.methods.running_statistics import MEAN, Running
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.models.registry import Network
from detailclip_jax.types import Array, Axis, Batch, Float, Hidden, Keys, Leaf, Params, Scalar, Texts, Tokens, View

Views = Mapping[str, View]
Targets = Mapping[str, Tokens]
Score = Callable[[Networks, Float[Array, "B S S 3"], Float[Array, "M E"]], Float[Array, "B M"]]


ANCHOR = "anchor"  # entry of the running state: the copy of the networks that the anchor's passes run


class Forward(struct.PyTreeNode):
    """Results of the forward pass on one batch, in the order of computation; losses and figures read them."""

    batch: Batch
    views: Leaf  # `Views`
    targets: Mapping[str, Leaf]  # teacher `Tokens`, by name of the pass
    anchors: Mapping[str, Leaf]  # the anchor's `Tokens`, by name of the pass
    hidden: Leaf  # `Hidden` over [V, B, N]; None without a mask
    tokens: Mapping[str, Leaf]  # student `Tokens`, by name of the pass
    decoded: Leaf  # [V, B, H, D]; None without a decoder
    text: Leaf  # `Texts`; None without captions
    target_text: Leaf  # the teacher's `Texts`; None unless the method has them
    heads: Mapping[str, Leaf]  # arrays, or `Logits`


class Context(NamedTuple):
    """Further inputs of a loss: the training state's running statistics, and the schedules' values at this step."""

    running: Mapping[str, Any]  # of the steps before: [C] by name of the term; and the networks of ANCHOR
    temperatures: Mapping[str, Scalar]  # of the teacher, by name of the term
    weights: Mapping[str, Scalar] = {}  # of the terms whose weight changes during the run


class WholeBatch(NamedTuple):
    """What a loss needs to compare images of the whole batch, which is sharded over the mesh."""

    axis: Axis | None = None  # mesh axes of the batch; None if this device has the whole batch
    block: int = 0  # columns of contrastive logits computed at a time; 0 = automatic


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A function of a method, and the networks that it runs; the method owns the networks of its parts."""

    function: Callable
    networks: Mapping[str, Network]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the function."""
        return self.function(*arguments, **options)


def uses(*names: str, **further: Network) -> Callable[[Callable], Part]:
    """Declares the networks that a function of a method runs.

        @uses("image_projection", logit_bias=heads.scalar(-10.0))
        def run(student, teacher, record): ...

    `names` are entries of `models.networks.NETWORKS`, `further` are networks of this method.
    """
    return functools.partial(Part, networks={name: NETWORKS[name] for name in names} | further)


def networks_of(parts: Iterable[Callable]) -> dict[str, Network]:
    """Returns the networks of parts; a plain function has none.

    Raises TypeError for `functools.partial`, which would hide those of its function, and ValueError for two networks of
    one name and different kinds.
    """
    joined: dict[str, Network] = {}
    for part in parts:
        if isinstance(part, functools.partial):
            raise TypeError(f"{part}: networks are declared around a partial: uses(...)(partial(...))")
        networks = part.networks if isinstance(part, Part) else {}
        for name in networks.keys() & joined.keys():
            if networks[name].kind != joined[name].kind:
                raise ValueError(f"two networks of the method have the name {name!r} and are of different kinds")
        joined |= networks
    return joined


class Pass(NamedTuple):
    """One pass of the student: the view that it encodes, and how: `full`, `visible` or `masked`."""

    view: str
    encode: Callable[..., Tokens]  # (student, view, hidden, one key per image)
    values: bool = False  # also the value read-out, `Tokens.values`; of `full` and `visible`

    def run(self, student: Networks, views: Views, hidden: Hidden | None, keys: Array) -> Tokens:
        """Encodes the view."""
        return self.encode(student, views[self.view], hidden, keys, **({"values": True} if self.values else {}))


class Head(NamedTuple):
    """Runs networks on a `Forward` record; `makes` names its outputs.

    `reads` is ("decoded",) if it reads the decoder's output, which is then computed. `after` names the outputs of heads
    before it that it reads, `passes` the student's passes whose CLS tokens it takes.

    A term with `over="batch"` may read a head that computes from class tokens and caption embeddings alone, or one that
    computes each image on its own and is marked `per_image`: accumulation runs that one chunk by chunk, and keeps its
    outputs, arrays [V, B, ...], for the terms of the whole batch.
    """

    makes: tuple[str, ...]
    run: Callable[[Networks, Networks, Forward], dict[str, Leaf]]
    reads: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    per_image: bool = False
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[Any, ...]:
        """The function that it runs, by name, and what it declares; equal for heads that do the same."""
        function = self.run.function if isinstance(self.run, Part) else self.run
        networks = {name: network.kind for name, network in networks_of([self.run]).items()}
        return function.__module__, function.__qualname__, networks, *self._replace(run=nothing)


class Loss(NamedTuple):
    """A term of eq. 10: reads the entries `reads` of `Forward.heads`, returns its value and metrics to log.

    `over` is "image" for a mean over images, whose `run` takes (record, context), and "batch" for a term that compares
    images with each other, whose `run` takes (record, context, whole_batch). `build` sets its
    `weight` to the entry of `config.losses.weights` that `weighted_by` names, or, without it, `name`.

    `contrast` marks a softmax of images over the captions of the batch: its value is ln(batch size) as long as the
    model does not tell the captions apart, and the run warns if it stays there.
    """

    name: str
    reads: tuple[str, ...]
    run: Callable[..., tuple[Scalar, dict[str, Scalar]]]
    over: Literal["image", "batch"] = "image"
    running: Running | None = None  # the statistic that it accumulates over the steps: `context.running[name]`
    temperature: str = ""  # field of `config.losses` with the teacher's temperature: `context.temperatures[name]`
    whole_captions: bool = False  # whether it reads words of a caption behind the end token
    labels: bool = False  # whether it reads the labels of the images
    weighted_by: str = ""
    weight: float = 1.0
    contrast: bool = False

    @property
    def weight_name(self) -> str:
        """The name of the term's weight in `config.losses.weights`."""
        return self.weighted_by or self.name

    @property
    def needs(self) -> set[str]:
        """The entries of `Forward.heads` that the term reads, and the one that its running statistic takes."""
        return {*self.reads, *([self.running.output] if self.running else [])}

    def value(self, record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        """Computes the term and its metrics."""
        return self.run(record, context, whole_batch) if self.over == "batch" else self.run(record, context)


Saved = Callable[[str], tuple[Mapping[str, Params], ConfigDict, str]]  # a workdir's variables, config, `Method.weights`


class Term(NamedTuple):
    """A term that any method can have, by its weight: how it is added, and what it takes from another workdir.

    add: (method, config) -> the method with the term.
    adopt: (config, config of the run that goes on, reader of a workdir's config) -> the config with the fields that
        another workdir determines; called for every config, with and without the term.
    load: (config, reader of a workdir) -> weights by network, and lines that describe them; called at step 0.
    stand_in: config -> the config with what `adopt` would take from a workdir, or None where it names one; for
        benchmarks.
    native: whether it also takes images of any aspect, see `Method.native`.
    """

    add: "Callable[[Method, ConfigDict], Method]"
    adopt: Callable[[ConfigDict, ConfigDict | None, Callable[[str, str], ConfigDict]], ConfigDict] | None = None
    load: Callable[[ConfigDict, Saved], tuple[dict[str, Params], list[str]]] | None = None
    stand_in: Callable[[ConfigDict], ConfigDict | None] | None = None
    native: bool = False


def nothing(*_: Any) -> None:
    """Returns None: the mask, the decoder or the texts of methods without them."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A pretraining method: its passes, mask, heads and losses.

    `mask` returns the patches hidden from the student, `decode` the tokens [V, B, H, D] at removed patches,
    `encode_text` the student's encoded captions, and `target_text` the teacher's, which get no gradient. Each returns
    None for methods without it.

    The anchor is a copy of the image encoder, made once during a run (the state's `running["anchor"]`), when the weight
    of the term `anchor_of` begins to rise.

    `score` ranks images and texts in evaluation: (networks, normalised pixels, text embeddings before their
    normalisation) -> [B, M]. Without it, scores are cosines of image and text embeddings.
    """

    name: str
    passes: Mapping[str, Pass]  # student passes
    heads: tuple[Head, ...] = ()
    losses: tuple[Loss, ...] = ()
    ema: tuple[str, ...] = ()  # names of the networks that are averaged: the teacher's own
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict)  # teacher passes: name -> view
    anchors: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the anchor's passes: name -> view
    anchor_of: str = ""  # the term that reads the anchor
    mask: Callable[[Targets, Views, Batch, Keys], Hidden | None] = nothing
    decode: Callable[[Networks, Mapping[str, Tokens], Hidden | None], Array | None] = nothing
    encode_text: Callable[[Networks, Batch], Texts | None] = nothing
    target_text: Callable[[Networks, Batch], Texts | None] = nothing
    score: Score | None = None
    weights: str = "ema"  # of evaluation and export by default: "ema" (the student's without a teacher) or "student"
    readout: str = "naclip"  # of patches for words, where none was chosen on masks; see `models.readouts`
    masks_by_attention: bool = False  # whether `masking.strategy` chooses patches by the teacher's attention
    native: bool = False  # whether it also trains on images of any aspect, whose patches form no square
    continues: str = ""  # the method of a first run, from which this one goes on by `config.init`; "" for none

    @functools.cached_property
    def networks(self) -> Mapping[str, Network]:
        """The networks that the method's functions run, by name."""
        passes, heads = (p.encode for p in self.passes.values()), (head.run for head in self.heads)
        return networks_of((*passes, self.decode, self.encode_text, self.target_text, *heads))

    @property
    def has_text(self) -> bool:
        """Whether the method uses captions."""
        return "text" in self.networks

    @property
    def hides_patches(self) -> bool:
        """Whether a mask hides patches from the student, which are dropped or replaced."""
        return self.mask is not nothing

    @property
    def crops(self) -> set[str]:
        """The crops that the passes of student, teacher and anchor encode."""
        return {*self.targets.values(), *self.anchors.values(), *(each.view for each in self.passes.values())}

    @property
    def terms(self) -> Mapping[str, Loss]:
        """The loss terms, by name."""
        return {loss.name: loss for loss in self.losses}

    @property
    def contrast(self) -> str:
        """The name of the term that is marked as `contrast`, the first of several; "" if there is none."""
        return next((loss.name for loss in self.losses if loss.contrast), "")

    @property
    def running(self) -> Mapping[str, Running]:
        """The running statistics, by name of their term."""
        return {loss.name: loss.running for loss in self.losses if loss.running}

    @property
    def centers(self) -> tuple[str, ...]:
        """The terms with a center, a running mean of the teacher's logits."""
        return tuple(name for name, statistic in self.running.items() if statistic.rule is MEAN)

    @property
    def has_prototypes_of_decoded(self) -> bool:
        """Whether the prototype head takes decoded tokens as well as the encoder's, so that both have one width."""
        heads = (head for head in self.heads if "decoded" in head.reads)
        return "decoder" in networks_of([self.decode]) and any("prototype_head" in networks_of([h.run]) for h in heads)

    def plus(self, heads: tuple[Head, ...], loss: Loss, **changes: Any) -> "Method":
        """Returns the method with one more term and those of its heads that no other term has brought.

        `changes` are other fields. Raises ValueError for heads of different kinds with an output of one name.
        """
        new = []
        for head in heads:
            others = [each for each in self.heads if not set(head.makes).isdisjoint(each.makes)]
            if any(each.kind != head.kind for each in others):
                both = " and ".join(f"{each.kind[0]}.{each.kind[1]}" for each in (*others, head))
                raise ValueError(f"loss {loss.name!r} of method {self.name}: {both} make {', '.join(head.makes)}")
            new += [] if others else [head]
        return dataclasses.replace(self, heads=(*self.heads, *new), losses=(*self.losses, loss), **changes)

    def heads_of(self, losses: Iterable[Loss]) -> tuple[Head, ...]:
        """Returns the heads whose outputs these losses read, and those that these heads read."""
        wanted, kept = {name for loss in losses for name in loss.needs}, []
        for head in reversed(self.heads):
            if wanted & set(head.makes):
                wanted |= set(head.after)
                kept.append(head)
        return tuple(reversed(kept))

    def needs_whole_batch(self, loss: Loss) -> bool:
        """Whether images interact in a term: it compares them, or reads a head with BatchNorm."""
        networks = networks_of(head.run for head in self.heads_of([loss]))
        return loss.over == "batch" or any(network.batch_norm for network in networks.values())


def forward(
    method: Method, student: Networks, teacher: Networks, anchor: Networks, views: Views, batch: Batch, keys: Keys
) -> Forward:
    """Runs the forward pass on one device's share of the batch: B images, each with its own random key."""
    targets = {name: encode_target(teacher, views[view]) for name, view in method.targets.items()}
    anchors = {name: encode_target(anchor, views[view]) for name, view in method.anchors.items()}
    hidden = method.mask(targets, views, batch, keys)
    tokens = {name: each.run(student, views, hidden, keys.of(name)) for name, each in method.passes.items()}
    decoded = method.decode(student, tokens, hidden)
    text = method.encode_text(student, batch)
    target_text = jax.lax.stop_gradient(method.target_text(teacher, batch))
    record = Forward(batch, views, targets, anchors, hidden, tokens, decoded, text, target_text, {})
    return run_heads(method, student, teacher, record)


def run_heads(method: Method, student: Networks, teacher: Networks, record: Forward) -> Forward:
    """Runs the method's heads on the record, one after the other; `Head.after` names what one reads of others."""
    for head in method.heads:
        record = record.replace(heads={**record.heads, **head.run(student, teacher, record)})
    return record


def encode_target(teacher: Networks, view: View) -> Tokens:
    """Encodes full views with the teacher; returns tokens and CLS attention, without gradient."""
    tokens = fold(lambda images: teacher.image(images, attention=True), view.image)
    return jax.lax.stop_gradient(tokens)


@uses("image")
def full(student: Networks, view: View, hidden: Hidden | None, keys: Array, values: bool = False) -> Tokens:
    """Encodes all patches with the student; keys [B] are for drop path."""
    encode = lambda images, noise: student.image(images, keys=noise, values=values)  # noqa: E731
    return fold(encode, view.image, view_keys(keys, view))


@uses("image")
def visible(student: Networks, view: View, hidden: Hidden, keys: Array, values: bool = False) -> Tokens:
    """Encodes only the kept patches with the student; hidden patches are dropped."""
    encode = lambda images, kept, noise: student.image(images, kept, keys=noise, values=values)  # noqa: E731
    return fold(encode, view.image, hidden.kept, view_keys(keys, view))


@uses("image", "mask_token")
def masked(student: Networks, view: View, hidden: Hidden, keys: Array) -> Tokens:
    """Encodes all patches with the student; a learnt mask token replaces the hidden ones."""

    def encode(images: Array, mask: Array, noise: Array) -> Tokens:
        return student.image(images, hidden=mask, mask_token=student.mask_token(), keys=noise)

    return fold(encode, view.image, hidden.mask, view_keys(keys, view))


def view_keys(keys: Array, view: View) -> Array:
    """Derives a key [V, B] for every view of every image from the images' keys [B]."""
    numbers = jnp.arange(len(view.box))
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


def values(method: Method, record: Forward, context: Context, whole_batch: WholeBatch) -> dict[str, Scalar]:
    """Computes every loss term and its metrics, by name."""
    metrics: dict[str, Scalar] = {}
    for loss in method.losses:
        metrics[loss.name], logged = loss.value(record, context, whole_batch)
        metrics.update(logged)
    return metrics


def total(method: Method, metrics: Mapping[str, Scalar], changing: Mapping[str, Scalar] | None = None) -> Scalar:
    """Computes eq. 10: the weighted sum of the terms in `metrics`; `changing` has the weights that are not constant."""
    weights, total = {loss.name: loss.weight for loss in method.losses} | dict(changing or {}), jnp.zeros(())
    for term in method.terms:
        total = total + weights[term] * metrics[term]
    return total


def build(method: Method, weights: Mapping[str, float]) -> Method:
    """Returns the method with its weights, without loss terms of weight 0, nor heads and decoder that only these need.

    Passes and the encoder of captions stay. `weights` may have entries for terms of other methods; they are ignored.
    Raises ValueError if a term has no weight, if all weights are 0, or if a term reads an entry that no head returns, a
    head one that no head before it returns.
    """
    if missing := {loss.weight_name for loss in method.losses} - set(weights):
        raise ValueError(f"losses.weights has no entry for {sorted(missing)} of {method.name}; 0 disables a term")
    losses = [loss._replace(weight=weights[loss.weight_name]) for loss in method.losses]
    active = tuple(loss for loss in losses if loss.weight)
    if method.losses and not active:
        weights = {loss.weight_name: loss.weight for loss in losses}
        raise ValueError(f"every term of {method.name} has weight 0: {weights}; set one of them above 0")
    outputs: set[str] = set()
    for head in method.heads:
        if missing := {*head.after} - outputs:
            raise ValueError(f"head {head.makes[0]!r} reads {sorted(missing)}, but no head before it returns them")
        outputs |= {*head.makes}
    for loss in active:
        if missing := loss.needs - outputs:
            raise ValueError(f"loss {loss.name!r} reads {sorted(missing)}, but the heads return {sorted(outputs)}")
    return restricted(method, active)


def restricted(method: Method, losses: tuple[Loss, ...], heads: tuple[Head, ...] | None = None) -> Method:
    """Returns the method with only these losses, without heads, decoder and averaged networks that they do not need.

    `heads` are the heads that they need; None for those whose outputs they read.
    """
    heads = method.heads_of(losses) if heads is None else heads
    decodes = any("decoded" in head.reads for head in heads)
    decode = method.decode if decodes else nothing
    kept = dataclasses.replace(method, losses=losses, heads=heads, decode=decode)
    return dataclasses.replace(kept, ema=tuple(name for name in method.ema if name in kept.networks))
