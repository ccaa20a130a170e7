import numpy as np
import pytest

from detailclip_jax.data import block_masks
from detailclip_jax.data.block_masks import block_mask
from detailclip_jax.data.views import Crop, make_masks


def masks(ratio, count=200, side=14):
    rng = np.random.default_rng(0)
    return np.stack([block_mask(side, ratio, rng) for _ in range(count)])


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_the_share_is_reached_from_below(ratio):
    hidden = masks(ratio).sum((1, 2))
    assert hidden.max() <= int(ratio * 196)
    assert hidden.mean() > 0.8 * ratio * 196


def test_a_ratio_of_zero_hides_nothing():
    assert not masks(0.0, 5).any()


def test_a_block_has_sixteen_patches_or_more_and_an_aspect_between_a_third_and_three():
    """Up to the rounding of its sides; what remains bounds it from above."""
    rng, empty = np.random.default_rng(0), np.zeros((14, 14), bool)
    for _ in range(300):
        rows, columns = block_masks.new_block(empty, 60.0, rng)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 12 <= height * width <= 60
        assert 2 / 9 < height / width < 9 / 2
        assert rows.start >= 0 and rows.stop <= 14 and columns.start >= 0 and columns.stop <= 14


def test_hidden_patches_hang_together_more_than_random_ones():
    def neighbours(mask):
        return (mask[:, 1:] & mask[:, :-1]).sum() / mask.sum()

    drawn = masks(0.4)
    shuffled = np.random.default_rng(0).permuted(drawn.reshape(200, -1), axis=1).reshape(drawn.shape)
    assert neighbours(drawn.reshape(-1, 14)) > 1.5 * neighbours(shuffled.reshape(-1, 14))


def test_views_are_masked_with_their_probability_and_by_name():
    crops = {"large": Crop(count=2, mask_grid=14), "local": Crop(count=3)}
    rng = np.random.default_rng(0)
    drawn = [make_masks(crops, rng) for _ in range(200)]
    assert set(drawn[0]) == {"large"} and drawn[0]["large"].shape == (2, 196)
    any_hidden = np.stack([masks["large"] for masks in drawn]).any(-1)
    assert abs(any_hidden.mean() - 0.5) < 0.1
    assert make_masks({"local": Crop()}, rng) == {}


def test_the_pipeline_carries_masks():
    from ml_collections import ConfigDict

    from detailclip_jax.data.pipeline import Stream
    from detailclip_jax.data.tokenizer import Tokenizer

    image = {"image": np.zeros((20, 20, 3), np.uint8), "captions": ("a",), "label": 1, "key": "0"}
    stream = Stream([image], {"large": Crop(count=2, size=8, mask_grid=4, mask_p=1.0)}, Tokenizer(8))
    assert stream[0]["hidden"]["large"].shape == (2, 16)
    np.testing.assert_array_equal(stream[0]["hidden"]["large"], stream[0]["hidden"]["large"])
    assert ConfigDict(vars(Crop())).mask_grid == 0
