"""Factories for the components of a `Method`: masks, decoders, heads and loss terms."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.data.caption_selection import parse
from detailclip_jax.kernels.chunked_logits import Logits
from detailclip_jax.losses import byol, clip, distillation, labels, reconstruction, simclr
from detailclip_jax.methods import maps_at_crops, masking
from detailclip_jax.methods.method import (
    Context,
    Forward,
    Head,
    Loss,
    Method,
    Pass,
    Targets,
    Views,
    WholeBatch,
    fold,
    full,
    uses,
    visible,
)
from detailclip_jax.methods.running_statistics import MEAN, Running
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.models.patchify import normalise_patches, patchify, take
from detailclip_jax.models.registry import Network
from detailclip_jax.types import Array, Batch, Float, Hidden, Keys, Leaf, Scalar, Texts, Tokens

EQUATIONS = {  # of the paper, by name of its terms
    "loss": "total, eq. 10",
    "clip": "image-text, eq. 1-5",
    "cls": "CLS distillation, eq. 6",
    "patch": "patch distillation, eq. 7",
    "reconstruction": "pixels, eq. 8",
}


def attention_value(tokens: Tokens) -> Float[Array, "V B N"]:
    """Computes eq. 9: the CLS token's attention to each patch, averaged over all heads and layers."""
    assert tokens.attention is not None  # `encode_target` requests it
    return tokens.attention.mean(-2)


def attention_of(target: str) -> Callable:
    """Returns a function that computes eq. 9 of the teacher's pass `target` over the student's views."""

    def attention(targets: Targets, views: Views) -> Float[Array, "V B N"]:
        return attention_value(targets[target])

    return attention


def mask_rule(config: ConfigDict) -> masking.RemovalRule:
    """Builds the rule for the number of patches that `config.masking` removes; ValueError for invalid settings."""
    masks, side = config.masking, sizes.num_side_patches(config.model)
    return masking.RemovalRule(side, masks.ratio, masks.granularity, masks.rounded).checked()


def mask_by(
    rule: masking.RemovalRule, strategy: masking.Strategy, num_views: int, attention: Callable | None = None
) -> Callable:
    """Returns a mask function: `strategy` selects patches by what `attention` returns, or by random keys."""

    def mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> Hidden:
        values = attention and attention(targets, views)
        return strategy(rule, attention=values, keys=keys.image, views=num_views)

    return mask


def attention_at(target: str, view: str, side: int) -> Callable:
    """Returns a function that computes eq. 9 over the enclosing crop `target`, resampled to the crops `view`.

    `side` is the number of patches along a side of these; the enclosing crop may have another number.
    """

    def attention(targets: Targets, views: Views) -> Float[Array, "V B N"]:
        outer, inner = views[target].box[0], views[view].box
        return maps_at_crops.read_at(attention_value(targets[target])[0], outer, inner, side)

    return attention


def check_enclosing(views: ConfigDict) -> None:
    """Raises ValueError unless there is one enclosing crop and neither it nor the student's crops are flipped.

    A flip would mirror the attention map, which is resampled by the boxes of the crops.
    """
    crop, large = views.crops.get("enclosing"), views.crops.large
    if crop is None or crop.get("kind") != "enclosing":
        raise ValueError(
            "views.teacher 'enclosing' needs a crop views.crops.enclosing with kind='enclosing'; configs/stickers.py "
            "and configs/vitb16_yfcc.py add it with the argument teacher=enclosing"
        )
    wanted = ("enclosing.count", crop.get("count", 1), 1), ("enclosing.flip", crop.get("flip", 0), 0)
    for name, value, only in (*wanted, ("large.flip", large.get("flip", 0), 0)):
        if value != only:
            raise ValueError(
                f"views.crops.{name} is {value}, but with views.teacher 'enclosing' attention is resampled from one "
                f"crop to the large ones; set it to {only}"
            )


def mask_highest(config: ConfigDict, target: str, side: int) -> Callable:
    """Returns AttMask's mask function: hides the patches with the highest CLS attention in the teacher's last block.

    The ratio r ~ U(config.drawn_ratio) is drawn once per step. Each view of each image is masked with probability
    `config.probability`; a masked view hides int(r N) patches. With the strategy "attention_hint", int(.1 r' N)
    random patches of the int(.1 N) most attended ones stay visible; r' has the same distribution as r.
    """
    num_patches, (low, high) = side**2, config.drawn_ratio
    hint = {"attention_high": 0.0, "attention_hint": masking.HINT}
    if config.strategy not in hint:
        raise ValueError(
            f"masking.strategy {config.strategy!r} is not supported by method attmask; known: {', '.join(hint)}"
        )
    if int(high * num_patches) < 1:
        raise ValueError(
            f"masking.drawn_ratio {tuple(config.drawn_ratio)} hides none of {num_patches} patches; "
            f"its end must be at least {1 / num_patches:.2g}"
        )
    shown = hint[config.strategy]

    def mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> Hidden:
        every = targets[target].attention
        assert every is not None  # `encode_target` requests it
        attention = every[..., -1, :]
        ratio, again = jax.random.uniform(keys.step, (2,), minval=low, maxval=high)
        noise = masking.image_noise(keys.image, len(attention), num_patches + 1)
        chosen = noise[..., -1] < config.probability
        hidden = masking.hide_highest(attention, (ratio * num_patches).astype(int) * chosen)
        num_shown = (shown * again * num_patches).astype(int)
        hints = masking.choose_hints(attention, noise[..., :-1], int(shown * num_patches), num_shown)
        return masking.drawn(hidden & ~hints, int(high * num_patches))

    return mask


def local_passes(crops: ConfigDict) -> dict[str, Pass]:
    """Returns the student's pass over local crops, or no pass if the config has none."""
    return {"local": Pass("local", full)} if "local" in crops else {}


def decode(name: str) -> Callable:
    """Returns a function that decodes the student's pass `name` at the removed patches."""

    @uses("decoder")
    def run(student: Networks, tokens: Mapping[str, Tokens], hidden: Hidden) -> Float[Array, "V B H D"]:
        return fold(student.decoder, tokens[name], hidden)

    return run


def tokens_at_hidden(name: str) -> Callable:
    """Returns a function that takes the student's tokens of the pass `name` at the hidden patches, without a decoder.

    In that pass (`masked`) the mask token replaces the hidden patches.
    """

    def run(student: Networks, tokens: Mapping[str, Tokens], hidden: Hidden) -> Float[Array, "V B H D"]:
        return take(tokens[name].patches, hidden.removed)

    return run


@uses("text", "text_projection")
def encode_text(networks: Networks, batch: Batch) -> Texts:
    """Encodes the captions batch["text"] [B, C, T]: projected text features, not yet L2-normalised."""
    return Texts(fold(networks.embed_text, jnp.moveaxis(batch["text"], 1, 0)))


@uses("text", "text_projection")
def encode_text_tokens(networks: Networks, batch: Batch) -> Texts:
    """Encodes the captions as `encode_text` does, and keeps the features of all their words."""
    feature, tokens, valid = fold(networks.text.all_tokens, jnp.moveaxis(batch["text"], 1, 0))
    return Texts(fold(networks.text_projection, feature), tokens, valid)


def joint_head(*names: str, class_tokens: int = 1, **scalars: Network) -> Head:
    """Head of image-text losses: projected CLS tokens of the student's passes, and the loss's trained numbers.

    The passes `names` are concatenated along V; with several `class_tokens` each of them counts as a view. `scalars`
    are these numbers, by name; without any it is CLIP's logit scale (a logarithm).
    """
    numbers = scalars or {"logit_scale": NETWORKS["logit_scale"]}

    @uses("image_projection", **numbers)
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        tokens = cls_of(record, names)
        if class_tokens > 1:  # all of the first view come first
            passes = (record.tokens[name] for name in names)
            every = [jnp.concatenate([tokens.cls[..., None, :], tokens.extra], -2) for tokens in passes]  # [V, B, R, D]
            tokens = jnp.concatenate([jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[-1]) for x in every])
        images = fold(student.image_projection, tokens)
        return {"image_embedding": images, **{number: getattr(student, number)() for number in numbers}}

    return Head(("image_embedding", *numbers), run, passes=names)


def captioned_pass(method: Method, term: str) -> str:
    """Returns the first of the method's passes whose class tokens are compared with captions.

    Raises ValueError that names the `term` which needs it for a method without captions.
    """
    names = [name for head in method.heads if "image_embedding" in head.makes for name in head.passes]
    if not names:
        raise ValueError(f"losses.weights.{term} needs captions, which method {method.name} does not use; set it to 0")
    return names[0]


def compared_captions(config: ConfigDict) -> int | None:
    """Returns the number of the first captions of an image that it is compared with; None for all.

    The caption rule "parts" fills up with blank ones, and its first caption is the whole one.
    """
    return 1 if parse(config.data.caption).name == "parts" else None


def own_patches_pass(method: Method, term: str) -> str:
    """Returns the pass of `captioned_pass`, whose patches are those of the encoder alone.

    Raises ValueError that names the `term` also for a method whose pass replaces patches or has blocks behind them.
    """
    name = captioned_pass(method, term)
    if method.passes[name].encode not in (full, visible):
        raise ValueError(
            f"losses.weights.{term} needs the encoder's own patches, but method {method.name} replaces some or has new "
            "blocks behind them; set it to 0"
        )
    return name


def with_values(method: Method, term: str) -> tuple[str, dict[str, Pass]]:
    """Returns the pass of `own_patches_pass`, and the method's passes, of which this one has the value read-out too."""
    name = own_patches_pass(method, term)
    return name, {**method.passes, name: method.passes[name]._replace(values=True)}


def patch_pass(method: Method, term: str) -> str:
    """Returns the first of the method's passes over the patches of a large crop, all or the visible ones.

    Raises ValueError that names the `term` which needs it for a method without such a pass.
    """
    names = [name for name, each in method.passes.items() if each.encode in (full, visible) and each.view != "local"]
    if not names:
        raise ValueError(
            f"losses.weights.{term} needs a pass over all or the visible patches of a large crop, which method "
            f"{method.name} lacks; set it to 0"
        )
    return names[0]


def at_seen(patches: Float[Array, "V B N D"], record: Forward, name: str) -> Float[Array, "V B K D"]:
    """Selects of all patches of a view those that the student's pass `name` sees: all, or the visible ones."""
    dropped = patches.shape[-2] != record.tokens[name].patches.shape[-2]
    return take(patches, record.hidden.kept) if dropped else patches


def cls_of(record: Forward, names: Sequence[str]) -> Float[Array, "V B D"]:
    """Concatenates the CLS tokens of the student's passes `names` along V."""
    return jnp.concatenate([record.tokens[name].cls for name in names])


def prototypes_of(networks: Networks, tokens: Float[Array, "V *batch D"]) -> Logits:
    """Computes the prototype logits of tokens of V views."""
    head = networks.prototype_head
    return Logits(fold(head.bottleneck, tokens), head.prototypes(), head.dtype)


def cls_head(names: Sequence[str], target: str) -> Head:
    """Head for eq. 6: prototype logits of the image encoders' CLS tokens (not the decoder's), student and teacher.

    The student's passes `names` are concatenated along V; passes over the teacher's views, if any, come first.
    """

    @uses("prototype_head")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Leaf]:
        targets = prototypes_of(teacher, record.targets[target].cls)
        return {
            "student_cls": prototypes_of(student, cls_of(record, names)),
            "teacher_cls": targets,
            "cls_mean": jax.lax.stop_gradient(targets.mean()),
        }

    return Head(("student_cls", "teacher_cls", "cls_mean"), run, passes=tuple(names))


def patch_head(target: str, over: str = "removed", name: str = "") -> Head:
    """Head for eq. 7: prototype logits of patches; the mean for the center runs over all patches of the teacher.

    `over` is "removed" for the decoded patches alone, or "all" for all N patches. These are then the student's tokens
    of the pass `name`, followed by the decoded tokens if that pass dropped the removed patches.
    """

    @uses("prototype_head")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Leaf]:
        targets = prototypes_of(teacher, record.targets[target].patches)
        hidden, tokens, places = record.hidden, record.decoded, record.hidden.removed
        if over == "all":
            tokens, places = record.tokens[name].patches, None
            if tokens.shape[-2] < hidden.mask.shape[-1]:  # the pass dropped the removed patches
                tokens = jnp.concatenate([tokens, record.decoded], -2)
                places = jnp.concatenate([hidden.kept, hidden.removed], -1)
        chosen = targets if places is None else targets.replace(bottleneck=take(targets.bottleneck, places))
        return {
            "student_patches": prototypes_of(student, tokens),
            "teacher_patches": chosen,
            "patch_mean": jax.lax.stop_gradient(targets.mean()),
        }

    return Head(("student_patches", "teacher_patches", "patch_mean"), run, reads=("decoded",))


def pixel_head(view: str, patch_size: int, normalise: bool, eps: float) -> Head:
    """Head for eq. 8: predicted pixels at removed patches, and their targets from the augmented, normalised view.

    `normalise` also normalises the targets per patch, with `eps`, see `patchify.normalise_patches`.
    """

    @uses("pixel_head")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        pixels = take(patchify(record.views[view].image, patch_size), record.hidden.removed)
        return {
            "predicted_pixels": fold(student.pixel_head, record.decoded),
            "target_pixels": normalise_patches(pixels, eps) if normalise else pixels,
        }

    return Head(("predicted_pixels", "target_pixels"), run, reads=("decoded",))


def byol_head(name: str, target: str) -> Head:
    """BYOL head: predictions from the student's pass `name`, and one target for all views from the pass `target`.

    BatchNorm statistics run over all student views together; the teacher's projector uses those of its own batch.
    """

    @uses("byol_projector", "byol_predictor")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        predict = lambda cls: student.byol_predictor(student.byol_projector(cls, True), True)  # noqa: E731
        project = lambda cls: teacher.byol_projector(cls, True)  # noqa: E731
        return {
            "predicted_byol": fold(predict, record.tokens[name].cls),
            "target_byol": jax.lax.stop_gradient(fold(project, record.targets[target].cls)),
        }

    return Head(("predicted_byol", "target_byol"), run)


def class_head(name: str) -> Head:
    """Classification head: class logits from the CLS tokens of the student's pass `name`."""

    @uses("class_head")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {"class_logits": fold(student.class_head, record.tokens[name].cls)}

    return Head(("class_logits",), run)


def ssl_head(name: str, over: Callable) -> Head:
    """SimCLR head: embeddings of the CLS tokens of the student's pass `name`.

    `over` is `loop` for BatchNorm statistics per view (SLIP) or `fold` for statistics over all views (A-CLIP).
    """

    @uses("ssl_head")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {"ssl": over(lambda cls: student.ssl_head(cls, True), record.tokens[name].cls)}

    return Head(("ssl",), run)


def simclr_term(temperature: float) -> Loss:
    """SimCLR loss term between the two views of an image, with the global batch as negatives."""

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        loss, accuracy = simclr.simclr_loss(record.heads["ssl"], temperature, whole_batch.axis, whole_batch.block)
        return loss, {"simclr_accuracy": accuracy}

    return Loss("simclr", ("ssl",), run, over="batch")


def byol_term() -> Loss:
    """BYOL loss term: the squared distance of unit vectors."""

    def run(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        return byol.byol_loss(record.heads["predicted_byol"], record.heads["target_byol"]), {}

    return Loss("byol", ("predicted_byol", "target_byol"), run)


def label_term(smoothing: float, mixed: bool) -> Loss:
    """Cross-entropy loss term with the batch's labels; examples without a label count as 0 in its mean.

    If images are mixed (mixup, CutMix), it is the mean of the losses of both labels, weighted by the images' shares.
    The accuracy is that of the whole batch.
    """

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        logits, batch = record.heads["class_logits"], record.batch
        label = jnp.broadcast_to(batch["label"], logits.shape[:-1])
        loss = labels.label_loss(logits, label, smoothing)
        if mixed:
            other = jnp.broadcast_to(batch["other_label"], logits.shape[:-1])
            loss = batch["share"] * loss + (1 - batch["share"]) * labels.label_loss(logits, other, smoothing)
        return loss.mean(), {"class_accuracy": labels.accuracy(logits, label, whole_batch.axis)}

    return Loss("labels", ("class_logits",), run, over="batch", labels=True)


def clip_term(pairs: str = "all", num_captions: int | None = None) -> Loss:
    """Image-text loss term, eq. 1-5, over "all" pairs of views and captions or those of "same" number.

    `num_captions` are the first captions of an image that it compares; None for all.
    """

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        scale, images = jnp.exp(record.heads["logit_scale"]), record.heads["image_embedding"]
        loss, accuracy = clip.clip_loss(
            images, record.text.embedding[:num_captions], scale, whole_batch.axis, whole_batch.block, pairs
        )
        return loss, {"clip_accuracy": accuracy, "logit_scale": scale}

    return Loss("clip", ("image_embedding", "logit_scale"), run, over="batch", contrast=True)


def cls_term(config: ConfigDict, same_views: bool = True) -> Loss:
    """CLS self-distillation loss term, eq. 6; `same_views` is False if no student view is one of the teacher's."""
    how = distillation.comparison(config)

    def run(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        target = distillation.Sharpening(context.running["cls"], context.temperatures["cls"])
        heads = record.heads
        return distillation.cls_loss(heads["student_cls"], heads["teacher_cls"], target, how, same_views)

    return Loss(
        "cls",
        ("student_cls", "teacher_cls"),
        run,
        running=Running("cls_mean", MEAN),
        temperature="teacher_temperature",
    )


def patch_term(config: ConfigDict, over: str = "removed") -> Loss:
    """Patch self-distillation loss term, eq. 7, over the patches of `patch_head`: the "removed" ones, or "all"."""
    how = distillation.comparison(config)

    def run(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        target = distillation.Sharpening(context.running["patch"], context.temperatures["patch"])
        heads, hidden = record.heads, None
        if over == "removed":
            hidden = jnp.take_along_axis(record.hidden.mask, record.hidden.removed, -1)  # False at fill entries
        return distillation.patch_loss(heads["student_patches"], heads["teacher_patches"], target, hidden, how)

    return Loss(
        "patch",
        ("student_patches", "teacher_patches"),
        run,
        running=Running("patch_mean", MEAN),
        temperature="patch_temperature",
    )


def reconstruction_term() -> Loss:
    """Pixel reconstruction loss term, eq. 8."""

    def run(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        return reconstruction.pixel_loss(record.heads["predicted_pixels"], record.heads["target_pixels"]), {}

    return Loss("reconstruction", ("predicted_pixels", "target_pixels"), run)
