"""A frozen, trained teacher as a term of other methods: `losses.weights.distill`, `distill.teacher`.

The student's class token and patches, through one linear map, come near those of another image encoder. Equation:
`losses.distill`. The teacher is the image encoder of any run or import; its sizes and preprocessing are those of
its own config, which `adopted_config.adopt` copies to `distill.record`. It is a network of the method: its parameters
are frozen (no gradient, no moments, no moving average), sharded as the student's, and saved with them, so that a run
resumes without the teacher's folder.

The teacher sees the student's crop: the same pixels, resampled to its own size (or `distill.size`) and normalised by
its own mean and deviation. Its map is resampled to the student's patches, before the cosine. A student that drops
patches is compared at those that it sees. Further class tokens and registers of the teacher are not used. TIPSv2 finds
that such a student matches patches with words better than its teacher; its loss compares prototypes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import fields, sizes, stored_fields
from detailclip_jax.losses.distill import token_cosine_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, Saved, fold, uses
from detailclip_jax.models.heads import Projection
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.types import Array, Float, Params, Scalar

TEACHER, MAP = "distill_teacher", "distill_map"  # networks of the term
OF_TEACHER = {  # the fields of its config that are read, by group
    "model": ("size", "custom", "image_size", "image_style", "class_tokens", "interpolation"),
    "preprocess": ("filter", "mean", "std"),
}
RESIZING = {"bilinear": "linear", "bicubic": "cubic"}  # filters of `preprocess`, as jax names them


def distill(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the method's `components.patch_pass`.

    Raises ValueError for a method without such a pass, for a `distill.size` that is no whole number of the teacher's
    patches, and for a teacher whose fields are not in `distill.record`.
    """
    name = components.patch_pass(method, "distill")
    head = tokens_head(name, method.passes[name].view, config)
    return method.plus((head,), Loss("distill", MADE, distill_term))


def record_of(config: ConfigDict) -> ConfigDict:
    """Returns `distill.record` of a run whose teacher has this config: sizes, and how pixels are prepared."""
    return ConfigDict({group: {name: config[group][name] for name in names} for group, names in OF_TEACHER.items()})


def teacher_config(config: ConfigDict) -> ConfigDict:
    """Returns the groups `model` and `preprocess` of the teacher.

    The dtype, the memory saved and the stacking of blocks are those of the student. Raises ValueError if
    `distill.record` is empty.
    """
    record = config.distill.record.to_dict()
    if not record:
        raise ValueError(
            f"distill.teacher {config.distill.teacher!r}: its sizes are not in distill.record; call "
            "training.adopted_config.adopt(config) first, as main does"
        )
    read = {group: {name: fields.GROUPS[group].get(name) for name in names} for group, names in OF_TEACHER.items()}
    declared = {group: {name: field for name, field in table.items() if field} for group, table in read.items()}
    stored_fields.complete(record, {**declared, "model.image_style": fields.IMAGE_STYLE})
    model = {**config.model.to_dict(), **record["model"], "drop_path": 0.0}
    return ConfigDict({"model": model, "preprocess": record["preprocess"]})


def adopt_teacher(
    config: ConfigDict, running: ConfigDict | None, config_of: Callable[[str, str], ConfigDict]
) -> ConfigDict:
    """Returns the config with the fields of the frozen teacher, `distill.record`.

    `running` is the config of the run that goes on, if there is one: it has these fields, and the teacher's folder need
    not exist any more. `config_of` reads the config of a workdir, which the dotted field of its second argument names.
    Raises ValueError for fields of the teacher without the term, and for the term without a teacher.
    """
    if not config.losses.weights.distill:
        for name in ("teacher", "size"):
            if value := config.distill[name]:
                raise ValueError(
                    f"distill.{name} {value!r} is read by a term of weight 0; set --config.losses.weights.distill=1, "
                    "or leave it out"
                )
        return config
    folder, config = config.distill.teacher, ConfigDict(config.to_dict())
    if not folder:
        raise ValueError("losses.weights.distill needs a frozen teacher: give --config.distill.teacher=WORKDIR")
    if running is not None and running.distill.teacher == folder:
        config.distill.record = running.distill.record
    else:
        config.distill.record = record_of(config_of(folder, "config.distill.teacher"))
    return config


def stand_in(config: ConfigDict) -> ConfigDict | None:
    """Returns the config with a teacher of the student's sizes, if the term has a weight and no teacher, else None."""
    if not config.losses.weights.distill or config.distill.teacher:
        return None
    config = ConfigDict(config.to_dict())
    config.distill.record = record_of(config)
    return config


def load_teacher(config: ConfigDict, saved: Saved) -> tuple[dict[str, Params], list[str]]:
    """Returns the weights of the frozen teacher from its workdir, and lines that describe it.

    They are those by which the teacher's own method is evaluated. `saved` reads a workdir: its variables, its config,
    and the networks that its method averages for evaluation.
    """
    folder = config.distill.teacher
    variables, source, which = saved(folder)
    averaged = variables["ema_params"] if which == "ema" else {}
    size, seen = sizes.size_of(teacher_config(config).model), input_size(config)
    colours = config.distill.record.preprocess
    mean, std = (" ".join(f"{number:.4g}" for number in colours[each]) for each in ("mean", "std"))
    lines = [
        f"frozen teacher {folder} ({source.method}, {source.model.size}, {'ema' if averaged else 'student'})",
        f"  sees          {seen} px ({colours.filter}), mean {mean}, std {std}",
        f"  gives         {seen // size.patch_size} x {seen // size.patch_size} patches of width {size.width}",
    ]
    return {TEACHER: {**variables["params"], **averaged}["image"]}, lines


def input_size(config: ConfigDict) -> int:
    """Returns the pixels along a side of the teacher's input; ValueError if they are not whole patches."""
    model = teacher_config(config).model
    size = config.distill.size or model.image_size
    sizes.whole_patches("distill.size", size, sizes.size_of(model).patch_size)
    return size


def tokens_head(name: str, view: str, config: ConfigDict) -> Head:
    """Head of the mapped tokens of the student's pass `name` over `view`, and of the teacher's at the same places."""
    teacher, size = teacher_config(config), input_size(config)
    side = config.views.crops[view].size // sizes.size_of(config.model).patch_size
    preprocess, width = teacher.preprocess, sizes.size_of(teacher.model).width
    networks = {
        TEACHER: frozen_encoder(teacher.model),
        MAP: Network(lambda build: Projection(width, build.dtype, use_bias=True), loaded_by_term=True),
    }

    @uses(**networks)
    def run(student: Networks, _: Networks, record: Forward) -> dict[str, Array]:
        tokens = record.tokens[name]
        pixels = jnp.moveaxis(record.batch["image"][view], 1, 0)
        images = normalise_pixels(resampled(pixels, size, preprocess.filter), preprocess.mean, preprocess.std)
        target = jax.lax.stop_gradient(fold(getattr(student, TEACHER), images))
        patches = components.at_seen(on_grid(target.patches, side), record, name)
        mapped = (fold(getattr(student, MAP), x) for x in (tokens.cls, tokens.patches))
        return dict(zip(MADE, (*mapped, target.cls, patches), strict=True))

    return Head(MADE, run)


MADE = ("distill_cls", "distill_patches", "distill_cls_target", "distill_patches_target")


def frozen_encoder(model: ConfigDict) -> Network:
    """Describes an image encoder of the sizes in `model`, none of whose parameters is trained."""
    image = NETWORKS["image"]

    def make(build: Build) -> nn.Module:
        return image.make(build._replace(model=model, size=sizes.size_of(model)))

    return image._replace(make=make, frozen={".*": ""}, adopted=(), loaded_by_term=True)


def resampled(pixels: Array, size: int, filter: str) -> Float[Array, "V B size size 3"]:
    """Resamples pixels from 0 to 255 as Pillow does, without its rounding; pixels of this size stay as they are."""
    pixels = pixels.astype(jnp.float32)
    if pixels.shape[-2] == size:
        return pixels
    shape = (*pixels.shape[:2], size, size, 3)
    return jnp.clip(jax.image.resize(pixels, shape, RESIZING[filter]), 0, 255)


def on_grid(patches: Float[Array, "V B N D"], side: int) -> Float[Array, "V B M D"]:
    """Resamples a square map of patches to `side` x `side`, bilinearly; a finer map is averaged (antialiased)."""
    old = round(patches.shape[-2] ** 0.5)
    patches = patches.astype(jnp.float32)
    if old == side:
        return patches
    grid = patches.reshape(*patches.shape[:2], old, old, -1)
    shape = (*grid.shape[:2], side, side, grid.shape[-1])
    return jax.image.resize(grid, shape, "linear").reshape(*shape[:2], side**2, -1)


def distill_term(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the distances of class tokens and of patches, a mean over images; logs both."""
    cls, patches, cls_target, patches_target = (record.heads[name] for name in MADE)
    losses = token_cosine_loss(cls, cls_target), token_cosine_loss(patches, patches_target)
    return losses[0] + losses[1], {"distill_cls": losses[0], "distill_patches": losses[1]}
