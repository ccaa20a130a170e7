"""Parameter names and layouts of Perception Encoder (PE-Core, PE-Spatial): of its own code, of open_clip and of timm.

Rotary positions turn two neighbouring channels of a head there, and channels i and i + d / 2 here, so the rows of
queries and keys are in another order. They have no tensors. Names of timm are converted to those of PE's code.
"""

from functools import partial
from typing import Any

import numpy as np

from detailclip_jax.interop.key_tables import (
    CONV,
    LINEAR,
    SAME,
    TOKEN,
    Entry,
    StateDict,
    Table,
    Transform,
    linear,
    norm,
    numbered,
)
from detailclip_jax.interop.model_sizes import HEADS, Shapes, Spec, Tower
from detailclip_jax.interop.reference_names import CLIP_TEXT, logit_scale, text_blocks, text_ends
from detailclip_jax.interop.tensor_layout import TensorLayout
from detailclip_jax.interop.timm_names import join_pool
from detailclip_jax.models.vit import Style

OF_TIMM = {  # parts of names, one after the other
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "cls_token": "class_embedding",
    "attn_pool.norm": "attn_pool.layernorm",
    "attn_pool.latent": "attn_pool.probe",
    "attn_pool.proj": "attn_pool.attn.out_proj",
    "norm_pre": "ln_pre",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "blocks.": "transformer.resblocks.",
}
CORE_STYLE = Style(
    norm_eps=1e-5,
    pre_norm=True,
    patch_bias=False,
    pooling="attention_with_cls",
    positions="learnt_rotary",
    pool_heads=8,
)


def order(tensor: np.ndarray, num_heads: int, theirs: bool) -> np.ndarray:
    """Orders the rows of queries and keys for rotary positions as we have them, or as PE's code has (`theirs`)."""
    rows = tensor.reshape(3, num_heads, *((2, -1) if theirs else (-1, 2)), *tensor.shape[1:])
    query_key = rows[:2].swapaxes(2, 3).reshape(-1, *tensor.shape[1:])
    return np.concatenate([query_key, tensor[len(query_key) :]])


def block(num_heads: int, path: str, key: str) -> list[Entry]:
    """A block whose attention has `num_heads`."""
    into, out = partial(order, num_heads=num_heads, theirs=False), partial(order, num_heads=num_heads, theirs=True)
    kernel = Transform(lambda x: into(x).T, lambda x: out(np.transpose(x)))
    return [
        *norm(f"{path}/norm1", f"{key}.ln_1"),
        Entry(f"{path}/attn/qkv/kernel", f"{key}.attn.in_proj_weight", kernel),
        Entry(f"{path}/attn/qkv/bias", f"{key}.attn.in_proj_bias", Transform(into, out)),
        *linear(f"{path}/attn/proj", f"{key}.attn.out_proj"),
        *norm(f"{path}/norm2", f"{key}.ln_2"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.c_fc"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.c_proj"),
    ]


def image(spec: Spec, key: str) -> list[Entry]:
    """The image encoder, whose names begin with `key`."""
    pool = [
        Entry("image/pool/probe", f"{key}attn_pool.probe", TOKEN),
        Entry("image/pool/attn/qkv/kernel", f"{key}attn_pool.attn.in_proj_weight", LINEAR),
        Entry("image/pool/attn/qkv/bias", f"{key}attn_pool.attn.in_proj_bias", SAME),
        *linear("image/pool/attn/proj", f"{key}attn_pool.attn.out_proj"),
        *norm("image/pool/norm", f"{key}attn_pool.layernorm"),
        *linear("image/pool/mlp/fc1", f"{key}attn_pool.mlp.c_fc"),
        *linear("image/pool/mlp/fc2", f"{key}attn_pool.mlp.c_proj"),
    ]
    return [
        *([Entry("image/cls_token", f"{key}class_embedding", SAME)] if spec.style.num_cls else []),
        Entry("image/positions", f"{key}positional_embedding", SAME),
        Entry("image/patch_embed/kernel", f"{key}conv1.weight", CONV),
        *norm("image/pre_norm", f"{key}ln_pre"),
        *numbered(spec.size.depth, partial(block, spec.size.num_heads), "image", f"{key}transformer.resblocks"),
        *(norm("image/norm", f"{key}ln_post") if spec.style.final_norm else []),
        *(pool if spec.style.has_pool else []),
    ]


def image_table(spec: Spec) -> Table:
    """An image encoder alone."""
    return Table(image(spec, ""))


def table(spec: Spec) -> Table:
    """Both encoders."""
    projections = {"image": "visual.proj", "text": "text_projection"}
    return Table(
        [
            *image(spec, "visual."),
            *text_blocks(spec.size.text_depth),
            *text_ends(),
            *(Entry(f"{name}_projection/proj/kernel", key, SAME) for name, key in projections.items()),
            *logit_scale(),
        ]
    )


def from_timm(tensors: StateDict, trunk: str, to: str) -> StateDict:
    """Weights whose image encoder has timm's names behind `trunk`, with the names of PE's code behind `to`.

    Raises ValueError for a projection of images with a bias other than 0, which PE's code has not.
    """
    weights: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        if not key.startswith(trunk):
            weights[key.removeprefix("text.")] = value
            continue
        name = key.removeprefix(trunk)
        for theirs, ours in OF_TIMM.items():
            name = name.replace(theirs, ours)
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        if key.endswith(("cls_token", "pos_embed")):
            value = value.reshape(value.shape[1:] if key.endswith("pos_embed") else -1)
        weights[to + name] = value
    join_pool(weights, f"{to}attn_pool", f"{to}attn_pool.attn")
    if to and (projection := weights.pop(f"{to}head.weight", None)) is not None:
        weights[f"{to}proj"] = projection.T
        if np.any(weights.pop(f"{to}head.bias", np.zeros(1))):
            raise ValueError(f"{trunk}head.bias differs from 0, its only supported value")
    return weights


def heads(shapes: Shapes) -> dict[str, Any]:
    """The heads of text encoders, of width 64."""
    width = next((shapes[key][-1] for key in ("ln_final.weight", "text.ln_final.weight") if key in shapes), 0)
    return {"text_heads": max(width // 64, 1)} if width else {}


CORE = TensorLayout(
    "pe",
    "clip",
    ("visual.attn_pool.probe", "visual.class_embedding"),
    Tower("visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks"),
    table,
    CLIP_TEXT,
    heads=HEADS | {1536: 16},
    style=CORE_STYLE,
    text_activation="gelu",
    mlps={"mlp_width": "visual.transformer.resblocks.0.mlp.c_proj.weight"},
    stated=heads,
    normalisation="half",
    resize="squash",
    interpolation="bilinear",
    read_only=True,
    drops=("attn_mask",),
)
OPEN_CLIP = CORE._replace(
    name="open_clip",
    marks=("visual.trunk.attn_pool.latent", "visual.trunk.cls_token", "visual.trunk.norm_pre.weight"),
    prepare=partial(from_timm, trunk="visual.trunk.", to="visual."),
)
TIMM = CORE._replace(
    name="timm",
    method="image_encoder",
    marks=("attn_pool.latent", "cls_token", "norm_pre.weight"),
    tower=Tower("conv1.weight", "positional_embedding", "transformer.resblocks"),
    table=image_table,
    text=None,
    mlps={"mlp_width": "transformer.resblocks.0.mlp.c_proj.weight"},
    prepare=partial(from_timm, trunk="", to=""),
    drops=(r"head\..*",),
)
SPATIAL = TIMM._replace(
    name="pe",
    marks=("conv1.weight", "ln_pre.weight", "class_embedding"),
    lacks=("ln_post.weight",),
    style=CORE_STYLE._replace(pooling="cls", pool_heads=0, final_norm=False),
    prepare=lambda tensors: tensors,
)
LAYOUTS = (
    *(CORE, OPEN_CLIP, TIMM),
    *(
        layout._replace(
            marks=tuple(mark for mark in layout.marks if not mark.endswith(("class_embedding", "cls_token"))),
            tower=layout.tower._replace(num_cls=0),
            style=CORE_STYLE._replace(pooling="attention"),
        )
        for layout in (CORE, OPEN_CLIP, TIMM)  # G/14
    ),
    SPATIAL,
    SPATIAL._replace(
        marks=tuple(f"visual.{mark}" for mark in SPATIAL.marks),
        lacks=("visual.ln_post.weight",),
        prepare=lambda tensors: {key.removeprefix("visual."): value for key, value in tensors.items()},
    ),
    SPATIAL._replace(
        name="timm",
        marks=("cls_token", "norm_pre.weight", "pos_embed"),
        lacks=("norm.weight", "fc_norm.weight"),
        prepare=TIMM.prepare,
    ),
)
