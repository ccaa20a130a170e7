"""UPerNet on ADE20K, trained end to end: the paper's table 1 (iBOT's recipe, 160,000 steps of 16)."""

from detailclip_jax.config.segmentation_fields import segmentation


def get_config():
    return segmentation()
