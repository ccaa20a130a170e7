"""RoIAlign and masks in boxes against torchvision, a naive loop, PyTorch's grid_sample and full-resolution masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.dense.detection import masks, roi_align
from detailclip_jax.dense.detection.anchors import Level

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")
RNG = np.random.default_rng(0)
LEVELS = [Level(4, 24, 32), Level(8, 12, 16), Level(16, 6, 8)]
EXTENT = jnp.array([96, 128])
FINEST = 14.0


def maps_of(levels=LEVELS, width=3):
    return [RNG.standard_normal((level.height, level.width, width)).astype(np.float32) for level in levels]


def random_rois(number, side=(90, 120), longest=60):
    low = RNG.uniform(0, 1, (number, 2)) * side[::-1]
    made = np.concatenate([low, low + RNG.uniform(1, longest, (number, 2))], 1)
    return np.clip(made, 0, [side[1], side[0]] * 2).astype(np.float32)


def pool(maps, levels, extent, rois, *rest, **options):
    return roi_align.roi_align([jnp.asarray(x) for x in maps], levels, extent, jnp.asarray(rois), *rest, **options)


def jitted(levels, *rest, **options):
    """`pool` for 7 x 7 bins on these levels, as one program of maps and RoIs."""
    return jax.jit(lambda maps, rois: pool(maps, levels, EXTENT, rois, 7, *rest, **options))


mask_targets = jax.jit(masks.mask_targets, static_argnums=3)
target_levels = jax.jit(roi_align.target_levels, static_argnums=(1, 2))

EDGE = np.array(
    [
        *([0, 0, 128, 96], [0, 0, 0, 0], [10, 10, 10, 40], [10, 10, 40, 10], [40, 40, 10, 10]),
        *([-30, -20, 20, 20], [100, 80, 160, 140], [300, 300, 340, 350], [-90, -80, -50, -40]),
        *([5, 5, 5.5, 5.5], [0, 0, 128, 4], [60, 0, 62, 96], [124, 92, 128, 96], [-2, -2, 2, 2], [126, 94, 130, 98]),
    ],
    np.float32,
)


def torchvision_s(maps, rois, level, size, levels=LEVELS):
    """Every RoI by torchvision's operator on its level."""
    made = []
    for roi, number in zip(rois, level):
        image = torch.from_numpy(np.moveaxis(maps[number], -1, 0)[None].copy())
        scale = 1 / levels[number].stride
        made.append(ops.roi_align(image, [torch.from_numpy(roi[None])], size, scale, -1, aligned=True)[0])
    return np.moveaxis(torch.stack(made).numpy(), 1, -1)


def levels_of(rois, number=3):
    made = []
    for x1, y1, x2, y2 in rois:
        scale = np.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0))
        made.append(int(np.clip(np.floor(np.log2(scale / FINEST + 1e-6)), 0, number - 1)))
    return made


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("case", ["random", "edge"])
def test_roi_align_is_torchvision_s_on_the_level_of_every_roi(case, size):
    maps, rois = maps_of(), random_rois(40) if case == "random" else EDGE
    run = jax.jit(lambda maps, rois: pool(maps, LEVELS, EXTENT, rois, size, FINEST, 1000, 16))
    ours, moved = run(maps, rois)
    assert not np.asarray(moved).any()
    np.testing.assert_array_equal(target_levels(rois, 3, FINEST), levels_of(rois))
    np.testing.assert_allclose(ours, torchvision_s(maps, rois, levels_of(rois), size), atol=2e-5)
    if case == "edge":
        assert not np.asarray(ours)[[1, 2, 3, 4, 7, 8]].any()  # without area, or outside of the image


def test_roi_align_takes_strides_of_quarter_pixels():
    """As of patches of 14 pixels."""
    levels, rois = [Level(3.5, 24, 32), Level(7.0, 12, 16), Level(14.0, 6, 8)], random_rois(20, (80, 110))
    maps = maps_of(levels)
    ours, _ = jax.jit(lambda maps, rois: pool(maps, levels, jnp.array([84, 112]), rois, 7, FINEST, 1000, 16))(
        maps, rois
    )
    np.testing.assert_allclose(ours, torchvision_s(maps, rois, levels_of(rois), 7, levels), atol=2e-5)


@pytest.mark.check
def test_gradients_of_the_maps_are_torchvision_s_in_any_number_of_groups():
    maps, rois = maps_of(), random_rois(11)
    weights = RNG.standard_normal((11, 7, 7, 3)).astype(np.float32)
    theirs = [torch.from_numpy(np.moveaxis(each, -1, 0)[None].copy()).requires_grad_() for each in maps]
    for roi, number, weight in zip(rois, levels_of(rois), weights):
        made = ops.roi_align(theirs[number], [torch.from_numpy(roi[None])], 7, 1 / LEVELS[number].stride, -1, True)
        (made[0] * torch.from_numpy(np.moveaxis(weight, -1, 0))).sum().backward()
    for chunk in (4, 64):
        loss = lambda maps, n=chunk: (pool(maps, LEVELS, EXTENT, rois, 7, FINEST, 1000, n)[0] * weights).sum()
        for mine, other in zip(jax.jit(jax.grad(loss))(maps), theirs):
            grad = np.moveaxis(other.grad[0].numpy(), 0, -1) if other.grad is not None else 0
            np.testing.assert_allclose(mine, grad, atol=2e-5)


@pytest.mark.check
def test_a_roi_that_covers_too_many_places_is_pooled_from_the_next_level_that_fits_and_counted():
    maps = maps_of()
    long = np.array([[2, 40, 126, 42], [30, 30, 40, 40], [0, 0, 128, 3]], np.float32)
    ours, moved = jitted(LEVELS, FINEST, cells=60)(maps, long)
    np.testing.assert_array_equal(moved, [True, False, True])
    np.testing.assert_allclose(ours, torchvision_s(maps, long, [1, 0, 1], 7), atol=2e-5)
    few, moved = jitted(LEVELS, FINEST, cells=1)(maps, EDGE[:1])
    np.testing.assert_allclose(few, torchvision_s(maps, EDGE[:1], [2], 7), atol=2e-5)  # the coarsest one always fits
    assert not moved[0]


@pytest.mark.check
def test_places_outside_the_extent_are_not_used():
    """An image in a larger array gives the numbers of the image alone."""
    maps, rois = maps_of(), np.concatenate([random_rois(20), EDGE])
    alone, _ = jitted(LEVELS, FINEST)(maps, rois)
    large = [Level(level.stride, level.height + 6, level.width + 9) for level in LEVELS]
    padded = [np.pad(each, ((0, 6), (0, 9), (0, 0)), constant_values=1e3) for each in maps]
    inside, _ = jitted(large, FINEST)(padded, rois)
    np.testing.assert_allclose(inside, alone, atol=1e-5)


def test_a_constant_map_gives_its_value_and_a_linear_one_the_bins_centres():
    level = [Level(4, 24, 32)]
    y, x = np.mgrid[:24, :32]
    ramp = np.stack([np.ones_like(x), x * 4 + 2, y * 4 + 2], -1).astype(np.float32)  # value: the pixel's place
    rois = np.array([[20, 16, 62, 58], [30.5, 20.25, 44.5, 76.25]], np.float32)
    made = np.asarray(jitted(level)([ramp], rois)[0])
    np.testing.assert_allclose(made[..., 0], 1, atol=1e-5)
    for roi, found in zip(rois, made):
        for axis, side in ((1, 0), (2, 1)):
            low, high = roi[side], roi[side + 2]
            centres = low + (np.arange(7) + 0.5) * (high - low) / 7
            expected = np.broadcast_to(centres if axis == 1 else centres[:, None], (7, 7))
            np.testing.assert_allclose(found[..., axis], expected, atol=1e-3)


# --- masks


def ellipse(height, width, box):
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1


def in_box(image, box, side):
    """Resamples a bitmap into its box at cell centres, as the data do."""
    x1, y1, x2, y2 = box
    rows = np.clip((y1 + (np.arange(side) + 0.5) * (y2 - y1) / side).astype(int), 0, image.shape[0] - 1)
    columns = np.clip((x1 + (np.arange(side) + 0.5) * (x2 - x1) / side).astype(int), 0, image.shape[1] - 1)
    return image[rows][:, columns].astype(np.uint8)


def area_loop(mask, box, roi, size):
    """Share of the object in every bin, by 40 x 40 points per bin."""
    made = np.zeros((size, size))
    for p in range(size):
        for q in range(size):
            y = roi[1] + (p + (np.arange(40) + 0.5) / 40) / size * (roi[3] - roi[1])
            x = roi[0] + (q + (np.arange(40) + 0.5) / 40) / size * (roi[2] - roi[0])
            row = np.floor((y - box[1]) / (box[3] - box[1]) * len(mask)).astype(int)
            column = np.floor((x - box[0]) / (box[2] - box[0]) * len(mask)).astype(int)
            inside = ((row >= 0) & (row < len(mask)))[:, None] & ((column >= 0) & (column < len(mask)))
            made[p, q] = np.where(inside, mask[row.clip(0, len(mask) - 1)][:, column.clip(0, len(mask) - 1)], 0).mean()
    return made


def test_mask_targets_are_at_least_half_of_a_bin_s_area():
    box = np.array([10, 20, 70, 50], np.float32)
    mask = in_box(ellipse(64, 96, box), box, 16)
    for roi in ([10, 20, 70, 50], [14, 15, 66, 55], [0, 0, 96, 64], [30, 30, 34, 33], [75, 20, 90, 40]):
        roi = np.array(roi, np.float32)
        (ours,) = np.asarray(mask_targets(mask[None], box[None], roi[None], 7))
        share = area_loop(mask, box, roi, 7)
        clear = np.abs(share - 0.5) > 0.02
        np.testing.assert_array_equal(ours[clear], (share >= 0.5)[clear])
        assert clear.mean() > 0.8
    for nothing in ([5, 5, 5, 5], [9, 9, 5, 5]):
        empty = mask_targets(mask[None], box[None], np.array([nothing], np.float32), 7)
        assert not np.asarray(empty).any()


@pytest.mark.parametrize(("side", "agreement"), [(112, 0.985), (56, 0.98)])
def test_targets_from_masks_in_boxes_agree_with_full_resolution_bitmaps(side, agreement):
    """mmdet's targets: RoIAlign of the bitmap at the image's resolution, at least one half."""
    agreed, overlap = [], []
    for box in ([10, 20, 130, 90], [30, 10, 60, 180], [5.5, 7.25, 17.75, 25.5], [20.3, 40.6, 190.2, 150.9]):
        box = np.array(box, np.float32)
        image = ellipse(200, 200, box)
        stored = in_box(image, box, side)
        for shift in RNG.uniform(-0.15, 0.15, (6, 4)):
            roi = (box + shift * np.tile(box[2:] - box[:2], 2)).astype(np.float32)
            bitmap = torch.from_numpy(image[None, None].astype(np.float32))
            theirs = ops.roi_align(bitmap, [torch.from_numpy(roi[None])], 28, 1.0, -1, True)[0, 0].numpy() >= 0.5
            (ours,) = np.asarray(mask_targets(stored[None], box[None], roi[None], 28))
            agreed.append((ours == theirs).mean())
            overlap.append((ours & theirs).sum() / (ours | theirs).sum())
    print(f"M = {side}: equal entries {np.mean(agreed):.4f} (least {min(agreed):.4f}), IoU {np.mean(overlap):.4f}")
    assert np.mean(agreed) > agreement


def pasted_by_pytorch(mask, box, size):
    """mmdet's paste: one grid_sample over the whole image."""
    x1, y1, x2, y2 = box
    x = torch.from_numpy((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1).float()
    y = torch.from_numpy((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1).float()
    grid = torch.stack([x.expand(size[0], -1), y[:, None].expand(-1, size[1])], -1)[None]
    return torch.nn.functional.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 70, 50],
        [10.3, 20.7, 15.1, 24.9],
        [-20, -10, 30, 20],
        [60, 40, 140, 90],
        [0, 0, 96, 64],
        [200, 5, 240, 30],
    ],
)
def test_pasting_a_mask_is_pytorch_s_grid_sample(box):
    mask = RNG.random((28, 28)).astype(np.float32)
    values = pasted_by_pytorch(mask, box, (64, 96))
    ours = masks.paste(mask, np.array(box, np.float32), (64, 96))
    clear = np.abs(values - 0.5) > 1e-4
    np.testing.assert_array_equal(ours[clear], (values >= 0.5)[clear])
    assert ours.dtype == np.uint8 and clear.mean() > 0.99


def test_pasting_into_a_box_without_area_gives_at_most_one_line():
    for box in ([5, 5, 5, 20], [5, 5, 5, 5], [20, 20, 5, 5]):
        made = masks.paste(np.ones((28, 28), np.float32), np.array(box, np.float32), (64, 96))
        assert made.any(0).sum() <= 1 and made.shape == (64, 96)
