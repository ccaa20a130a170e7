"""Long-CLIP's weights: OpenAI's with two tables of text positions."""

import numpy as np
import pytest
from test_interop import heads, written

from detailclip_jax import interop
from detailclip_jax.interop import clip_names
from detailclip_jax.interop.layouts import LAYOUTS

LENGTH = 28


def weights():
    """OpenAI's weights with a longer context, and a second table of positions."""
    state_dict, _ = written(next(row for row in LAYOUTS if row.name == "openai"))
    rng, width = np.random.default_rng(0), state_dict[clip_names.POSITIONS].shape[1]
    tables = {
        name: rng.standard_normal((LENGTH, width)).astype(np.float32)
        for name in (clip_names.POSITIONS, clip_names.LATER_POSITIONS)
    }
    return state_dict | tables


def test_the_first_twenty_positions_are_of_one_table_and_the_others_of_the_other():
    """Its code: positions * mask1 + positions_res * mask2; mask1 is 1 at the first 20 tokens, mask2 at the others."""
    state_dict = weights()
    _, variables, config = interop.load(state_dict, **heads())
    mask = (np.arange(LENGTH) < 20)[:, None]
    expected = state_dict[clip_names.POSITIONS] * mask + state_dict[clip_names.LATER_POSITIONS] * ~mask
    np.testing.assert_array_equal(variables["params"]["text"]["positions"], expected)
    assert (config.model.context_length, config.method) == (LENGTH, "clip")
    assert config.model.image_style.activation == config.model.text_activation == "quick_gelu"
    assert config.preprocess.filter == "bicubic"


def test_tables_of_different_lengths_are_named():
    state_dict = weights()
    state_dict[clip_names.LATER_POSITIONS] = state_dict[clip_names.LATER_POSITIONS][:-1]
    with pytest.raises(ValueError, match=r"positional_embedding has shape .*, but positional_embedding_res"):
        interop.load(state_dict, **heads())
    del state_dict[clip_names.POSITIONS]
    with pytest.raises(ValueError, match="positional_embedding"):
        interop.load(state_dict, **heads())
