"""Layouts of SigLIP and SigLIP 2 for squares in open_clip's files, and of their image encoders alone in timm's.

The weights are read with the names of transformers' SiglipModel, which the table of `huggingface_names` has.
"""

from functools import partial

import numpy as np

from detailclip_jax.interop import huggingface_names
from detailclip_jax.interop.key_tables import StateDict, Table
from detailclip_jax.interop.model_sizes import Spec
from detailclip_jax.interop.timm_names import join_pool

OF_IMAGES = {  # parts of names, one after the other
    "patch_embed.proj": "embeddings.patch_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "attn_pool.latent": "head.probe",
    "attn_pool.proj": "head.attention.out_proj",
    "attn_pool.norm": "head.layernorm",
    "attn_pool.mlp": "head.mlp",
    "attn_pool.": "head.attention.",
    "blocks.": "encoder.layers.",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "attn.qkv.": "self_attn.in_proj_",
}
OF_TEXTS = {
    "text_projection": "head",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.": "self_attn.",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_final": "final_layer_norm",
}


def as_siglip(tensors: StateDict, trunk: str) -> StateDict:
    """Weights with the names and forms of a SiglipModel; the names of images begin with `trunk`."""
    weights: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        part, prefix, names = "text_model", "text.", OF_TEXTS
        if key.startswith(trunk):
            part, prefix, names = "vision_model", trunk, OF_IMAGES
        elif not key.startswith(prefix):
            weights[key] = np.asarray(value).reshape(1) if key in ("logit_scale", "logit_bias") else value
            continue
        name = key.removeprefix(prefix)
        name = name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        name = f"{part}.{name}"
        if ".self_attn.in_proj_" in name:
            shares = zip("qkv", np.split(np.asarray(value), 3))
            weights |= {name.replace("in_proj_", f"{share}_proj."): rows for share, rows in shares}
        else:
            weights[name] = value[0] if name.endswith("position_embedding.weight") and value.ndim == 3 else value
    join_pool(weights, "vision_model.head.attention", "vision_model.head.attention")
    return weights


def image_table(spec: Spec) -> Table:
    """An image encoder alone."""
    return Table(huggingface_names.siglip_vision(spec.size.depth))


OPEN_CLIP = huggingface_names.SIGLIP._replace(
    name="open_clip",
    marks=("visual.trunk.attn_pool.latent", "logit_bias", "text.text_projection.bias"),
    prepare=partial(as_siglip, trunk="visual.trunk."),
    stated=lambda shapes: {},
    interpolation="timm",
    read_only=True,
)
TIMM = OPEN_CLIP._replace(
    name="timm",
    method="image_encoder",
    marks=("attn_pool.latent", "pos_embed", "patch_embed.proj.bias"),
    table=image_table,
    text=None,
    image_is_embedding=False,
    mlps={"mlp_width": huggingface_names.SIGLIP.mlps["mlp_width"]},
    prepare=partial(as_siglip, trunk=""),
    drops=(r"vision_model\.head\.(weight|bias)",),
)
