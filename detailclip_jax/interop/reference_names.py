"""Parameter names and layouts of the DetailCLIP reference's state dict, and of SLIP's family, whose CLIP it extends.

The reference stores student and teacher in one state dict: `visual` and `visual_ema`, `transformer` and
`transformer_e`, `ibot_head` and `ibot_head_e`, `image_projection` and `image_projection_e`. A-CLIP has the same
encoders and its own heads.
"""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config import reference_preset
from detailclip_jax.interop.key_tables import COLUMN, LINEAR, SAME, TOKEN, Entry, Table, linear, norm, numbered
from detailclip_jax.interop.model_sizes import SLIP_HEADS, Shapes, Spec, Tower, num_blocks, shape_of
from detailclip_jax.interop.tensor_layout import TensorLayout
from detailclip_jax.interop.timm_names import vit, vit_block
from detailclip_jax.models.positions import sincos_positions

CLIP_TEXT = {
    "blocks": "transformer.resblocks",
    "positions": "positional_embedding",
    "token_embedding": "token_embedding.weight",
    "joint": "text_projection",
}


def text_block(path: str, key: str) -> list[Entry]:
    """A block of CLIP's transformer."""
    return [
        *norm(f"{path}/norm1", f"{key}.ln_1"),
        Entry(f"{path}/attn/qkv/kernel", f"{key}.attn.in_proj_weight", LINEAR),
        Entry(f"{path}/attn/qkv/bias", f"{key}.attn.in_proj_bias", SAME),
        *linear(f"{path}/attn/proj", f"{key}.attn.out_proj"),
        *norm(f"{path}/norm2", f"{key}.ln_2"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.c_fc"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.c_proj"),
    ]


def text_blocks(depth: int, key: str = "transformer") -> list[Entry]:
    """The blocks of the text encoder, which the reference averages."""
    return numbered(depth, text_block, "text", f"{key}.resblocks")


def text_ends() -> list[Entry]:
    """Embedding, positions and final norm of the text encoder, which the reference does not average."""
    return [
        Entry("text/token_embedding", "token_embedding.weight", SAME),
        Entry("text/positions", "positional_embedding", SAME),
        *norm("text/ln_final", "ln_final"),
    ]


def logit_scale() -> list[Entry]:
    """The logarithm of the inverse temperature, under CLIP's name."""
    return [Entry("logit_scale/value", "logit_scale", SAME)]


def projections(suffix: str = "") -> list[Entry]:
    """Both projections into the joint space (stored as (in, out), as here)."""
    return [
        Entry("image_projection/proj/kernel", f"image_projection{suffix}", SAME),
        Entry("text_projection/proj/kernel", f"text_projection{suffix}", SAME),
    ]


def decoder(depth: int) -> list[Entry]:
    """Decoder and pixel head; the decoder's sin-cos positions are constants in our code."""
    return [
        Entry("decoder/mask_token", "mask_token", TOKEN),
        *linear("decoder/embed", "decoder_embed"),
        *numbered(depth, vit_block, "decoder", "decoder_blocks"),
        *norm("decoder/norm", "decoder_norm"),
        *linear("pixel_head/proj", "reconstruction_pred"),
    ]


def prototype_head(key: str = "ibot_head") -> list[Entry]:
    """The head h; the reference stores its last layer, shared by CLS and patches, under two names."""
    mlp = [e for i in range(3) for e in linear(f"prototype_head/mlp_{i}", f"{key}.mlp.{2 * i}")]
    return [
        *mlp,
        Entry("prototype_head/gain", f"{key}.last_layer.weight_g", COLUMN),
        Entry("prototype_head/direction", f"{key}.last_layer.weight_v", SAME),
    ]


def clip(depth: int, text_depth: int) -> list[Entry]:
    """CLIP in SLIP's layout, which is also a subset of the DetailCLIP student."""
    return [*vit(depth, "visual."), *text_blocks(text_depth), *text_ends(), *projections(), *logit_scale()]


def student(depth: int, text_depth: int, decoder_depth: int) -> list[Entry]:
    """Every parameter of the DetailCLIP student."""
    return [*clip(depth, text_depth), *decoder(decoder_depth), *prototype_head()]


def teacher_towers(depth: int, text_depth: int) -> list[Entry]:
    """The averaged encoders with the student's text ends, as in the reference's EMA evaluation."""
    return [
        *vit(depth, "visual_ema."),
        *text_blocks(text_depth, "transformer_e"),
        *text_ends(),
        *projections("_e"),
    ]


def teacher(depth: int, text_depth: int) -> list[Entry]:
    """Every parameter of the DetailCLIP teacher."""
    return [*teacher_towers(depth, text_depth), *prototype_head("ibot_head_e")]


def ssl_head() -> list[Entry]:
    """SLIP's projection MLP."""
    linears = [e for i in range(3) for e in linear(f"ssl_head/linear_{i}", f"image_mlp.layer{i + 1}")]
    return [*linears, *(e for i in range(2) for e in norm(f"ssl_head/norm_{i}", f"image_mlp.bn{i + 1}"))]


def byol_head(path: str, key: str) -> list[Entry]:
    """BYOL's projector or predictor: Linear, BatchNorm, ReLU, Linear; the Linear layers have no bias."""
    kernels = [Entry(f"{path}/linear_{i}/kernel", f"{key}.{3 * i}.weight", LINEAR) for i in range(2)]
    return [*kernels, *norm(f"{path}/norm_0", f"{key}.1")]


def statistics(norms: Mapping[str, str]) -> list[Entry]:
    """Running statistics of BatchNorm layers; `norms` maps a path under "student" or "teacher" to a key."""
    kinds = {"mean": "running_mean", "variance": "running_var"}
    return [Entry(f"{a}/{path}", f"{b}.{key}", SAME) for a, b in norms.items() for path, key in kinds.items()]


def counters(norms: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The batch counters of PyTorch's BatchNorm layers, which have no effect."""
    return {f"{key}.num_batches_tracked": np.zeros((), np.int64) for key in norms.values()}


SLIP_NORMS = {f"student/ssl_head/norm_{i}": f"image_mlp.bn{i + 1}" for i in range(2)}
ACLIP_NORMS = SLIP_NORMS | {
    "student/byol_projector/norm_0": "im_proj_byol.1",
    "student/byol_predictor/norm_0": "im_pred_byol.1",
    "teacher/byol_projector/norm_0": "im_proj_byol_e.1",
}


def clip_table(spec: Spec) -> Table:
    """A CLIP checkpoint."""
    return Table(clip(spec.size.depth, spec.size.text_depth))


def slip_table(spec: Spec) -> Table:
    """A SLIP checkpoint."""
    params = [*clip(spec.size.depth, spec.size.text_depth), *ssl_head()]
    return Table(params, batch_stats=statistics(SLIP_NORMS), counters=counters(SLIP_NORMS))


def aclip_table(spec: Spec) -> Table:
    """An A-CLIP checkpoint: student and teacher."""
    depths = spec.size.depth, spec.size.text_depth
    heads = [*byol_head("byol_projector", "im_proj_byol"), *byol_head("byol_predictor", "im_pred_byol")]
    return Table(
        [*clip(*depths), *ssl_head(), *heads],
        [*teacher_towers(*depths), *byol_head("byol_projector", "im_proj_byol_e")],
        statistics(ACLIP_NORMS),
        counters=counters(ACLIP_NORMS),
    )


def detailclip_table(spec: Spec) -> Table:
    """A DetailCLIP checkpoint: student and teacher, the last layer twice, and the decoder's fixed positions."""
    size = spec.size
    last = [(head, part) for head in ("ibot_head", "ibot_head_e") for part in ("weight_g", "weight_v")]
    side = spec.image_size // size.patch_size
    return Table(
        student(size.depth, size.text_depth, size.decoder_depth),
        teacher(size.depth, size.text_depth),
        copies={f"{head}.last_layer2.{part}": f"{head}.last_layer.{part}" for head, part in last},
        constants={"decoder_pos_embed": sincos_positions(size.width, side)[None]},
    )


def detailclip_heads(shapes: Shapes) -> dict[str, int]:
    """Sizes of the reference's decoder and prototype head."""
    prototypes, bottleneck_width = shape_of(shapes, "ibot_head.last_layer.weight_v", 2)
    return {
        "decoder_depth": num_blocks(shapes, "decoder_blocks"),
        "head_width": shape_of(shapes, "ibot_head.mlp.0.weight", 2)[0],
        "bottleneck_width": bottleneck_width,
        "prototypes": prototypes,
    }


def slip_heads(shapes: Shapes) -> dict[str, int]:
    """Sizes of SimCLR's head; BYOL's heads have the same widths."""
    ssl_output, ssl_width = shape_of(shapes, "image_mlp.layer3.weight", 2)
    return {"ssl_width": ssl_width, "ssl_output": ssl_output}


def published_aclip(config: ConfigDict) -> ConfigDict:
    """Sets the choices of A-CLIP's code: masks in cells of 2 x 2 patches, bilinear crops."""
    config.masking.granularity = "cell2x2"
    config.views.crops.large.filter = "bilinear"
    return config


CLIP = TensorLayout(
    "clip",
    "clip",
    ("visual.cls_token", "image_projection"),
    Tower("visual.patch_embed.proj.weight", "visual.pos_embed", "visual.blocks"),
    clip_table,
    CLIP_TEXT,
    heads=SLIP_HEADS,
)
SLIP = CLIP._replace(
    name="slip",
    method="slip",
    marks=("visual.cls_token", "image_mlp.layer1.weight"),
    table=slip_table,
    measure_heads=slip_heads,
    crops={"clean": {}},
)
ACLIP = SLIP._replace(
    name="aclip",
    method="aclip",
    marks=("visual_ema.cls_token", "im_proj_byol_e.0.weight"),
    table=aclip_table,
    crops={"enclosing": {"kind": "enclosing"}},
    published=published_aclip,
    keeps_mask_ratio=True,
)
REFERENCE = CLIP._replace(
    name="reference",
    method="detailclip",
    marks=("visual_ema.cls_token", "ibot_head_e.mlp.0.weight"),
    table=detailclip_table,
    measure_heads=detailclip_heads,
    published=reference_preset,
    keeps_mask_ratio=True,
)
