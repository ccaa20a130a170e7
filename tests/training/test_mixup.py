import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.losses import labels
from detailclip_jax.training import mixup

BATCH = {
    "image": {"large": np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8, 3)).astype(np.uint8)},
    "label": np.array([3, 1, 4, 1], np.int32),
}


def mixed(seed, **alphas):
    return jax.device_get(
        mixup.mix(jax.tree.map(jnp.asarray, BATCH), jax.random.key(seed), **{"mixup": 0.0, "cutmix": 0.0, **alphas})
    )


@pytest.mark.parametrize("seed", range(3))
def test_mixup_is_a_weighted_mean_of_images(seed):
    out, image = mixed(seed, mixup=0.8), BATCH["image"]["large"].astype(np.float32)
    share = out["share"][0]
    assert 0 <= share <= 1
    np.testing.assert_allclose(out["image"]["large"], share * image + (1 - share) * image[::-1], rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(out["other_label"], BATCH["label"][::-1])


@pytest.mark.parametrize("seed", range(3))
def test_cutmix_puts_a_box_of_the_other_image(seed):
    out, image = mixed(seed, cutmix=1.0), BATCH["image"]["large"].astype(np.float32)
    own = (out["image"]["large"] == image).all(-1)
    other = (out["image"]["large"] == image[::-1]).all(-1)
    assert (own | other).all()
    np.testing.assert_allclose(own[0, 0].mean(), out["share"][0], atol=1e-6)
    outside = ~own[0, 0]
    if outside.any():
        rows, columns = outside.any(1).sum(), outside.any(0).sum()
        assert rows * columns == outside.sum()


def test_both_take_turns():
    uniform = [np.ptp(mixed(seed, mixup=0.8, cutmix=1.0)["image"]["large"] % 1) > 0 for seed in range(12)]
    assert any(uniform) and not all(uniform)


def test_label_loss_is_smoothed_cross_entropy_and_skips_the_unlabelled():
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.eye(5)[[2, 0]] * 0.9 + 0.1 / 5
    loss = labels.label_loss(jnp.asarray(logits), jnp.asarray([2, 0, -1]), 0.1)
    np.testing.assert_allclose(loss, [*(-(target * log[:2]).sum(-1)), 0.0], rtol=1e-5)
    assert labels.accuracy(jnp.asarray(logits), jnp.asarray(logits.argmax(-1))) == 1
