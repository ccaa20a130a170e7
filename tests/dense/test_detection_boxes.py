"""Boxes, anchors, assignment, sampling and NMS against naive loops and torchvision, on random and edge input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.dense.detection import anchors, assignment, boxes, detection_losses, nms, sampling
from detailclip_jax.dense.detection.assignment import Objects

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")
N = 24  # boxes of every case, so that each function is compiled once


def random_boxes(number=N, side=60, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-10, side, (number, 2))
    return np.concatenate([low, low + rng.uniform(0.5, side / 2, (number, 2))], 1).astype(np.float32)


def edge_boxes():
    """Zero width, zero height, a point, inverted, equal, nested, touching, far outside, huge."""
    found = random_boxes(seed=1)
    found[:9] = [
        *([5, 5, 5, 9], [5, 5, 9, 5], [5, 5, 5, 5], [9, 9, 5, 5]),
        *([10, 10, 20, 20], [10, 10, 20, 20], [12, 12, 18, 18], [20, 10, 30, 20], [-1e4, -1e4, 1e4, 1e4]),
    ]
    return found


# each is one program; thresholds, numbers and spreads are part of it
iou, iof, clip, inside = map(jax.jit, (boxes.iou, boxes.iof, boxes.clip, anchors.inside))
encode, decode = (jax.jit(function, static_argnums=2) for function in (boxes.encode, boxes.decode))
class_wise_nms = jax.jit(nms.class_wise_nms, static_argnums=3)
assign = jax.jit(assignment.assign, static_argnums=(3, 4, 5))
sample = jax.jit(sampling.sample, static_argnums=(1, 2))
giou_loss = jax.jit(jax.value_and_grad(lambda first, second: detection_losses.giou_loss(first, second).sum()))

CASES = {"random": random_boxes(), "edge": edge_boxes(), "equal": np.tile([[3, 4, 13, 24]], (N, 1)).astype(np.float32)}


def iou_loop(first, second):
    made = np.zeros((len(first), len(second)))
    for i, a in enumerate(first.astype(np.float64)):
        for j, b in enumerate(second.astype(np.float64)):
            both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
            size = lambda c: max(c[2] - c[0], 0) * max(c[3] - c[1], 0)
            union = size(a) + size(b) - both
            made[i, j] = both / union if union > 0 else 0
    return made


# --- arithmetic


@pytest.mark.parametrize("case", CASES)
def test_iou_is_the_loop_s_and_torchvision_s(case):
    first, second = CASES[case], CASES["random"]
    ours = np.asarray(iou(first, second))
    np.testing.assert_allclose(ours, iou_loop(first, second), atol=1e-5)
    if case != "edge":  # torchvision gives inverted boxes positive areas, and 0 / 0 for points
        np.testing.assert_allclose(ours, ops.box_iou(torch.from_numpy(first), torch.from_numpy(second)), atol=1e-5)


def test_the_share_of_a_box_inside_another_is_one_for_nested_boxes():
    outer, inner = np.array([[0, 0, 10, 10]], np.float32), np.array([[2, 2, 4, 6]], np.float32)
    assert np.asarray(iof(inner, outer)) == 1
    np.testing.assert_allclose(iof(outer, inner), [[0.08]], rtol=1e-6)
    assert np.asarray(iof(np.array([[3, 3, 3, 3]], np.float32), outer)) == 0


@pytest.mark.parametrize("case", ["random", "equal"])
def test_the_giou_loss_and_its_gradient_are_torchvision_s(case):
    first, second = CASES[case], CASES["random"][::-1].copy()
    theirs = torch.from_numpy(first).requires_grad_()
    expected = ops.generalized_box_iou_loss(theirs, torch.from_numpy(second), reduction="none")
    expected.sum().backward()
    ours, gradient = giou_loss(first, second)
    np.testing.assert_allclose(ours, expected.sum().item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-5)


def test_the_giou_of_degenerate_boxes_is_finite_with_a_finite_gradient():
    first, zeros = CASES["edge"], np.zeros((N, 4), np.float32)
    for given in ((first, first[::-1]), (zeros, zeros)):
        value, gradient = giou_loss(*given)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_decoding_inverts_encoding_and_follows_its_formula():
    own, target = random_boxes(seed=2), random_boxes(seed=3)
    stds = (0.1, 0.1, 0.2, 0.2)
    offsets = np.asarray(encode(own, target, stds))
    for b, t, found in zip(own, target, offsets):
        w, h = b[2] - b[0], b[3] - b[1]
        shift = [((t[i] + t[i + 2]) - (b[i] + b[i + 2])) / 2 / (w, h)[i] for i in (0, 1)]
        ratio = [np.log((t[i + 2] - t[i]) / (w, h)[i]) for i in (0, 1)]
        np.testing.assert_allclose(found, np.array(shift + ratio) / stds, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decode(own, offsets, stds), target, atol=1e-3)


def test_a_decoded_side_grows_at_most_62_5_times():
    wild, box = np.array([[0, 0, 100, -100]], np.float32), np.array([[0, 0, 16, 16]], np.float32)
    np.testing.assert_allclose(np.asarray(decode(box, wild))[0], [8 - 500, 8 - 0.128, 8 + 500, 8 + 0.128], rtol=1e-5)


def test_offsets_between_boxes_without_area_are_finite():
    degenerate, zeros = CASES["edge"], np.zeros((N, 4), np.float32)
    for own, target in ((degenerate, degenerate[::-1]), (zeros, zeros)):
        assert np.isfinite(encode(own, target)).all()


def test_clipping_moves_corners_into_the_image():
    made = clip(np.array([[-5, -6, 200, 300], [120, 80, 130, 90]], np.float32), np.array([50, 100]))
    np.testing.assert_array_equal(made, [[0, 0, 100, 50], [100, 50, 100, 50]])


# --- anchors


def test_anchors_are_torchvision_s_but_for_its_rounding_to_pixels():
    """torchvision rounds corners to whole pixels and the stride; ratios are height / width in both."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    levels = [anchors.Level(stride, 64 // stride, 96 // stride) for stride in (4, 8, 16)]
    ratios = (0.5, 1.0, 2.0)
    generator = AnchorGenerator(tuple((8 * level.stride,) for level in levels), (ratios,) * 3)
    maps = [torch.zeros(1, 1, level.height, level.width) for level in levels]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)]), maps)
    ours = np.concatenate([anchors.level_anchors(level, 8.0, ratios) for level in levels])
    assert ours.shape == tuple(theirs.shape) and np.abs(ours - theirs.numpy()).max() <= 0.5
    square = np.arange(len(ours)) % 3 == 1
    np.testing.assert_array_equal(ours[square], theirs.numpy()[square])
    sides = ours[:, 2:] - ours[:, :2]
    np.testing.assert_allclose(sides[:3, 1] / sides[:3, 0], ratios, rtol=1e-6)
    np.testing.assert_allclose(sides[:3].prod(1), 32.0**2, rtol=1e-6)


def test_anchors_take_part_inside_the_content_only():
    level = anchors.Level(4, 8, 8)
    made = anchors.level_anchors(level, 2.0, (1.0,))
    size, extent = np.array([20, 15]), np.array([24, 16])
    ours = np.asarray(inside(made, size))
    for (x1, y1, x2, y2), found in zip(made, ours):
        assert found == (x1 >= 0 and y1 >= 0 and x2 < 15 and y2 < 20)
    stand = np.asarray(jax.jit(lambda extent: anchors.within_extent([level, level], extent, 2))(extent)).reshape(
        2, 8, 8, 2
    )
    assert stand[:, :6, :4].all() and stand.sum() == 2 * 6 * 4 * 2
    placed = np.asarray(jax.jit(lambda extent: anchors.places(level, extent))(np.array([[24, 16], [0, 32], [21, 13]])))
    assert [x.sum() for x in placed] == [6 * 4, 0, 6 * 4]


# --- assignment


def objects_of(found, labels, crowd=None):
    crowd = np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd)
    return Objects(np.asarray(found), np.asarray(labels, np.int32), crowd)


def assign_loop(candidates, valid, objects, positive, negative, min_positive, ignore_iof):
    """MaxIoUAssigner, one statement per rule."""
    made = np.full(len(candidates), -2)
    usable = [g for g in range(len(objects.labels)) if objects.labels[g] >= 0 and not objects.crowd[g]]
    crowds = [g for g in range(len(objects.labels)) if objects.labels[g] >= 0 and objects.crowd[g]]
    overlaps = np.asarray(iou(candidates, objects.boxes))
    inside = np.asarray(iof(candidates, objects.boxes))
    open_ = [
        n
        for n in range(len(candidates))
        if valid[n] and not (ignore_iof >= 0 and any(inside[n, g] > ignore_iof for g in crowds))
    ]
    for n in open_:
        best = max(usable, key=lambda g: (overlaps[n, g], -g), default=None)
        value = overlaps[n, best] if usable else 0
        made[n] = best if usable and value >= positive else -1 if value < negative else -2
    if min_positive is not None:
        for g in usable:
            largest = max((overlaps[n, g] for n in open_), default=0)
            for n in open_:
                if largest >= min_positive and overlaps[n, g] == largest:
                    made[n] = g
    return made


TRUTH = {
    "random": objects_of(random_boxes(6, seed=5), [0, 3, 1, 2, 0, 4]),
    "padded": objects_of(random_boxes(6, seed=5), [0, 3, -1, -1, -1, -1]),
    "none": objects_of(random_boxes(6, seed=5), [-1] * 6),
    "crowd": objects_of(random_boxes(6, seed=5), [0, 3, 1, 2, 0, 4], [False, True, False, True, False, False]),
    "equal": objects_of(np.tile([[3, 4, 13, 24]], (6, 1)).astype(np.float32), [0, 3, 1, 2, 0, 4]),
}


@pytest.mark.parametrize("ignore", [-1.0, 0.5])
@pytest.mark.parametrize("low", [0.3, None])
def test_assignment_is_the_loop_s(low, ignore):
    run = jax.jit(lambda *args: assignment.assign(*args, 0.5, 0.3, low, ignore))
    for name, objects in TRUTH.items():
        for case, candidates in CASES.items():
            valid = np.random.default_rng(0).random(N) < 0.8
            expected = assign_loop(candidates, valid, objects, 0.5, 0.3, low, ignore)
            made = run(candidates, valid, objects)
            np.testing.assert_array_equal(made, expected, err_msg=f"{name} {case}")


def test_an_object_without_a_good_anchor_takes_its_best_one():
    candidates = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]], np.float32)
    objects = objects_of(np.array([[0, 0, 10, 25]], np.float32), [2])
    valid = np.ones(3, bool)
    np.testing.assert_array_equal(assign(candidates, valid, objects, 0.7, 0.3, 0.3), [0, -1, -1])
    np.testing.assert_array_equal(assign(candidates, valid, objects, 0.7, 0.3), [-2, -1, -1])


# --- sampling


@pytest.mark.parametrize(
    ("positives", "negatives", "others", "expected"),
    [
        (3, 30, 5, (3, 13)),
        (20, 30, 0, (4, 12)),  # more positives than allowed
        (20, 2, 0, (4, 2)),  # they do not fill what negatives leave free
        (0, 30, 4, (0, 16)),
        (2, 5, 40, (2, 5)),  # fewer candidates than slots
        (0, 0, 6, (0, 0)),
    ],
)
def test_a_sample_has_the_numbers_of_the_protocol_and_no_repetition(positives, negatives, others, expected):
    assigned = np.array([0, 1, 2][:1] * positives + [-1] * negatives + [-2] * others)
    np.random.default_rng(0).shuffle(assigned)
    drawn = sample(assigned, 16, 4, jax.random.key(3))
    index, positive, negative = (np.asarray(x) for x in drawn)
    assert (positive.sum(), negative.sum()) == expected and not (positive & negative).any()
    assert (assigned[index[positive]] >= 0).all() and (assigned[index[negative]] == -1).all()
    used = index[np.asarray(drawn.valid)]
    assert len(set(used)) == len(used) and not index[~np.asarray(drawn.valid)].any()
    assert np.array_equal(np.argsort(~positive, kind="stable"), np.arange(16))  # positives come first


def test_every_candidate_is_drawn_equally_often():
    assigned = np.array([0] * 6 + [-1] * 10)

    @jax.jit
    def drawn(key):
        found = jax.vmap(lambda key: sampling.sample(jnp.asarray(assigned), 5, 2, key))(jax.random.split(key, 2000))
        return found.index, found.valid

    index, valid = map(np.asarray, drawn(jax.random.key(0)))
    counts = np.bincount(index[valid], minlength=16) / 2000
    np.testing.assert_allclose(counts, [2 / 6] * 6 + [3 / 10] * 10, atol=0.05)


# --- NMS


def nms_loop(found, scores, valid, threshold):
    overlaps, kept = np.asarray(iou(found, found)), []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        if all(overlaps[i, j] <= threshold for j in kept):
            kept.append(i)
    return sorted(kept)


@functools.cache
def compiled(threshold):
    return jax.jit(lambda *args: nms.nms(*args[:3], threshold, *args[3:]))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_nms_is_the_loop_s_and_torchvision_s(case, threshold):
    rng = np.random.default_rng(0)
    found, scores, valid = CASES[case], rng.random(N).astype(np.float32).round(1), rng.random(N) < 0.8
    ours = np.flatnonzero(compiled(threshold)(found, scores, valid))
    np.testing.assert_array_equal(ours, nms_loop(found, scores, valid, threshold))
    if case != "edge":  # ties are not ordered in torchvision
        distinct = (scores + np.arange(N) * 1e-3).astype(np.float32)
        ours = np.flatnonzero(compiled(threshold)(found, distinct, np.ones(N, bool)))
        theirs = ops.nms(torch.from_numpy(found), torch.from_numpy(distinct), threshold)
        np.testing.assert_array_equal(ours, sorted(theirs.tolist()))


def test_nms_of_nothing_and_of_invalid_boxes_keeps_nothing():
    assert compiled(0.5)(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, bool)).shape == (0,)
    made = compiled(0.5)(CASES["random"], np.ones(N, np.float32), np.zeros(N, bool))
    assert not np.asarray(made).any()


def test_a_long_chain_of_suppressions_is_followed_to_its_end():
    """Box i overlaps only its neighbours, so every second one is kept: the slowest case of the iteration."""
    start = np.arange(N) * 4.0
    chain = np.stack([start, 0 * start, start + 10, 0 * start + 10], 1).astype(np.float32)
    made = compiled(0.3)(chain, np.linspace(1, 0.1, N, dtype=np.float32), np.ones(N, bool))
    np.testing.assert_array_equal(made, np.arange(N) % 2 == 0)


def test_classes_suppress_only_themselves_like_torchvision_s_batched_nms():
    rng = np.random.default_rng(4)
    found, scores, labels = random_boxes(side=30, seed=9), rng.random(N).astype(np.float32), rng.integers(0, 3, N)
    theirs = ops.batched_nms(*(torch.from_numpy(x) for x in (found, scores, labels)), 0.5)
    ours = compiled(0.5)(found, scores, np.ones(N, bool), labels)
    np.testing.assert_array_equal(np.flatnonzero(ours), sorted(theirs.tolist()))
    apart = labels[:, None] == np.arange(3)
    many = [np.repeat(x[:, None], 3, 1) for x in (found, scores)]
    by_class = class_wise_nms(*many, apart, 0.5)
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(by_class).any(1)), sorted(theirs.tolist()))
    batch = jax.jit(jax.vmap(lambda *x: nms.nms(*x, 0.5)))(*(np.stack([x, x]) for x in (found, scores, labels < 1)))
    np.testing.assert_array_equal(batch[0], batch[1])
