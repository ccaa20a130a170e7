import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.methods import masking


def lowest(attention, count):
    """The mask that a loop draws: the `count` lowest values, the first of equals first."""
    order = sorted(range(len(attention)), key=lambda i: (attention[i], i))
    mask = np.zeros(len(attention), bool)
    mask[order[:count]] = True
    return mask


def lowest_cells(attention, side, num_removed_cells):
    """The reference's granularity, by loops over 2x2 cells."""
    grid = attention.reshape(side, side)
    cells = [
        float(np.mean(grid[r : r + 2, c : c + 2], dtype=np.float32))
        for r in range(0, side, 2)
        for c in range(0, side, 2)
    ]
    removed = lowest(cells, num_removed_cells).reshape(side // 2, side // 2)
    return np.kron(removed, np.ones((2, 2), bool)).reshape(-1).astype(bool)


def attention(shape=(2, 3), side=14, seed=0):
    return np.random.default_rng(seed).random((*shape, side**2), np.float32)


def on_host(hidden):
    return types.SimpleNamespace(**{name: np.asarray(value) for name, value in vars(hidden).items()})


def test_numbers_of_the_paper_and_of_the_reference():
    assert (masking.RemovalRule(14).num_kept, masking.RemovalRule(14).num_removed) == (98, 98)
    cells = masking.RemovalRule(14, granularity="cell2x2")
    assert (cells.num_kept, cells.num_removed) == (100, 96)


@pytest.mark.parametrize("granularity", ["patch", "cell2x2"])
def test_lowest_attention_is_removed(granularity):
    rule, values = masking.RemovalRule(14, granularity=granularity), attention()
    hidden = on_host(masking.attention_low(rule, attention=jnp.asarray(values)))
    for index in np.ndindex(2, 3):
        expected = lowest(values[index], 98) if granularity == "patch" else lowest_cells(values[index], 14, 24)
        np.testing.assert_array_equal(hidden.mask[index], expected)


@pytest.mark.parametrize("strategy", ["attention_low", "attention_high", "random"])
@pytest.mark.parametrize("granularity", ["patch", "cell2x2"])
def test_index_lists_divide_the_patches_in_order(strategy, granularity):
    rule = masking.RemovalRule(8, 0.5, granularity)
    keys = jax.random.split(jax.random.key(0), 3)
    given = {"attention": jnp.asarray(attention(side=8)), "keys": keys, "views": 2}
    hidden = on_host(masking.strategy(strategy)(rule, **given))
    assert hidden.kept.shape == (2, 3, rule.num_kept) and hidden.removed.shape == (2, 3, rule.num_removed)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(hidden.removed[index], np.flatnonzero(hidden.mask[index]))
        np.testing.assert_array_equal(hidden.kept[index], np.flatnonzero(~hidden.mask[index]))


def test_highest_is_the_mirror_of_lowest():
    rule, values = masking.RemovalRule(14), jnp.asarray(attention())
    low = masking.attention_low(rule, attention=values)
    high = masking.attention_high(rule, attention=values)
    np.testing.assert_array_equal(low.mask, ~high.mask)


def test_ties_go_by_position():
    hidden = masking.attention_low(masking.RemovalRule(14), attention=jnp.ones((1, 196)))
    np.testing.assert_array_equal(hidden.removed[0], np.arange(98))


def test_jit_changes_no_mask():
    rule, values = masking.RemovalRule(14, granularity="cell2x2"), jnp.asarray(attention())
    eager = masking.attention_low(rule, attention=values)
    compiled = jax.jit(lambda a: masking.attention_low(rule, attention=a))(values)
    np.testing.assert_array_equal(eager.mask, compiled.mask)


def test_random_depends_on_the_image_s_own_key_only():
    rule, keys = masking.RemovalRule(8), jax.random.split(jax.random.key(1), 4)
    draw = jax.jit(lambda keys: masking.random(rule, keys=keys, views=2))
    together, alone = on_host(draw(keys)), on_host(draw(keys[2:3]))
    np.testing.assert_array_equal(together.mask[:, 2], alone.mask[:, 0])
    assert (together.mask[0] != together.mask[1]).any()


def test_random_is_uniform():
    keys = jax.random.split(jax.random.key(2), 4000)
    share = np.asarray(masking.random(masking.RemovalRule(4), keys=keys, views=1).mask).mean((0, 1))
    np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / 4000**0.5)


def test_cells_spread_back():
    units = np.random.default_rng(0).random((2, 16)) > 0.5
    patches = masking.spread_cells(jnp.asarray(units), 8, 2)
    np.testing.assert_array_equal(masking.cell_scores(patches.astype(jnp.float32), 8, 2), units)


@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.9])
def test_other_ratios(ratio):
    assert masking.RemovalRule(14, ratio).num_removed == int(196 * ratio)


@pytest.mark.parametrize(("granularity", "ratio"), [("patch", 0.005), ("cell2x2", 0.02)])
def test_a_ratio_that_removes_nothing_is_refused_at_once(granularity, ratio):
    with pytest.raises(ValueError, match=rf"masking.ratio {ratio} removes no unit of a grid of .* greater than 0\.0"):
        masking.RemovalRule(14, ratio, granularity).checked()
    assert masking.RemovalRule(14, ratio + 0.01, granularity).checked().num_removed > 0


def test_hide_highest_hides_as_many_as_asked_for():
    values, count = attention(), np.random.default_rng(1).integers(0, 98, (2, 3))
    mask = masking.hide_highest(jnp.asarray(values), jnp.asarray(count))
    for index in np.ndindex(2, 3):
        expected = set(np.argsort(-values[index])[: count[index]])
        assert set(np.flatnonzero(mask[index])) == expected


def test_hints_lie_among_the_most_attended():
    values, noise = attention(), np.random.default_rng(1).random((2, 3, 196))
    hints = masking.choose_hints(jnp.asarray(values), jnp.asarray(noise), 19, 5)
    for index in np.ndindex(2, 3):
        top = np.argsort(-values[index])[:19]
        assert set(np.flatnonzero(hints[index])) == set(top[np.argsort(noise[index][top])[:5]])


def hinted(rule, values, keys):
    hint = jax.jit(lambda values, keys: masking.attention_hint(rule, attention=values, keys=keys, views=2))
    return on_host(hint(values, keys))


def test_hint_removes_as_many_as_high_and_shows_some_of_the_top():
    rule, values, keys = masking.RemovalRule(14), jnp.asarray(attention()), jax.random.split(jax.random.key(0), 3)
    hint = hinted(rule, values, keys)
    assert (hint.mask.sum(-1) == 98).all()
    for index in np.ndindex(2, 3):
        order = np.argsort(-np.asarray(values[index]))
        assert hint.mask[index][order[:19]].sum() == 19 - 9  # int(.5 * 19) are shown
        assert hint.mask[index][order[19:107]].all()
    with pytest.raises(ValueError, match="attention_hint works by patch"):
        masking.attention_hint(masking.RemovalRule(14, granularity="cell2x2"), attention=values, keys=keys, views=2)


@pytest.mark.parametrize("ratio", [0.9, 0.93, 0.97, 0.99])
def test_hints_are_never_more_than_what_is_kept(ratio):
    rule, values, keys = (
        masking.RemovalRule(14, ratio),
        jnp.asarray(attention()),
        jax.random.split(jax.random.key(0), 3),
    )
    hint = hinted(rule, values, keys)
    num_hints = min(int(ratio * 19), rule.num_kept)
    assert (hint.mask.sum(-1) == rule.num_removed).all()
    for index in np.ndindex(2, 3):
        order = np.argsort(-np.asarray(values[index]))
        assert (~hint.mask[index][order[:19]]).sum() == num_hints
        others = rule.num_kept - num_hints  # the least attended ones
        assert not others or not hint.mask[index][order[-others:]].any()


def test_a_drawn_mask_lists_its_patches_first_and_fills_up():
    mask = np.random.default_rng(0).random((3, 16)) < 0.3
    hidden = masking.drawn(jnp.asarray(mask), 10)
    assert hidden.kept is None and hidden.removed.shape == (3, 10)
    for row in range(3):
        own = np.flatnonzero(mask[row])
        np.testing.assert_array_equal(hidden.removed[row][: len(own)], own)
        assert not mask[row][np.asarray(hidden.removed[row][len(own) :])].any()


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r"ratio 1\.5"):
        _ = masking.RemovalRule(14, 1.5).num_kept
    with pytest.raises(ValueError, match="'cell' is unknown; known: patch, cell2x2"):
        _ = masking.RemovalRule(14, 0.5, "cell").num_kept
    with pytest.raises(ValueError, match="even number of patches along a side, not 7"):
        _ = masking.RemovalRule(7, 0.5, "cell2x2").num_kept
    with pytest.raises(ValueError, match="'lowest' is unknown; known: attention_low"):
        masking.strategy("lowest")
