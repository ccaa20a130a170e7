"""UPerNet on sticker scenes, end to end: objects against background, minutes on two cores.

The arguments `labels=groups` (24 classes) and `labels=nouns` (96) need 192,000 scenes instead of 3,200, and hours.
"""

from detailclip_jax.config import parse_arg
from detailclip_jax.config.segmentation_fields import many_classes, objects, segmentation, stickers


def get_config(arg=None):
    labels = parse_arg(arg, labels="objects").labels
    c = stickers(segmentation())
    c.optimizer.learning_rate = 1e-3
    c.head.options.width = c.auxiliary.options.width = 16 if labels == "objects" else 64
    return objects(c) if labels == "objects" else many_classes(c, labels)
