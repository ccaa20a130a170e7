"""A linear head on sticker scenes with a frozen encoder; `labels=nouns` takes 96 classes instead of 24 groups."""

from detailclip_jax.config import parse_arg
from detailclip_jax.config.transfer import linear, segmentation, stickers


def get_config(arg=None):
    c = linear(stickers(segmentation()))
    c.data.labels = parse_arg(arg, labels="groups").labels
    c.optimizer.learning_rate = 3e-3
    return c
