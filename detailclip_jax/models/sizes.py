"""The table of model sizes, and the construction of the networks from a config."""

from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.models.attention import choose_kernel
from detailclip_jax.models.batch_norm import BatchNormMlp
from detailclip_jax.models.decoder import Decoder
from detailclip_jax.models.heads import ClassHead, LogitScale, MaskToken, PixelHead, Projection, PrototypeHead
from detailclip_jax.models.text import TextTransformer
from detailclip_jax.models.towers import Networks
from detailclip_jax.models.vit import Style, VisionTransformer
from detailclip_jax.types import Axis


class Size(NamedTuple):
    """Widths and depths of all networks.

    ViT-S follows MoCo v3 (12 heads); the text encoder is CLIP's, as in all methods of SLIP's family.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    joint_width: int = 512
    decoder_depth: int = 1
    decoder_heads: int = 16
    head_width: int = 2048
    bottleneck_width: int = 256
    prototypes: int = 8192
    ssl_width: int = 4096
    ssl_output: int = 256


SIZES = {
    "tiny": Size(8, 96, 3, 4, 64, 2, 4, 64, 1, 4, 256, 64, 256, 128, 64),
    "S/16": Size(16, 384, 12, 12),
    "B/32": Size(32, 768, 12, 12),
    "B/16": Size(16, 768, 12, 12),
    "L/16": Size(16, 1024, 24, 16),
}


CUSTOM = "custom"


def size_named(name: str) -> Size:
    """Returns the size `name` of the table; ValueError with the known names if there is none."""
    if name not in SIZES:
        raise ValueError(f"model.size {name!r} is unknown; known: {', '.join(SIZES)}, {CUSTOM}")
    return SIZES[name]


def size_of(model: ConfigDict) -> Size:
    """Returns the size of `config.model`: one of the table, or one with the fields given in `model.custom`.

        model.size, model.custom = "custom", {"patch_size": 14, "width": 1024, "depth": 24, "num_heads": 16}

    Raises ValueError with the names of missing or unknown fields.
    """
    if model.size != CUSTOM:
        return size_named(model.size)
    given, known = set(model.custom), set(Size._fields)
    missing = known - given - set(Size._field_defaults)
    if missing or given - known:
        raise ValueError(
            f"model.custom lacks {sorted(missing)} and has unknown {sorted(given - known)}; its fields are "
            f"{', '.join(Size._fields)}"
        )
    return Size(**model.custom.to_dict())


def num_side_patches(model: ConfigDict) -> int:
    """Returns the number of patches per image side; ValueError if the patch size does not divide the image size."""
    patch_size = size_of(model).patch_size
    if model.image_size % patch_size:
        below = model.image_size // patch_size * patch_size
        raise ValueError(
            f"model.image_size {model.image_size} is not a multiple of the patch size {patch_size} of "
            f"{model.size}; the nearest multiples are {below} and {below + patch_size}"
        )
    return model.image_size // patch_size


def build(
    model: ConfigDict, parts: tuple[str, ...], axis: Axis | None = None, interpolation: str = "bicubic"
) -> Networks:
    """Builds the networks of `config.model` that `parts` names.

    `axis` is the mesh axis over which BatchNorm averages its statistics, None if each device has the whole batch.
    `interpolation` selects the interpolation of positions for images of another size, see `positions.RECIPES`.
    """
    makers = {
        "image": lambda model, size, dtype: _image(model, size, dtype, interpolation),
        "image_projection": _projection,
        "text": _text,
        "text_projection": _projection,
        "logit_scale": lambda *_: LogitScale(),
        "decoder": _decoder,
        "pixel_head": _pixel_head,
        "prototype_head": _prototype_head,
        "mask_token": lambda _, size, __: MaskToken(size.width),
        "ssl_head": lambda _, size, dtype: _ssl_head(size, axis, dtype),
        "byol_projector": lambda _, size, dtype: _byol_projector(size, axis, dtype),
        "byol_predictor": lambda _, size, dtype: _byol_projector(size, axis, dtype),
        "class_head": _class_head,
    }
    size, dtype = size_of(model), jnp.dtype(model.dtype)
    num_side_patches(model)
    return Networks(**{part: makers[part](model, size, dtype) for part in parts})


def _image(model: ConfigDict, size: Size, dtype: jnp.dtype, interpolation: str) -> VisionTransformer:
    style = Style(**model.image_style)
    return VisionTransformer(
        size.patch_size,
        size.width,
        size.depth,
        size.num_heads,
        model.image_size,
        dtype,
        model.remat,
        style,
        model.drop_path,
        choose_kernel(model.attention, dtype, size.width // size.num_heads),
        model.scan,
        interpolation,
    )


def _text(model: ConfigDict, size: Size, dtype: jnp.dtype) -> TextTransformer:
    return TextTransformer(
        size.text_width,
        size.text_depth,
        size.text_heads,
        model.context_length,
        model.vocab_size,
        dtype,
        model.remat,
        model.text_activation,
        choose_kernel(model.attention, dtype, size.text_width // size.text_heads),
        model.scan,
    )


def _projection(model: ConfigDict, size: Size, dtype: jnp.dtype) -> Projection:
    return Projection(size.joint_width, dtype)


def _decoder(model: ConfigDict, size: Size, dtype: jnp.dtype) -> Decoder:
    width, depth = model.decoder_width or size.width, model.decoder_depth or size.decoder_depth
    mae = model.image_style.init == "xavier"
    return Decoder(
        width,
        depth,
        size.decoder_heads,
        num_side_patches(model),
        dtype,
        model.remat,
        mae,
        choose_kernel(model.attention, dtype, width // size.decoder_heads),
        model.scan,
    )


def _pixel_head(model: ConfigDict, size: Size, dtype: jnp.dtype) -> PixelHead:
    return PixelHead(3 * size.patch_size**2, dtype, model.image_style.init == "xavier")


def _class_head(model: ConfigDict, size: Size, dtype: jnp.dtype) -> ClassHead:
    if not model.num_classes:
        raise ValueError("model.num_classes is not set; the class head of this method requires it")
    return ClassHead(model.num_classes, dtype)


def _prototype_head(model: ConfigDict, size: Size, dtype: jnp.dtype) -> PrototypeHead:
    return PrototypeHead(size.head_width, size.bottleneck_width, model.prototypes or size.prototypes, dtype)


def _ssl_head(size: Size, axis: Axis | None, dtype: jnp.dtype) -> BatchNormMlp:
    return BatchNormMlp((size.ssl_width, size.ssl_width, size.ssl_output), True, axis, dtype)


def _byol_projector(size: Size, axis: Axis | None, dtype: jnp.dtype) -> BatchNormMlp:
    return BatchNormMlp((size.ssl_width, size.ssl_output), False, axis, dtype)
