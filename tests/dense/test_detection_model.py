"""The whole detector: losses and detections against PyTorch, padding, devices, empty images, other platforms."""

import dataclasses
import functools

import detection_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny import noise

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.dense.detection import cascade, detector, rpn
from detailclip_jax.dense.detection.anchors import num_places
from detailclip_jax.dense.detection.assignment import Objects
from detailclip_jax.dense.detection.backbone import extents
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.models.vit import VisionTransformer

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision.ops")
K, G, SIDE = 3, 4, 64
TINY = Options(
    **{"positions": (6, 8), "width": 8, "anchor_scale": 2.0, "rpn_samples": 32, "finest_scale": 7.0, "fc_width": 16},
    **{"candidates_train": 40, "candidates_test": 30, "proposals_train": 40, "proposals_test": 24, "roi_samples": 16},
    **{
        "roi_cells": 200,
        "num_convs": 1,
        "mask_convs": 1,
        "score_threshold": 0.2,
        "max_per_image": 12,
        "mask_roi_size": 4,
    },
)
LEARNING = Options(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"width": 16, "fc_width": 32})
EVERYTHING = Options(  # samples hold every candidate, so that no number depends on the draw
    **{name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    | {"rpn_samples": 4096, "rpn_positive_ratio": 1.0, "roi_samples": 64, "roi_positive_ratio": 1.0}
)


def encoder(**changes):
    given = {"patch_size": 8, "width": 12, "depth": 2, "num_heads": 2, "image_size": 48, "interpolation": "ibot"}
    return VisionTransformer(**given | changes)


def batch(number=8, height=SIDE, width=SIDE, seed=0):
    """Random images of several sizes; the objects of the first are equal, the last has none, the second a crowd."""
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.integers(height // 2, height + 1, number), rng.integers(width // 2, width + 1, number)], 1)
    sizes[0] = height, width
    images = np.zeros((number, height, width, 3), np.uint8)
    low = rng.uniform(0, 0.6, (number, G, 2)) * sizes[:, None, ::-1]
    high = low + rng.uniform(0.2, 0.4, (number, G, 2)) * sizes[:, None, ::-1]
    labels, crowd = rng.integers(-1, K, (number, G)), np.zeros((number, G), bool)
    for image, (h, w) in zip(images, sizes):
        image[:h, :w] = rng.integers(0, 256, (h, w, 3))
    boxes = np.concatenate([low, high], -1).astype(np.float32)
    boxes[0], labels[0], labels[-1] = boxes[0, :1], [0, 1, 1, 2], -1
    labels[1, 0], crowd[1, 0] = 1, True
    masks = rng.random((number, G, 8, 8)) < 0.7
    made = {"image": images, "size": sizes, "boxes": boxes, "labels": labels, "crowd": crowd, "masks": masks}
    kinds = {"size": np.int32, "labels": np.int32, "masks": np.uint8}
    return jax.device_put({name: x.astype(kinds.get(name, x.dtype)) for name, x in made.items()})


@functools.cache
def variables():
    """Weights large enough for boxes to move and classes to differ, and running statistics that are not 0 and 1."""
    shapes = jax.eval_shape(detector.build(encoder(), TINY, K).init, jax.random.key(0), batch(2))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        gain, variance = (path[-1].key == name for name in ("scale", "variance"))
        drawn = (
            rng.uniform(0, 0.2, leaf.shape) if path[0].key == "batch_stats" else 0.12 * rng.standard_normal(leaf.shape)
        )
        return (drawn + (gain or variance)).astype(np.float32)

    return jax.device_put(jax.tree.map_with_path(draw, shapes))


@functools.cache
def step(devices=0, gradients=True):
    """The jitted function of (params, batch, keys) -> (loss, (losses, statistics)), and gradients."""
    axis = "data" if devices else None
    made, stats = detector.build(encoder(drop_path=0.3), TINY, K, axis), variables()["batch_stats"]

    def run(params, batch, keys):
        given = {"params": params, "batch_stats": stats}
        losses, changed = made.apply(given, batch, train=True, keys=keys, mutable=["batch_stats"])
        return losses.total, (losses, changed["batch_stats"])

    if devices:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        run = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=False)
    return jax.jit(jax.value_and_grad(run, has_aux=True) if gradients else run)


@functools.cache
def program():
    """The jitted function of (variables, images, size) -> detections, with the stages as CPUs have them."""
    return jax.jit(functools.partial(detector.build(encoder(), TINY, K).apply, method="detect"))


def keys(number=8, seed=5):
    return jax.random.split(jax.random.key(seed), number)


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.check
def test_losses_and_their_gradients_are_finite_and_reach_every_network():
    (total, (losses, stats)), gradient = step()(variables()["params"], batch(), keys())
    assert finite((total, losses, stats, gradient))
    np.testing.assert_allclose(total, sum(getattr(losses, name) for name in detector.TERMS), rtol=1e-6)
    assert all(getattr(losses, name) > 0 for name in detector.TERMS)
    assert losses.objects == np.asarray((batch()["labels"] >= 0) & ~batch()["crowd"]).sum()
    unused = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.asarray(leaf).any()
    }
    coarsest = "['fpn']['output_3']"  # has few anchors, and no RoI in images of this size
    norm = {"['image']['norm']['bias']", "['image']['norm']['scale']"}  # the taps are not normalised
    assert {name for name in unused if not name.startswith(coarsest)} == norm
    jax.tree.map(lambda a, b: np.abs(a - b).max() > 0 or pytest.fail("statistics"), stats, variables()["batch_stats"])


@pytest.mark.check
@pytest.mark.parametrize("with_gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stages_one_by_one_have_the_losses_of_the_loop(with_gradients):
    """CPUs run the stages one by one, accelerators in a loop; two images, with every candidate in the samples."""
    given, values, levels = batch(2), variables(), detector.grids(SIDE, SIDE, 8)[:4]
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, level.height, level.width, TINY.width)).astype(np.float32) for level in levels]
    near = np.asarray(given["boxes"]).repeat(6, 1) + rng.uniform(-3, 3, (2, 6 * G, 4)).astype(np.float32)
    found = rpn.Proposals(near, rng.random((2, 6 * G)) < 0.9)
    truth = cascade.Truth(Objects(given["boxes"], given["labels"], given["crowd"]), given["masks"])

    def run(unroll):
        made = cascade.Cascade(K, dataclasses.replace(EVERYTHING, unroll=unroll))

        def total(params, maps):
            own = {"params": params, "batch_stats": values["batch_stats"]["cascade"]}
            features = cascade.Maps(maps, given["size"], extents(given["size"], 8))
            losses, stats = made.apply(
                own, features, levels, found, truth, keys(2), True, method="train_losses", mutable=["batch_stats"]
            )
            return losses.classes.sum() + losses.boxes.sum() + losses.masks.sum(), (losses, stats)

        given_values = values["params"]["cascade"], maps
        if with_gradients:
            return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*given_values)
        return jax.jit(total)(*given_values), {}

    ((_, looped_values), looped_gradient), ((_, (losses, stats)), gradient) = run(False), run(True)
    assert all((np.asarray(leaf) > 0).all() for leaf in losses[:3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), looped_values, (losses, stats))
    norm = max((np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)), default=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), looped_gradient, gradient)


@pytest.mark.check
def test_a_batch_without_objects_and_one_without_pixels_have_finite_losses():
    empty = {**batch(), "labels": jnp.full_like(batch()["labels"], -1)}
    (_, (losses, stats)), gradient = step()(variables()["params"], empty, keys())
    assert finite((losses, stats, gradient)) and losses.objects == losses.missed_objects == 0
    assert all(getattr(losses, name) == 0 for name in detector.TERMS if name.startswith(("box", "mask", "rpn_box")))
    assert losses.class_1 > 0 and losses.rpn_class > 0
    nothing = {**empty, "size": jnp.zeros_like(batch()["size"])}
    (_, (losses, stats)), gradient = step()(variables()["params"], nothing, keys())
    assert finite((losses, stats, gradient)) and losses.total == losses.proposals == 0


@pytest.mark.check
def test_one_device_and_eight_give_the_same_losses_and_statistics():
    """Every loss is divided by a count of the whole batch, and BatchNorm has the statistics of all images."""
    (_, (one, one_stats)), _ = step()(variables()["params"], batch(), keys())
    _, (eight, eight_stats) = step(devices=8, gradients=False)(variables()["params"], batch(), keys())
    for name, a, b in zip(detector.Losses._fields, one, eight):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one_stats, eight_stats)


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_gradients():
    _, one = step()(variables()["params"], batch(), keys())
    _, eight = step(devices=8)(variables()["params"], batch(), keys())
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), one, eight)


def rectangles(number=2):
    """Images of two rectangles each, whose colour is the class."""
    rng, made = np.random.default_rng(2), batch(number)
    images = rng.integers(60, 100, (number, SIDE, SIDE, 3)).astype(np.uint8)
    boxes, labels = np.zeros((number, G, 4), np.float32), np.full((number, G), -1, np.int32)
    for image, found, of in zip(images, boxes, labels):
        for n, left in enumerate((2, 34)):
            x, y, w, h = left + rng.integers(0, 6), rng.integers(2, 36), rng.integers(14, 24), rng.integers(14, 26)
            found[n], of[n] = [x, y, x + w, y + h], rng.integers(0, K)
            image[y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[of[n]] * 255
    whole = {"size": jnp.full_like(made["size"], SIDE), "crowd": jnp.zeros_like(made["crowd"])}
    masks = jnp.ones_like(made["masks"])
    return (
        made
        | whole
        | {"image": jnp.asarray(images), "boxes": jnp.asarray(boxes), "labels": jnp.asarray(labels), "masks": masks}
    )


@pytest.mark.slow
def test_the_detector_learns_a_few_images():
    """Every rectangle is found with its colour; masks fill their boxes."""
    given, made = rectangles(), detector.build(encoder(), LEARNING, K)
    start = jax.jit(made.init)(jax.random.key(0), given)
    adam = optax.adam(3e-3)

    def loss(params, stats, key):
        variables = {"params": params, "batch_stats": stats}
        found, changed = made.apply(
            variables, given, train=True, keys=jax.random.split(key, 2), mutable=["batch_stats"]
        )
        return found.total, changed["batch_stats"]

    @jax.jit
    def step(params, stats, state, key):
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats, key)
        change, state = adam.update(gradient, state)
        return optax.apply_updates(params, change), stats, state, value

    params, stats, values = start["params"], start["batch_stats"], []
    state = adam.init(params)
    for key in jax.random.split(jax.random.key(1), 60):
        params, stats, state, value = step(params, stats, state, key)
        values.append(float(value))
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:5])
    found = jax.jit(functools.partial(made.apply, method="detect"))(
        {"params": params, "batch_stats": stats}, given["image"], given["size"]
    )
    for number in range(2):
        objects = np.flatnonzero(np.asarray(given["labels"][number]) >= 0)
        overlaps = np.asarray(box.iou(given["boxes"][number][objects], found.boxes[number]))
        same = np.asarray(given["labels"][number])[objects][:, None] == np.asarray(found.labels[number])
        best = np.where(same, overlaps, 0).argmax(1)
        assert (np.where(same, overlaps, 0).max(1) > 0.6).all()
        assert (np.asarray(found.masks[number])[best] > 0.5).mean() > 0.9


# --- against PyTorch


@pytest.mark.check
def test_losses_are_those_of_pytorch_when_every_candidate_is_sampled():
    given, values = batch(3), variables()
    made = detector.build(encoder(), EVERYTHING, K)

    def features(m):
        maps, _ = m.features(given["image"], given["size"], True)
        return maps, m.rpn(maps.maps)

    @jax.jit
    def run(values):
        losses, _ = made.apply(values, given, train=True, keys=keys(3), mutable=["batch_stats"])
        found, _ = made.apply(values, method=features, mutable=["batch_stats"])
        return losses, found

    ours, (maps, (logits, offsets)) = run(values)
    levels = detector.grids(SIDE, SIDE, 8)
    expected = oracle.losses(values, given, maps, levels, logits, offsets, EVERYTHING, K)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(ours, name), value, rtol=2e-4, atol=1e-6, err_msg=name)
    assert set(expected) == set(detector.TERMS)


@pytest.mark.check
def test_detections_are_those_of_pytorch():
    given, made = batch(3), detector.build(encoder(), TINY, K)
    ours = program()(variables(), given["image"], given["size"])

    def features(m):
        maps, _ = m.features(given["image"], given["size"])
        return maps, m.rpn(maps.maps)

    maps, (logits, offsets) = jax.jit(functools.partial(made.apply, method=features))(variables())
    levels = detector.grids(SIDE, SIDE, 8)
    for number in range(3):
        expected = oracle.detections(variables(), number, maps, levels, logits, offsets, TINY, K)
        count = len(expected[0])
        assert 0 < count == (np.asarray(ours.labels[number]) >= 0).sum()
        for name, mine, other in zip(ours._fields, ours, expected):
            np.testing.assert_allclose(
                mine[number, :count], other, atol=2e-3 if name == "boxes" else 2e-4, err_msg=name
            )
        assert not np.asarray(ours.scores[number, count:]).any() and not np.asarray(ours.boxes[number, count:]).any()


# --- fixed shapes


@pytest.mark.slow
def test_detections_depend_neither_on_the_array_nor_on_the_other_images():
    first, second = batch(3), batch(2, 80, 112, seed=7)
    images = np.zeros((2, 80, 112, 3), np.uint8)
    images[0], images[1, :SIDE, :SIDE] = second["image"][0], first["image"][1]
    images[1, first["size"][1, 0] :], images[1, :, first["size"][1, 1] :] = 77, 77  # not 0: padding is set to 0
    sizes = jnp.stack([second["size"][0], first["size"][1]])
    here, there = (
        program()(variables(), first["image"], first["size"]),
        program()(variables(), jnp.asarray(images), sizes),
    )
    assert (np.asarray(here.labels[1]) >= 0).sum() > 3
    for name, a, b in zip(here._fields, here, there):
        np.testing.assert_allclose(a[1], b[1], atol=1e-4, err_msg=name)


@pytest.mark.check
def test_detections_are_sorted_valid_and_within_the_content():
    given = batch(3)
    found = program()(variables(), given["image"], given["size"])
    scores, labels, boxes = (np.asarray(x) for x in (found.scores, found.labels, found.boxes))
    assert (
        (np.diff(scores) <= 0).all() and ((labels >= 0) == (scores > TINY.score_threshold)).all() and labels.max() < K
    )
    limit = np.asarray(given["size"])[:, None, [1, 0, 1, 0]]
    assert (boxes >= 0).all() and (boxes <= limit).all()
    assert found.masks.shape == (3, 12, 8, 8) and 0 <= found.masks.min() <= found.masks.max() <= 1
    none = program()(variables(), given["image"], jnp.zeros((3, 2), jnp.int32))
    assert (np.asarray(none.labels) == -1).all() and finite(none)


def test_more_boxes_than_slots_leave_the_best_of_all_classes():
    rng = np.random.default_rng(0)
    boxes = np.zeros((40, 2, 4), np.float32)
    boxes[..., 0], boxes[..., 2], boxes[..., 3] = (np.arange(40) * 10)[:, None], (np.arange(40) * 10 + 8)[:, None], 8
    scores = rng.random((40, 2)).astype(np.float32)
    select = jax.jit(detector.select, static_argnums=(2, 3, 4))
    made = select(boxes, scores, 0.05, 0.5, 5)
    np.testing.assert_allclose(made.scores, np.sort(scores.ravel())[::-1][:5])
    few = select(boxes[:1], scores[:1], 0.05, 0.5, 5)
    assert (np.asarray(few.labels) >= 0).sum() == 2 and few.boxes.shape == (5, 4)


@pytest.mark.check
def test_proposals_without_area_are_left_out():
    levels = detector.grids(64, 64, 8)
    logits = [np.zeros(level.height * level.width * 3, np.float32) for level in levels]
    offsets = [np.float32([0, 0, -100 if i else 0, 0]) * np.ones((len(x), 1), np.float32) for i, x in enumerate(logits)]

    @jax.jit
    def proposed(extent, size):
        return rpn.proposals(*jax.tree.map(jnp.asarray, (logits, offsets)), levels, extent, size, TINY, True)

    found = proposed(np.array([0, 0]), np.array([64, 64]))
    assert not np.asarray(found.valid).any()
    found = proposed(np.array([64, 64]), np.array([64, 64]))
    assert np.asarray(found.valid).all() and found.boxes.shape == (40, 4)


def test_the_samples_of_a_stage_hold_the_objects_own_boxes_first():
    boxes = np.array([[0, 0, 20, 20], [30, 30, 50, 50], [0, 0, 0, 0]], np.float32)
    objects = Objects(boxes, np.array([2, 0, -1], np.int32), np.zeros(3, bool))
    rois = np.array([[1, 1, 20, 20], [30, 30, 40, 50], [60, 60, 62, 62], [0, 0, 1, 1]], np.float32)
    valid = np.array([True, True, True, False])
    choose = jax.jit(cascade.choose, static_argnums=(4, 5, 6))
    made = choose(rois, valid, objects, jax.random.key(0), 0.5, K, EVERYTHING)
    drawn = np.asarray(made.drawn.index)[np.asarray(made.drawn.valid)]
    assert set(drawn) == {0, 1, 3, 4, 5} and sorted(np.asarray(made.label)[:5]) == [0, 0, 2, 2, K]
    assert (np.asarray(made.label)[5:] == K).all()


@pytest.mark.check
def test_losses_and_detections_of_a_half_precision_encoder_are_float32():
    """Shapes and types only: nothing is compiled."""
    made, given = detector.build(encoder(dtype=jnp.bfloat16, remat="full"), TINY, K), batch(2)
    run, own = functools.partial(made.apply, train=True, mutable=["batch_stats"]), variables()
    shapes, _ = jax.eval_shape(run, own, given, keys=keys(2))
    found = jax.eval_shape(functools.partial(made.apply, method="detect"), own, given["image"], given["size"])
    assert {leaf.dtype for leaf in (*shapes, found.boxes, found.scores, found.masks)} == {jnp.dtype("float32")}


def test_the_levels_of_any_patch_size_have_quarters_of_it_as_strides():
    """Patches of 14 pixels: 3.5 to 56; an image of 84 x 112 pixels in an array of 112 x 140."""
    levels = detector.grids(112, 140, 14)
    assert [tuple(level) for level in levels] == [(3.5, 32, 40), (7, 16, 20), (14, 8, 10), (28, 4, 5), (56, 2, 3)]
    counts = [np.asarray(num_places(jnp.array([84, 112]), level)).tolist() for level in levels]
    assert counts == [[24, 32], [12, 16], [6, 8], [3, 4], [2, 2]]
    assert [tuple(level) for level in detector.grids(64, 96, 16)] == [
        *((4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3), (64, 1, 2))
    ]


@pytest.mark.slow
def test_an_encoder_of_patch_size_14_detects_and_has_finite_losses():
    made = detector.build(encoder(patch_size=14, image_size=28), TINY, K)
    given = batch(2, 56, 84)
    shapes = jax.eval_shape(made.init, jax.random.key(0), given)
    variables = {"params": noise(shapes["params"]), "batch_stats": jax.tree.map(jnp.abs, noise(shapes["batch_stats"]))}

    @jax.jit
    def both(variables, given):
        found = made.apply(variables, given["image"], given["size"], method="detect")
        return found, made.apply(variables, given, train=True, mutable=["batch_stats"])[0]

    found, losses = both(variables, given)
    assert finite((found, losses)) and losses.rpn_class > 0 and losses.class_1 > 0
    limits = np.asarray(given["size"])[:, None, ::-1]
    assert (np.asarray(found.boxes).reshape(2, -1, 2, 2) <= limits[:, :, None] + 1e-3).all()


@pytest.mark.check
def test_the_network_lowers_for_gpus_and_tpus():
    """With the shapes of other tests, so that nothing is traced again."""
    platforms = ("cuda", "tpu")
    for function, *given in (
        (step(), variables()["params"], batch(), keys()),
        (program(), variables(), batch(3)["image"], batch(3)["size"]),
    ):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
        assert jax.export.export(function, platforms=platforms)(*shapes).platforms == platforms
