"""Mistakes in the settings of data, and the words of their messages."""

import numpy as np
import pytest

from detailclip_jax.config import default
from detailclip_jax.data import images, pipeline
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import crops_from_config
from detailclip_jax.pretraining import validate

EXAMPLES = [{"image": b"", "captions": ("a",), "label": -1, "key": "k"}]


def config(**fields):
    changed = default()
    changed.batch_size, changed.data.source, changed.data.held_out = 6, "stickers", 0
    changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return changed


MISTAKES = {  # name: call, words of the message
    "context without room": (lambda: Tokenizer(context_length=2), "context_length 2"),
    "crop of a small image": (
        lambda: images.center_crop(np.zeros((20, 30, 3), np.uint8), 21),
        "crop of 21 pixels does not fit into 20 x 30",
    ),
    "enclosing crop alone": (
        lambda: crops_from_config({"teacher": {"kind": "enclosing"}}),
        r"needs crops named 'large' to enclose, .* are teacher \(enclosing\)",
    ),
    "inside crop alone": (
        lambda: crops_from_config({"local": {"kind": "inside"}}),
        "a crop of kind inside needs crops named 'large'",
    ),
    "large crop inside itself": (
        lambda: crops_from_config({"large": {"kind": "inside"}}),
        "a crop of kind inside needs crops named 'large'",
    ),
    "unknown caption rule": (
        lambda: pipeline.Stream(EXAMPLES, {}, Tokenizer(), caption="longest"),
        r"'longest'.*random, first, concat.*field:NAME",
    ),
    "no examples": (lambda: pipeline.Stream([], {}, Tokenizer()), "has no examples"),
    "batch of several processes": (
        lambda: pipeline.options_of(config(), process_count=4),
        "batch_size 6 does not divide over 4 processes",
    ),
    "negative number of held-out examples": (lambda: validate(config(data__held_out=-1)), r"data\.held_out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        call()
