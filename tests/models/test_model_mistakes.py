"""What a mistake in the settings of networks is answered with: the value and what is possible."""

import pytest

from detailclip_jax.config import default
from detailclip_jax.training import experiment

MISTAKES = {  # the mistake: fields of config.model, words of the message
    "unknown size": ({"size": "B/15"}, "'B/15' is unknown; known: tiny, S/16"),
    "part of a patch": ({"image_size": 225}, r"225 is not a multiple of the patch size 16.* 224 or 240"),
    "heads that do not divide the width": (
        {"size": "custom", "custom": {"patch_size": 16, "width": 100, "depth": 1, "num_heads": 16}},
        "of width 100 cannot have 16 attention heads",
    ),
    "unknown remat": ({"remat": "some"}, "remat 'some' is unknown; known: auto, none, dots, full"),
    "class tokens of an attention pool": (
        {"image_style.pooling": "attention", "class_tokens": 2},
        r"model\.class_tokens 2: .*pooling 'attention' has none",
    ),
    "unknown text pooling": (
        {"text_style.pooling": "frist"},
        "text pooling 'frist' is unknown; known: eot, last, mean",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_network_is_named(mistake):
    fields, words = MISTAKES[mistake]
    config = default()
    config.model.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=words):
        experiment.weight_shapes(config)
