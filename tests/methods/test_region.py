"""Crop to region: boxes of one view in another, pooling in boxes, the loss, and the term; see `test_terms` for runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.data.views import Crop, make_views
from detailclip_jax.losses.region import region_loss
from detailclip_jax.methods.maps_at_crops import box_weights, boxes_in
from detailclip_jax.methods.method import Context, WholeBatch
from detailclip_jax.methods.region import usable
from detailclip_jax.training import experiment, mesh

LOCAL = {"count": 3, "size": 16}
WHOLE = [0.0, 0.0, 1.0, 1.0]


# boxes


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ((30, 20, 50, 60), (10, 20, 90, 100), (0.25, 0, 0.5, 0.5)),
        ((30, 20, 50, 60), (90, 20, 10, 100), (0.5, 0, 0.75, 0.5)),  # the outer view is mirrored
        ((50, 20, 30, 60), (10, 20, 90, 100), (0.25, 0, 0.5, 0.5)),  # the inner one is: it covers the same place
        ((50, 20, 30, 60), (90, 20, 10, 100), (0.5, 0, 0.75, 0.5)),
        ((0, 0, 20, 10), (10, 0, 30, 40), (-0.5, 0, 0.5, 0.25)),  # half of it lies outside
        ((10, 20, 90, 100), (10, 20, 90, 100), WHOLE),
        ((10, 20, 90, 100), (90, 20, 10, 100), WHOLE),
    ],
)
def test_a_box_is_the_share_of_the_outer_view_s_sides(inner, outer, expected):
    np.testing.assert_allclose(boxes_in(jnp.float32(inner), jnp.float32(outer)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_box_is_where_the_view_shows_what_the_crop_shows(seed):
    """Red and green of the image are the place, so a view tells where each of its pixels comes from."""
    ys, xs = np.mgrid[:120, :160]
    image = np.stack([xs, 2 * ys, 0 * xs], -1).astype(np.uint8)
    crops = {
        "large": Crop(count=2, size=96, flip=0.5),
        "local": Crop(count=4, size=48, flip=0.5, kind="inside", scale=(0.15, 0.4)),
    }
    (large, outer), (local, inner) = (make_views(image, crops, np.random.default_rng(seed))[name] for name in crops)
    boxes = np.asarray(boxes_in(jnp.asarray(inner), jnp.asarray(outer[:1])))
    assert (boxes >= 0).all() and (boxes <= 1).all()
    for (x0, y0, x1, y1), pixels in zip(boxes, local.astype(int), strict=True):
        column, row = int((x0 + x1) / 2 * 96), int((y0 + y1) / 2 * 96)
        assert np.abs(pixels[24, 24] - large[0, row, column]).max() <= 5  # the centre
        rows, columns = (np.clip(np.array(ends) * 96, 0, 95).astype(int) for ends in ((y0, y1), (x0, x1)))
        for channel, part in ((0, large[0, row, columns]), (1, large[0, rows, column])):
            seen = pixels[..., channel].min(), pixels[..., channel].max()
            assert np.abs(np.sort(part[:, channel].astype(int)) - seen).max() <= 6


def naive_roi_align(image, box):
    """RoIAlign with one bin, in loops: `image` [side, side, D], `box` in shares of its sides."""
    side = len(image)
    x0, y0, x1, y1 = np.float64(box) * side - 0.5
    rows, columns = (max(int(np.ceil(length - 1e-4)), 1) for length in (y1 - y0, x1 - x0))
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            y = np.clip(y0 + (row + 0.5) * (y1 - y0) / rows, 0, side - 1)
            x = np.clip(x0 + (column + 0.5) * (x1 - x0) / columns, 0, side - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = (1 - (x - left)) * image[top, left] + (x - left) * image[top, right]
            lower = (1 - (x - left)) * image[bottom, left] + (x - left) * image[bottom, right]
            total = total + (1 - (y - top)) * upper + (y - top) * lower
    return total / rows / columns


def maps_and_boxes(side=7, seed=0):
    """Maps [2, 3, N, 5] and boxes [2, 4, 3, 4] of all sizes; the first box is the whole map."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, 3, side**2, 5)).astype(np.float32)
    low = rng.uniform(0, 0.8, (2, 4, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.02, 1, low.shape) * (1 - low)], -1).astype(np.float32)
    boxes[:, 0] = WHOLE
    return maps, boxes


def pooled_in(maps, boxes):
    weights = jax.jit(box_weights, static_argnums=1)(boxes, round(maps.shape[2] ** 0.5))
    return np.einsum("gvbn,gbnd->gvbd", weights, maps)


@pytest.mark.parametrize("side", [1, 4, 7])
def test_pooling_is_roi_align_in_loops(side):
    maps, boxes = maps_and_boxes(side)
    pooled = pooled_in(maps, boxes)
    for view, box, image in np.ndindex(2, 4, 3):
        expected = naive_roi_align(maps[view, image].reshape(side, side, -1), boxes[view, box, image])
        np.testing.assert_allclose(pooled[view, box, image], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled[:, 0], maps.mean(2), rtol=1e-5, atol=1e-6)  # the whole map: its mean


def test_pooling_is_torchvision_s():
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    maps, boxes = maps_and_boxes()
    pooled = pooled_in(maps, boxes)
    images = torch.from_numpy(np.moveaxis(maps.reshape(6, 7, 7, 5), -1, 1).copy())
    rois = [torch.from_numpy(each * 7) for each in np.moveaxis(boxes, 1, 2).reshape(6, 4, 4)]
    theirs = ops.roi_align(images, rois, (1, 1), 1.0, -1, True)[..., 0, 0].numpy().reshape(2, 3, 4, 5)
    np.testing.assert_allclose(pooled, np.moveaxis(theirs, 2, 1), rtol=1e-4, atol=1e-5)


def test_boxes_that_lie_outside_or_are_small_do_not_count():
    boxes = [WHOLE, [-0.04, 0, 0.5, 1], [-0.1, 0, 0.5, 1], [0, 0, 0.25, 1], [0, 0, 0.24, 1], [0.5, 0.9, 1.0, 1.6]]
    cut, counts = usable(jnp.float32(boxes), 6)  # 1.5 of 6 patches are a quarter
    np.testing.assert_array_equal(counts, [True, True, False, True, False, False])
    np.testing.assert_allclose(cut[1], [0, 0, 0.5, 1])


# the loss


def arrays(seed=0, images=8):
    rng = np.random.default_rng(seed)
    pooled, crops = (np.float32(rng.normal(size=(3, images, 5))) for _ in range(2))
    return pooled, crops, np.float32(rng.random((3, images)) < 0.6)


def test_the_loss_is_the_mean_over_the_regions_that_count():
    pooled, crops, counts = arrays()
    unit = lambda x: np.float64(x) / np.linalg.norm(x)
    terms = [1 - unit(pooled[i]) @ unit(crops[i]) for i in np.ndindex(3, 8) if counts[i]]
    compiled = jax.jit(jax.value_and_grad(region_loss, argnums=(0, 1)))
    loss, gradients = compiled(pooled, crops, counts)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    assert not np.asarray(gradients[1]).any()
    np.testing.assert_array_equal(np.asarray(gradients[0]).any(-1), counts > 0)
    value, gradients = compiled(pooled, crops, np.zeros_like(counts))
    assert value == 0 and not np.asarray(gradients[0]).any()


# the term


@functools.cache
def built():
    config = tiny_config("clip")
    config.views.crops.local = LOCAL
    config.losses.weights.region, config.losses.ramps.region = 1.0, (0.0, 0.0)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:1]))


def batch_of(exp):
    """Noise; the large crop has two thirds of the image: some boxes count, others do not."""
    batch = tiny_batch(0, exp.config)
    batch["box"]["large"][...] = np.float32([2, 0, 38, 44])
    return batch


@functools.cache
def recorded():
    exp = built()
    state = noise_state(exp)
    return exp, state, exp.forward(state, exp.put(batch_of(exp)))


def test_the_regions_are_those_of_the_projected_values():
    _, state, record = recorded()
    kernel = np.float64(state.params["image_projection"]["proj"]["kernel"])
    maps = np.float64(record.tokens["full"].values[0]) @ kernel
    maps /= np.linalg.norm(maps, axis=-1, keepdims=True)
    batch, used = batch_of(built()), 0
    for image, crop in np.ndindex(8, 3):
        x0, y0, x1, y1 = np.float64(batch["box"]["local"][image, crop])
        box = np.array([(x0 - 2) / 36, y0 / 44, (x1 - 2) / 36, y1 / 44])
        cut = np.clip(box, 0, 1)
        area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
        counts = area(cut) >= 0.9 * area(box) and min(cut[2] - cut[0], cut[3] - cut[1]) * 4 >= 1.5
        assert record.heads["region_counts"][crop, image] == counts
        if counts:
            expected = naive_roi_align(maps[image].reshape(4, 4, -1), np.float32(cut))
            np.testing.assert_allclose(record.heads["region_pooled"][crop, image], expected, rtol=1e-4, atol=1e-5)
        used += counts
    assert 3 < used < 24


def test_the_targets_are_the_teacher_s_embeddings_of_the_crops():
    exp, state, record = recorded()
    assert set(state.ema_params) == {"image", "image_projection"} and exp.method.weights == "student"
    images = record.views["local"].image
    embed = jax.jit(lambda params, x: exp.model.bind({"params": params}).embed_image(x))
    expected = embed(dict(state.params) | dict(state.ema_params), images.reshape(-1, 16, 16, 3))
    np.testing.assert_allclose(record.heads["region_crops"].reshape(24, -1), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_regions_and_the_share_that_counts_is_logged():
    exp, _, record = recorded()
    run = jax.jit(lambda record: exp.method.terms["region"].run(record, Context({}, {}), WholeBatch()))
    loss, metrics = run(record)
    pooled, crops, counts = (np.float64(record.heads[f"region_{name}"]) for name in ("pooled", "crops", "counts"))
    cosine = (pooled * crops).sum(-1) / np.linalg.norm(pooled, axis=-1) / np.linalg.norm(crops, axis=-1)
    np.testing.assert_allclose(loss, (1 - cosine)[counts > 0].mean(), rtol=1e-5)
    assert metrics["region_boxes"] == pytest.approx(counts.mean())


@pytest.mark.parametrize(
    ("method", "averaged"),
    [
        ("flair", {"image", "image_projection"}),
        ("silc", {"image", "image_projection", "prototype_head"}),
        ("tipsv2", {"prototype_head"}),
        ("cosmos", {"image", "image_projection", "text", "text_projection"}),
    ],
)
def test_a_teacher_has_its_own_projection_if_it_has_its_own_encoder(method, averaged):
    config = tiny_config(method)
    config.views.crops.local, config.losses.weights.region = LOCAL, 1.0
    assert {*methods.build(config).ema} == averaged
