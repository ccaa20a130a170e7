"""UPerNet on sticker scenes, end to end; the argument `labels=nouns` takes 96 classes instead of 24 groups."""

from detailclip_jax.config import parse_arg
from detailclip_jax.config.transfer import segmentation, stickers


def get_config(arg=None):
    c = stickers(segmentation())
    c.data.labels = parse_arg(arg, labels="groups").labels
    c.head.options.width, c.auxiliary.options.width = 64, 64
    c.optimizer.learning_rate = 1e-3
    return c
