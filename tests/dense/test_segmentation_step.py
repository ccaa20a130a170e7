"""One step of a segmentation run: the number of devices, frozen encoders, padding, loaded encoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise, noise_state, tiny_config

from detailclip_jax import methods
from detailclip_jax.config import sizes
from detailclip_jax.config.segmentation_fields import linear, segmentation, stickers
from detailclip_jax.dense import runs
from detailclip_jax.dense.segmentation.segmentation_network import normalise_content
from detailclip_jax.methods import METHODS
from detailclip_jax.models import positions
from detailclip_jax.training import dense_encoder, mesh

SIZE = {**sizes.SIZES["tiny"]._asdict(), "width": 24, "depth": 2, "num_heads": 2}


def tiny(head="upernet", **changes):
    config = stickers(segmentation())
    if head == "linear":
        linear(config)
    else:
        config.head.options.width, config.auxiliary.options.width = 8, 8
    config.model.size, config.model.custom = "custom", SIZE
    config.views.crop = config.inference.window = 32
    config.inference.scale, config.inference.stride, config.inference.batch_size = (32, 32), 21, 8
    config.views.scale, config.data.canvas, config.data.num_val = (40, 40), 40, 6
    config.batch_size, config.total_steps, config.optimizer.warmup_steps = 8, 6, 2
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def built(head="upernet", devices=1):
    return runs.build(tiny(head), mesh.make_mesh(jax.devices()[:devices]))


@functools.cache
def on_host(head):
    """A state of noise for a head, made once."""
    return jax.device_get(noise_state(built(head)))


def initial(made, head="upernet"):
    """That state, on the devices of the experiment; a step may take its buffers."""
    return jax.tree.map(lambda x, shape: jax.device_put(np.array(x), shape.sharding), on_host(head), made.state_shapes)


def batch(seed=0):
    with built().batches(8 * seed) as batches:
        return next(batches)


def steps(made, state, count=2):
    values = {}
    for seed in range(count):
        state, values = made.train_step(state, made.put(batch(seed)))
    return jax.device_get((state, values))


@pytest.mark.check
def test_one_device_and_eight_give_the_same_state():
    """Also through BatchNorm, dropout and drop path, whose draws belong to the images; each two share one state."""
    one, eight = built(), runs.build(tiny(**{"mesh.fsdp": 2}), mesh.make_mesh(jax.devices(), 2))
    assert any("fsdp" in str(shape.sharding.spec) for shape in jax.tree.leaves(eight.state_shapes))
    first, second = steps(one, initial(one)), steps(eight, initial(eight))
    for name in ("head", "auxiliary", "loss", "accuracy"):
        np.testing.assert_allclose(first[1][name], second[1][name], rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), first[0].params, second[0].params)
    stats = [state.batch_stats["student"] for state, _ in (first, second)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *stats)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(stats[0]))


@pytest.mark.check
def test_a_frozen_encoder_stays_bit_identical_and_has_no_moments():
    made, before = built("linear"), on_host("linear").params
    state, _ = steps(made, initial(made, "linear"))
    jax.tree.map(np.testing.assert_array_equal, before["image"], state.params["image"])
    kernel = ("classifier", "conv", "kernel")
    old, new = (
        functools.reduce(lambda tree, name: tree[name], kernel, tree["head"]) for tree in (before, state.params)
    )
    assert np.abs(old - new).max() > 0
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert sum(moments) < 3 * sum(leaf.size for leaf in jax.tree.leaves(before["head"])) + 10


@pytest.mark.check
def test_an_encoder_trained_end_to_end_moves_in_every_layer():
    before = on_host("upernet").params
    state, _ = steps(built(), initial(built()))
    for layer, old in before["image"].items():
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), old, state.params["image"][layer])
        assert max(jax.tree.leaves(moved)) > 0, layer


def test_padding_becomes_the_mean_of_the_pixels():
    mean, std = tiny().preprocess.mean, tiny().preprocess.std
    size = jnp.array([[20, 24]], jnp.int32)
    images = np.asarray(normalise_content(jnp.full((1, 32, 32, 3), 200, jnp.uint8), size, mean, std))
    assert not images[0, 20:].any() and not images[0, :, 24:].any()
    inside = (200 / 255 - np.array(mean)) / std
    np.testing.assert_allclose(images[0, :20, :24], np.broadcast_to(inside, (20, 24, 3)), rtol=1e-5)


@pytest.mark.check
def test_an_evaluation_does_not_depend_on_the_number_of_devices():
    one, eight = built("linear"), built("linear", 8)
    found, other = (made.evaluate(initial(made, "linear")) for made in (one, eight))
    assert found.found.confusion.sum() == 6 * 40 * 40
    assert found.scores["mIoU"] == pytest.approx(other.scores["mIoU"], abs=0.05)


def test_the_example_stream_resumes_at_any_position():
    with built().batches(8) as late, built().batches(0) as early:
        next(early)
        for _ in range(2):
            jax.tree.map(np.testing.assert_array_equal, next(early), next(late))


def test_the_shapes_of_a_batch_are_those_of_the_stream():
    shapes = built().batch_shapes()
    assert {name: (x.shape, x.dtype) for name, x in batch().items()} == {
        name: (shape.shape, shape.dtype) for name, shape in shapes.items()
    }


@pytest.mark.check
@pytest.mark.parametrize("recipe", ["bicubic", "timm"])
@pytest.mark.parametrize("fixed", [False, True])
def test_positions_are_resized_once_and_fixed_ones_become_learnt(recipe, fixed):
    from detailclip_jax.models.vit import Style, VisionTransformer

    vit = VisionTransformer(8, 24, 2, 2, 64, style=Style(positions="sincos" if fixed else "learnt"))
    params = noise(jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])
    config = tiny(**{"encoder.positions": recipe})
    made, lines = dense_encoder.weights(vit, params, config, config.views.crop)
    table = positions.sincos_positions(24, 8) if fixed else params["positions"]
    np.testing.assert_array_equal(made["positions"], positions.interpolate(jnp.asarray(table), 4, recipe))
    assert f"resized once from 8 x 8 to 4 x 4 ({recipe})" in lines[0]
    assert dense_encoder.fitted(vit, config, 32).style.positions == "learnt"
    stacked = vit.clone(scan=True)
    shapes = jax.eval_shape(lambda: stacked.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))["params"]
    from detailclip_jax.models import stacking

    again, _ = dense_encoder.weights(stacked, stacking.like(params, shapes), config, 32)
    jax.tree.map(np.testing.assert_array_equal, made, again)


@pytest.mark.check
@pytest.mark.parametrize(("head", "shape"), [("linear", (20, 4000)), ("linear", (3, 3))])
def test_an_image_of_any_shape_gets_a_label_map(head, shape):
    made = built(head)
    (labels,) = made.predict(initial(made, head), [np.full((*shape, 3), 99, np.uint8)])
    assert labels.shape == shape


ENCODERS = ("detailclip", "mae", "dino")  # learnt and fixed positions, and another recipe; those of others are alike


@pytest.mark.check
@pytest.mark.parametrize(
    "method", [name if name in ENCODERS else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_every_method_s_encoder_can_be_adopted(method):
    source = tiny_config(method)
    adopted = dense_encoder.adopt(tiny("linear"), source)
    shapes = runs.build(adopted, mesh.make_mesh(jax.devices()[:1])).state_shapes.params["image"]
    trained = methods.build_networks(source).image
    own = jax.eval_shape(lambda: trained.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"]
    learnt = {**own, "positions": shapes["positions"]}
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), dict(shapes), learnt)
    assert adopted.model.dtype == "float32" and adopted.preprocess.to_dict() == source.preprocess.to_dict()
