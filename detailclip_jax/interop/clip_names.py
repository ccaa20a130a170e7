"""Parameter names and layouts of OpenAI's CLIP, Long-CLIP, open_clip, OpenVision, COSMOS and FLAIR."""

import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.fields import AT_LAST
from detailclip_jax.data.tokenizer import PAD
from detailclip_jax.interop.key_tables import (
    CONV,
    LINEAR,
    SAME,
    Entry,
    StateDict,
    Table,
    cross_pool,
    linear,
    norm,
    numbered,
    within,
)
from detailclip_jax.interop.model_sizes import Spec, Tower
from detailclip_jax.interop.reference_names import CLIP_TEXT, logit_scale, text_block, text_blocks, text_ends
from detailclip_jax.interop.tensor_layout import GELUS, WITH_CLS, TensorLayout
from detailclip_jax.interop.timm_names import OPENAI_STYLE, vit
from detailclip_jax.models.positions import KEPT
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.models.vit import Style

BERT_CLS = 101  # the id of [CLS] in BERT's vocabulary
OPENVISION_LENGTH = 80  # tokens of a text
POSITIONS, LATER_POSITIONS = "positional_embedding", "positional_embedding_res"  # of texts
COSMOS_PARTS = COSMOS_STUDENT, COSMOS_TEACHER = "student", "teacher"
COSMOS_UNUSED = (
    r"(logit|distill_logit)_scale",
    r"(image|text)_token_mapping\..*",
    r"(.*[._])?attn_cross_pool\..*",
)  # tensors of the teacher
FLAIR_IMAGE_PROJECTION, FLAIR_TEXT_PROJECTION, FLAIR_POOL = "image_post.proj", "text_post.proj", "visual_proj"


def image(depth: int, projection: str = "visual.proj", pre_norm: bool = True) -> list[Entry]:
    """CLIP's own ViT: norms before and after the blocks, a patch embedding without bias."""
    return [
        Entry("image/cls_token", "visual.class_embedding", SAME),
        Entry("image/positions", "visual.positional_embedding", SAME),
        Entry("image/patch_embed/kernel", "visual.conv1.weight", CONV),
        *(norm("image/pre_norm", "visual.ln_pre") if pre_norm else []),
        *numbered(depth, text_block, "image", "visual.transformer.resblocks"),
        *norm("image/norm", "visual.ln_post"),
        Entry("image_projection/proj/kernel", projection, SAME),
    ]


def text(depth: int, projection: str = "text_projection") -> list[Entry]:
    """The text encoder and its projection."""
    return [
        *text_blocks(depth),
        *text_ends(),
        Entry("text_projection/proj/kernel", projection, SAME),
        *logit_scale(),
    ]


def clip_table(spec: Spec) -> Table:
    """OpenAI's CLIP with a ViT."""
    return Table([*image(spec.size.depth), *text(spec.size.text_depth)])


def joined_positions(tensors: StateDict) -> StateDict:
    """Long-CLIP's weights with one table of text positions: the first rows of one, the later rows of the other.

    Raises ValueError if the second table is missing, or has another shape.
    """
    weights = dict(tensors)
    if LATER_POSITIONS not in weights:
        raise ValueError(f"there is no {LATER_POSITIONS}, Long-CLIP's second table of text positions")
    later, first = weights.pop(LATER_POSITIONS), weights.get(POSITIONS)
    if first is None:  # the check of the names reports it
        return weights
    if first.shape != later.shape:
        raise ValueError(f"{POSITIONS} has shape {first.shape}, but {LATER_POSITIONS} {later.shape}")
    return weights | {POSITIONS: np.concatenate([first[:KEPT], later[KEPT:]])}


def openvision_table(spec: Spec) -> Table:
    """OpenVision 1, as its authors converted it for open_clip."""
    return Table([*image(spec.size.depth, pre_norm=False), *text(spec.size.text_depth)])


def without_last_token(tensors: StateDict) -> StateDict:
    """OpenVision's weights for texts that end with padding: every text there ends with [CLS], at the last position.

    Its embedding, less that of padding, is added to the position.  Raises ValueError for texts of another length: CLIPA
    has the same names, and other texts.
    """
    words, positions = (np.asarray(tensors.get(key, 0), np.float32) for key in ("token_embedding.weight", POSITIONS))
    if words.ndim != 2 or positions.ndim != 2 or len(words) <= BERT_CLS:  # the check of the names reports it
        return tensors
    if len(positions) != OPENVISION_LENGTH:
        raise ValueError(
            f"{POSITIONS} has {len(positions)} rows; OpenVision has {OPENVISION_LENGTH}; CLIPA is not read"
        )
    return {**tensors, POSITIONS: np.vstack([positions[:-1], positions[-1:] + words[BERT_CLS] - words[PAD]])}


def timm_tower_table(spec: Spec) -> Table:
    """open_clip with a timm ViT as image encoder and a linear projection."""
    projection = Entry("image_projection/proj/kernel", "visual.head.proj.weight", LINEAR)
    return Table([*vit(spec.size.depth, "visual.trunk."), projection, *text(spec.size.text_depth)])


def cosmos_heads() -> list[Entry]:
    """Token mappings, pools and the second scale. Image crops attend to words, texts to patches."""
    return [
        *linear("word_projection/proj", "text_token_mapping"),
        *linear("patch_projection/proj", "image_token_mapping"),
        *cross_pool("image_pool", "text_attn_cross_pool"),
        *cross_pool("text_pool", "visual.attn_cross_pool"),
        Entry("distill_scale/value", "distill_logit_scale", SAME),
    ]


def cosmos_table(spec: Spec) -> Table:
    """A COSMOS checkpoint: the state dicts "student" and "teacher", each with all of open_clip's names and the pools.

    Here the teacher has the encoders and their projections; its copies of the pools, token mappings and scales, which
    nothing uses, are the student's in an export.
    """
    clip = [*image(spec.size.depth), *text(spec.size.text_depth)]
    teacher = [entry for entry in clip if entry.path != "logit_scale/value"]
    rest = {entry.key for entry in (*clip, *cosmos_heads())} - {entry.key for entry in teacher}
    return Table(
        within(COSMOS_STUDENT, [*clip, *cosmos_heads()]),
        within(COSMOS_TEACHER, teacher),
        echoes={f"{COSMOS_TEACHER}.{key}": f"{COSMOS_STUDENT}.{key}" for key in sorted(rest)},
    )


def flair_table(spec: Spec) -> Table:
    """A FLAIR checkpoint.  One projection is for patches and CLS token; the pool's zero key has no parameter."""
    return Table(
        [
            *image(spec.size.depth, FLAIR_IMAGE_PROJECTION),
            *text(spec.size.text_depth, FLAIR_TEXT_PROJECTION),
            Entry("logit_bias/value", "logit_bias", SAME),
            *cross_pool("caption_pool", FLAIR_POOL, norms="qkv"),
        ]
    )


def published_cosmos(config: ConfigDict) -> ConfigDict:
    """Sets the captions that the method needs: two of several sentences, six of one."""
    config.data.caption = "crops"
    return config


def published_flair(config: ConfigDict) -> ConfigDict:
    """Sets the captions that the method needs: several of one to three sentences each."""
    config.data.caption = "diverse"
    return config


TEXT_MLP = {"text_mlp_width": "transformer.resblocks.0.mlp.c_proj.weight"}
OPENAI = TensorLayout(
    "openai",
    "clip",
    ("visual.class_embedding", "visual.ln_pre.weight", "input_resolution"),
    Tower("visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks"),
    clip_table,
    CLIP_TEXT,
    style=OPENAI_STYLE,
    normalisation="clip",
    filter="bicubic",
    drops=("input_resolution", "context_length", "vocab_size", r"(.*\.)?attn_mask"),  # in OpenAI's archives
)
LONGCLIP = OPENAI._replace(
    name="longclip",
    marks=("visual.class_embedding", "visual.ln_pre.weight", LATER_POSITIONS),
    prepare=joined_positions,
    read_only=True,
)
OPEN_CLIP = OPENAI._replace(
    name="open_clip",
    marks=("visual.class_embedding", "visual.ln_pre.weight"),
    mlps={"mlp_width": "visual.transformer.resblocks.0.mlp.c_proj.weight", **TEXT_MLP},
    varies={"activation": GELUS, "text_activation": GELUS, "pooling": WITH_CLS},
    same_activation=True,
    interpolation="timm",
    needs=("activation",),
    drops=(),
)
OPEN_CLIP_OF_TIMM = OPEN_CLIP._replace(
    marks=("visual.trunk.cls_token", "visual.head.proj.weight"),
    tower=Tower("visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "visual.trunk.blocks"),
    table=timm_tower_table,
    mlps={"mlp_width": "visual.trunk.blocks.0.mlp.fc2.weight", **TEXT_MLP},
    style=Style(),
    varies={"pooling": ("cls", "mean"), "text_activation": GELUS},
    same_activation=False,
    needs=("text_activation",),
)
OPENVISION = OPEN_CLIP._replace(
    name="openvision",
    marks=("visual.class_embedding", "visual.ln_post.weight", "visual.proj", POSITIONS),
    lacks=("visual.ln_pre.weight",),
    table=openvision_table,
    style=Style(patch_bias=False, pooling="norm_of_mean"),
    text_style=TextStyle(norm_eps=1e-6, causal=False, pooling=AT_LAST),
    text_activation="gelu_tanh",
    varies={},
    same_activation=False,
    prepare=without_last_token,
    normalisation="imagenet",
    filter="bilinear",
    resize="squash",
    interpolation="bicubic",
    needs=(),
    read_only=True,
)
FLAIR = OPENAI._replace(
    name="flair",
    method="flair",
    marks=("visual.class_embedding", "visual_proj.ln_v.weight", FLAIR_IMAGE_PROJECTION),
    table=flair_table,
    text=CLIP_TEXT | {"joint": FLAIR_TEXT_PROJECTION},
    style=OPENAI_STYLE._replace(activation="gelu"),
    text_activation="gelu",
    interpolation="timm",
    drops=(),
    published=published_flair,
)
COSMOS = FLAIR._replace(
    name="cosmos",
    method="cosmos",
    marks=("student.visual.class_embedding", "student.visual.attn_cross_pool.ln_q.weight", "teacher.visual.proj"),
    tower=OPENAI.tower.within(COSMOS_STUDENT),
    table=cosmos_table,
    text={name: f"{COSMOS_STUDENT}.{key}" for name, key in CLIP_TEXT.items()},
    interpolation="ibot",
    parts=COSMOS_PARTS,
    drops=tuple(rf"{COSMOS_TEACHER}\.{name}" for name in COSMOS_UNUSED),
    published=published_cosmos,
)
