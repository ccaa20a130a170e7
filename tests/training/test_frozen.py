"""Frozen groups: what `optimizer.frozen` names keeps its bits, and costs neither gradient nor moments nor a teacher."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny import TWO_BLOCKS, noise_state, tiny_batch, tiny_config

from detailclip_jax.training import experiment, mesh, optimizer, sharding


@functools.cache
def built(method, frozen="", devices=1, layers=False, **fields):
    config = tiny_config(method)
    config.model.custom = TWO_BLOCKS
    config.model.freeze_patch_embed = config.model.freeze_gain = False
    if layers:
        config.optimizer.part_rates, config.optimizer.layer_decay = {"image": 0.5, "text": 0.1}, 0.7
    config.update_from_flattened_dict({"optimizer.frozen": frozen, **fields})
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices]))


def flat(params):
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def steps(exp, count):
    """Parameters before and after some steps from noise, and the last state."""
    state = noise_state(exp)
    before = flat(state.params)
    for number in range(count):
        state, _ = exp.train_step(state, exp.put(tiny_batch(number, exp.config)))
    return before, flat(state.params), state


CASES = {  # method, entry -> pattern of the frozen parameters; encoders have two blocks, the text encoder one
    ("clip", "image"): r"image/.*",
    ("clip", "text, text_projection"): r"(text|text_projection)/.*",
    ("clip", "patch_embed"): r"image/patch_embed/.*",
    ("clip", "image:-1,logit_scale"): r"image/(patch_embed/.*|cls_token|positions|blocks_0/.*)|logit_scale/.*",
    ("clip", "image:-2,text:-1"): r"(image|text)/(patch_embed/.*|cls_token|positions|token_embedding)",
    ("clip", "image:-2,final_norm,image_projection"): (  # CLIPSelf: the blocks alone
        r"image/(patch_embed/.*|cls_token|positions|norm/.*)|image_projection/.*"
    ),
    ("detailclip", "image"): r"image/.*",
    ("siglip", "logit_bias"): r"logit_bias/.*",
    ("dinotxt", "image"): r"image/.*",
}


@pytest.mark.parametrize(("method", "entry"), CASES)
def test_what_is_frozen_has_no_moments(method, entry):
    exp, pattern = built(method, entry), CASES[method, entry]
    paths = traverse_util.flatten_dict(exp.state_shapes.params, sep="/").keys()
    frozen = {path for path in paths if re.fullmatch(pattern, path)}
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    moments = [name_of(path) for path, _ in jax.tree.leaves_with_path(exp.state_shapes.opt_state)]
    kept = {path for path in paths if any(moment.endswith(f"mu/{path}") for moment in moments)}
    assert frozen and kept == paths - frozen
    if method == "detailclip":
        assert {*built(method).method.ema} - {*exp.state_shapes.ema_params} == {"image"}


@pytest.mark.parametrize(
    ("method", "entry"),
    [("clip", "image:-1,logit_scale"), pytest.param("detailclip", "image", marks=pytest.mark.slow)],
)
def test_what_is_frozen_has_the_same_bits_after_20_steps_and_the_rest_has_not(method, entry):
    before, after, _ = steps(built(method, entry), 20)
    frozen = {path for path in before if re.fullmatch(CASES[method, entry], path)}
    assert {path for path in before if before[path].tobytes() == after[path].tobytes()} == frozen


@pytest.mark.check
def test_the_rest_is_trained_as_without():
    """The first update of every other parameter, with layer decay and rates of loaded networks."""
    (_, plain, _), (before, found, _) = (steps(built("clip", entry, layers=True), 1) for entry in ("", "image:-1"))
    moved = {path for path in before if not np.array_equal(before[path], found[path])}
    assert {path.partition("/")[0] for path in moved} >= {"image", "text", "image_projection"}
    for path in moved:
        np.testing.assert_allclose(found[path], plain[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.check
def test_the_backward_pass_and_the_memory_of_what_is_frozen_are_spared():
    def flop(exp):
        shapes = jax.eval_shape(lambda: experiment.dummy_batch(exp.config, exp.config.batch_size))
        return exp.train_step.lower(exp.state_shapes, shapes).cost_analysis()["flops"]

    plain, image, one = (built("detailclip", entry) for entry in ("", "image", "image:-1"))
    assert flop(image) < flop(one) < flop(plain)
    size = sharding.total_bytes([*jax.tree.leaves(plain.state_shapes.params["image"])])
    saved = sharding.device_bytes(plain.state_shapes) - sharding.device_bytes(image.state_shapes)
    assert saved == 3 * size  # two moments and the teacher
    trained = (optimizer.trained(exp.state_shapes.params, exp.setup.groups) for exp in (plain, image))
    gradients = [sharding.total_bytes(jax.tree.leaves(each)) for each in trained]
    assert gradients[0] - gradients[1] == size


@pytest.mark.check
def test_a_frozen_encoder_costs_a_forward_pass_alone():
    """CLIP's own: without the text encoder's share, a third of the products."""

    def flop(entry):
        exp = built("clip", f"text,text_projection{entry}")
        shapes = jax.eval_shape(lambda: experiment.dummy_batch(exp.config, exp.config.batch_size))
        return exp.train_step.lower(exp.state_shapes, shapes).cost_analysis()["flops"]

    exp = built("clip")
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32)
    encode = lambda params, images: exp.model.bind({"params": params}).image(images).cls
    forward = jax.jit(encode).lower(exp.state_shapes.params, images).cost_analysis()["flops"]
    assert 1.7 * forward < flop("") - flop(",image") < 2.6 * forward


@pytest.mark.slow
def test_devices_and_chunks_give_the_same_numbers():
    _, one, _ = steps(built("clip", "image:-1,logit_scale"), 2)
    _, many, _ = steps(built("clip", "image:-1,logit_scale", devices=2, accumulation=2), 2)
    for path in one:
        np.testing.assert_allclose(many[path], one[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_a_frozen_number_keeps_a_value_beyond_its_bounds():
    exp = built("clip", "image:-1,logit_scale")
    state = noise_state(exp)
    add_9 = lambda x: jax.device_put(np.asarray(x) + 9, x.sharding)  # no other program than that of a run
    large = jax.tree.map(add_9, state.params["logit_scale"])  # trained ones are at most ln 100
    state, _ = exp.train_step(state.replace(params={**state.params, "logit_scale": large}), exp.put(tiny_batch(0)))
    assert float(state.params["logit_scale"]["value"]) > 5
