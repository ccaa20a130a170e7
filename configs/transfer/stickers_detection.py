"""Cascade Mask R-CNN on sticker scenes, end to end: minutes on two cores.

The argument `labels=objects` takes one class, `labels=nouns` 96, instead of 24 groups.
"""

from detailclip_jax.config import parse_arg
from detailclip_jax.config.detection import detection, stickers


def get_config(arg=None):
    c = stickers(detection())
    c.data.labels = parse_arg(arg, labels="groups").labels
    return c
