"""Cascade Mask R-CNN on sticker scenes, end to end: minutes on two cores.

All objects are of one class.  The argument `labels=groups` takes 24 classes, `labels=nouns` 96.
"""

from detailclip_jax.config import parse_arg
from detailclip_jax.config.detection_fields import detection, stickers


def get_config(arg=None):
    c = stickers(detection())
    c.data.labels = parse_arg(arg, labels="objects").labels
    return c
