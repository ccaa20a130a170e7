"""Parameter names of OpenAI's CLIP, also used by open_clip, and of open_clip with a timm image encoder."""

from detailclip_jax.interop.measure import Spec
from detailclip_jax.interop.reference import logit_scale, text_block, text_blocks, text_ends
from detailclip_jax.interop.tables import CONV, LINEAR, SAME, Entry, Table, norm, numbered
from detailclip_jax.interop.timm_vit import vit


def image(depth: int, projection: str = "visual.proj") -> list[Entry]:
    """CLIP's own ViT: norms before and after the blocks, a patch embedding without bias."""
    return [
        Entry("image/cls_token", "visual.class_embedding", SAME),
        Entry("image/positions", "visual.positional_embedding", SAME),
        Entry("image/patch_embed/kernel", "visual.conv1.weight", CONV),
        *norm("image/pre_norm", "visual.ln_pre"),
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


def timm_tower_table(spec: Spec) -> Table:
    """open_clip with a timm ViT as image encoder and a linear projection."""
    projection = Entry("image_projection/proj/kernel", "visual.head.proj.weight", LINEAR)
    return Table([*vit(spec.size.depth, "visual.trunk."), projection, *text(spec.size.text_depth)])
