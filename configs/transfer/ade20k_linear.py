"""A linear head on ADE20K with a frozen encoder: the paper's table 1 (iBOT's recipe, 160,000 steps of 16).

The paper says "end-to-end"; iBOT's recipe is frozen.  --config.encoder.frozen=False trains the encoder too.
"""

from detailclip_jax.config.segmentation_fields import linear, segmentation


def get_config():
    return linear(segmentation())
