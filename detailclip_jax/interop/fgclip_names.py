"""Layouts of FG-CLIP (names of transformers' CLIPModel) and FG-CLIP 2 (of a Siglip2Model): one for each text side.

FG-CLIP has a short side (77 tokens) and a long one, FG-CLIP 2 a short and a box side (64 tokens) and a long one. They
share the text encoder; a long side has stretched positions, as Long-CLIP's, and box and long sides a projection of
their own. One side is imported, the short one unless another layout is named; beside the short one `published.convert`
imports the long one, with which `evaluate` reads long captions.
"""

from functools import partial

import numpy as np

from detailclip_jax.interop import huggingface_names
from detailclip_jax.interop.key_tables import StateDict
from detailclip_jax.models.positions import KEPT

FIRST, LATER = (f"text_model.embeddings.position_embedding_{name}.weight" for name in ("ori", "res"))
PATCH_HEAD = "dense_feature_head"  # of FG-CLIP 2: its pooling for patches


def one_side(tensors: StateDict, projection: str, side: str, is_long: bool) -> StateDict:
    """Weights with the `projection` of texts named `side`, and with the stretched positions if the side is long.

    Raises ValueError without the projection, or without a stretched table, of a side.
    """
    weights = dict(tensors)
    if missing := [key for key in (f"{side}.weight", *((FIRST, LATER) if is_long else ())) if key not in weights]:
        raise ValueError(f"the weights lack {', '.join(missing)}, of this text side")
    if is_long:
        first, later = (np.asarray(weights[key]) for key in (FIRST, LATER))
        weights[huggingface_names.TEXT["positions"]] = np.concatenate([first[:KEPT], later[KEPT:]])
    for kind in ("weight", "bias"):
        if f"{side}.{kind}" in weights:
            weights[f"{projection}.{kind}"] = weights[f"{side}.{kind}"]
    unused = (FIRST, LATER, "text_filip_projection.", "longtext_head.", "boxtext_head.")
    return {key: value for key, value in weights.items() if not key.startswith(unused)}


FGCLIP = huggingface_names.CLIP._replace(
    name="fgclip",
    marks=(huggingface_names.CLIP.tower.kernel, FIRST, "text_filip_projection.weight"),
    resize="squash",
    prepare=partial(one_side, projection="text_projection", side="text_projection", is_long=False),
    drops=(*huggingface_names.CLIP.drops, r"logit_scale_(finegraind|hardneg)"),
    needs=(),
    read_only=True,
)
FGCLIP_2 = huggingface_names.SIGLIP._replace(
    name="fgclip2",
    marks=(huggingface_names.SIGLIP.tower.kernel, FIRST, "longtext_head.weight"),
    prepare=lambda tensors: huggingface_names.convolved(
        one_side(tensors, "text_model.head", "text_model.head", is_long=False)
    ),
    drops=(*huggingface_names.SIGLIP.drops, rf"{PATCH_HEAD}\..*", r"logit_scale_(finegraind|hardneg)"),
    read_only=True,
)
LAYOUTS = (
    FGCLIP._replace(long_texts="fgclip_long"),
    FGCLIP._replace(
        name="fgclip_long",
        prepare=partial(one_side, projection="text_projection", side="text_filip_projection", is_long=True),
    ),
    FGCLIP_2._replace(long_texts="fgclip2_long"),
    *(
        FGCLIP_2._replace(
            name=f"fgclip2_{name}",
            prepare=lambda tensors, side=side: huggingface_names.convolved(
                one_side(tensors, "text_model.head", side, is_long=side == "longtext_head")
            ),
        )
        for name, side in (("box", "boxtext_head"), ("long", "longtext_head"))
    ),
)
