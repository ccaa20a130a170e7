import csv
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import tiny_config

from detailclip_jax import config as config_lib
from detailclip_jax.config import run_config
from detailclip_jax.interop import reference_names
from detailclip_jax.models import networks
from detailclip_jax.training import experiment, mesh, optimizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@functools.cache
def b16():
    config = config_lib.default()
    config.batch_size, config.total_steps, config.model.scan = 8, 10, False  # separate blocks, as in the reference
    return experiment.build(config)


def reference_groups():
    """Name -> our word for its group, of the reference's ViT-B/16 as its optimiser sees it."""
    with open(GOLDEN / "vitb16_keys.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    word = lambda row: "frozen" if row["trainable"] != "True" else {"wd": "decayed", "no_wd": "plain"}[row["wd_group"]]
    return {row["key"]: word(row) for row in rows}, {row["key"]: row["shape"] for row in rows}


def test_groups_and_shapes_are_the_reference_s_for_all_parameters():
    exp = b16()
    groups, shapes = reference_groups()
    ours = traverse_util.flatten_dict(exp.setup.groups, sep="/")
    sizes = traverse_util.flatten_dict(exp.state_shapes.params, sep="/")
    entries = reference_names.student(12, 12, 1)
    assert {entry.path for entry in entries} == set(ours)
    for entry in entries:
        assert ours[entry.path] == groups[entry.key], entry
        theirs = np.empty([int(n) for n in shapes[entry.key].strip("()").split(",") if n.strip()])
        assert sizes[entry.path].shape == entry.transform.into(theirs).shape, entry


@pytest.mark.parametrize("method", ["cosmos", "flair"])
def test_open_clip_s_recipe_decays_no_vector(method):
    """open_clip: no decay where a tensor has fewer than two axes, or is a bias, a norm or a scale."""
    config = run_config.load(str(CONFIGS / f"beyond/{method}.py"))
    small = tiny_config(method)
    config.update({"batch_size": 8, "total_steps": 10, "steps_per_epoch": 10, "views": small.views})
    config.model.update({name: small.model[name] for name in ("size", "custom", "image_size", "context_length")})
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = traverse_util.flatten_dict(exp.state_shapes.params, sep="/")
    groups = traverse_util.flatten_dict(exp.setup.groups, sep="/")
    decays = lambda path, ndim: ndim >= 2 and path.rpartition("/")[2] not in ("bias", "scale")
    assert groups == {path: "decayed" if decays(path, leaf.ndim) else "plain" for path, leaf in shapes.items()}
    assert groups["image/cls_token"] == "plain"
    assert {groups[f"{name}/positions"] for name in ("image", "text")} == {"decayed"}


@pytest.mark.parametrize("decay_1d", [True, False])
def test_class_tokens_mask_tokens_and_gains_decay_only_if_asked(decay_1d):
    names = {
        "image": ("cls_token", "extra_tokens"),
        "decoder": ("mask_token",),
        "mask_token": ("value",),
        "prototype_head": ("gain",),
    }
    params = {network: {name: jnp.zeros(2) for name in vectors} for network, vectors in names.items()}
    model = config_lib.default().model
    model.freeze_gain = False
    groups = optimizer.labels(params, optimizer.rules(networks.NETWORKS, model, decay_1d))
    assert set(jax.tree.leaves(groups)) == {"decayed" if decay_1d else "plain"}


def test_deit_s_recipe_decays_neither_the_class_token_nor_positions():
    """timm's `no_weight_decay` of a ViT; the other tensors of two or more axes decay."""
    config = run_config.load(str(CONFIGS / "baselines/supervised.py"))
    config.model.size, config.model.scan = "tiny", False
    config.total_steps = config.steps_per_epoch = 10
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    groups = traverse_util.flatten_dict(exp.setup.groups, sep="/")
    shapes = traverse_util.flatten_dict(exp.state_shapes.params, sep="/")
    decays = {path for path, leaf in shapes.items() if leaf.ndim >= 2} - {"image/positions"}
    assert {path for path, group in groups.items() if group == "decayed"} == decays
    assert groups["image/positions"] == groups["image/cls_token"] == "plain"


def test_the_table_counts_every_parameter():
    text = b16().parameter_table()
    total = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(b16().state_shapes.params))
    assert f"{total:,}" in text and "image/patch_embed/.*" in text


def test_the_table_has_a_line_for_each_rule_that_took_something_and_the_sums():
    params = {"image": {"patch_embed": {"kernel": np.zeros((3, 4))}, "ln": {"scale": np.zeros(4)}}, "text": {}}
    params["text"]["kernel"] = np.zeros((10, 200))
    table = optimizer.rules(networks.NETWORKS, config_lib.default().model)
    assert [
        line.split("  ")[0] + " " + line.split()[-1] for line in optimizer.table_text(params, table).splitlines()
    ] == [
        "parameters whose names match count",
        "image/patch_embed/.* 12",
        ".*/(bias|scale) 4",
        ".*/kernel 2,000",
        "all 2,016",
        "all but the frozen ones 2,004",
    ]


def adamw_oracle(p, g, m, v, t, lr, decay, b1=0.9, b2=0.98, eps=1e-8):
    """PyTorch's AdamW, one step."""
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    p = p - lr * decay * p
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps), m, v


def test_adamw_against_the_formula():
    config = config_lib.default().optimizer
    groups = {"a": {"kernel": "decayed"}, "b": {"bias": "plain"}, "c": {"kernel": "frozen"}}
    ones = lambda *shape: np.ones(shape, np.float32)
    params = {"a": {"kernel": ones(2, 2)}, "b": {"bias": ones(2)}, "c": {"kernel": ones(2)}}
    tx = optimizer.adamw(config, lambda step: jnp.asarray(1e-2), 0.5, groups)
    opt_state, expected, update = jax.jit(tx.init)(params), {"a": 1.0, "b": 1.0}, jax.jit(tx.update)
    moments = dict.fromkeys(expected, (0.0, 0.0))
    for t in range(1, 4):
        grads = jax.tree.map(lambda p, t=t: np.full(p.shape, 0.1 * t, p.dtype), params)
        updates, opt_state = update(grads, opt_state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, decay in (("a", 0.5), ("b", 0.0)):
            p, *moments[name] = adamw_oracle(expected[name], 0.1 * t, *moments[name], t, 1e-2, decay)
            expected[name] = p
    np.testing.assert_allclose(params["a"]["kernel"], expected["a"], rtol=1e-5)
    np.testing.assert_allclose(params["b"]["bias"], expected["b"], rtol=1e-5)
    np.testing.assert_array_equal(params["c"]["kernel"], 1.0)


def test_frozen_parameters_keep_no_moments():
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(b16().state_shapes.opt_state)
    ]
    assert any("'qkv'" in path for path in paths)
    assert not [path for path in paths if "patch_embed" in path or "gain" in path]


def steps_of(tx, params, gradients):
    """Parameters after each gradient in turn."""
    opt_state, history, update = jax.jit(tx.init)(params), [], jax.jit(tx.update)
    for gradient in gradients:
        updates, opt_state = update(gradient, opt_state, params)
        params = jax.tree.map(np.add, params, updates)
        history.append(params)
    return history


def test_the_last_layer_waits_as_if_it_had_no_gradient():
    config = config_lib.default().optimizer
    groups = {"prototype_head": {"direction": "decayed", "mlp_0": {"kernel": "decayed"}}}
    params = {"prototype_head": {"direction": jnp.ones((2,)), "mlp_0": {"kernel": jnp.ones((2,))}}}
    rate = lambda step: 1e-2 * (1 + step)
    gradients = [jax.tree.map(lambda p, t=t: np.full(p.shape, 0.1 * t, p.dtype), params) for t in range(1, 5)]
    late = optimizer.late(params, networks.NETWORKS)
    assert late == {"prototype_head": {"direction": True, "mlp_0": {"kernel": False}}}
    history = steps_of(optimizer.adamw(config, rate, 0.5, groups, wait=2, late=late), params, gradients)
    direction = [step["prototype_head"]["direction"][0] for step in history]
    assert direction[0] == direction[1] == 1.0
    p, m, v = 1.0, 0.0, 0.0
    for t in (1, 2):  # the moments begin at step 2, at the rate of step 2
        p, m, v = adamw_oracle(p, 0.1 * (t + 2), m, v, t, rate(t + 1), 0.5)
        np.testing.assert_allclose(direction[t + 1], p, rtol=1e-5)
    assert history[0]["prototype_head"]["mlp_0"]["kernel"][0] != 1.0


def test_weight_decay_may_follow_a_schedule():
    config = config_lib.default().optimizer
    decay = lambda step: 0.04 + 0.1 * step
    tx = optimizer.adamw(config, lambda step: 1e-2, decay, {"a": {"kernel": "decayed"}})
    history = steps_of(tx, {"a": {"kernel": jnp.ones(2)}}, [{"a": {"kernel": jnp.zeros(2)}}] * 3)
    expected = np.cumprod([1 - 1e-2 * decay(t) for t in range(3)])
    np.testing.assert_allclose([step["a"]["kernel"][0] for step in history], expected, rtol=1e-6)


def test_clipping_per_tensor_leaves_small_ones_alone():
    config = config_lib.default().optimizer
    config.clip_norm, config.clip_per_tensor = 3.0, True
    gradient = {"large": jnp.full((4,), 10.0), "small": jnp.full((4,), 0.1)}
    clipped, _ = optimizer.clipping(config).update(gradient, optimizer.clipping(config).init(gradient))
    np.testing.assert_allclose(jnp.linalg.norm(clipped["large"]), 3.0, rtol=1e-5)
    np.testing.assert_array_equal(clipped["small"], gradient["small"])


def test_clipping_is_offered():
    config = config_lib.default().optimizer
    config.clip_norm = 1.0
    clip = optimizer.clipping(config)
    large, small = {"a": jnp.full((4,), 100.0)}, {"a": jnp.full((4,), 0.1)}
    clipped, _ = clip.update(large, clip.init(large))
    np.testing.assert_allclose(jnp.linalg.norm(clipped["a"]), 1.0, rtol=1e-5)
    np.testing.assert_allclose(clip.update(small, clip.init(small))[0]["a"], small["a"])
