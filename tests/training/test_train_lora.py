"""Training of adapters (`optimizer.lora`): what moves, what has moments, the teacher, devices, and a whole run."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from tiny import TWO_BLOCKS, check_names, noise_state, on_one_device, tiny_batch, tiny_config

from detailclip_jax import load, pretraining
from detailclip_jax.benchmarks import counting
from detailclip_jax.config import run_config
from detailclip_jax.interop import model_to_export
from detailclip_jax.models import lora
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.training import adopted_config, checkpoint, experiment, mesh, train_step
from detailclip_jax.training import train as training
from detailclip_jax.training.train_state import TrainState

SMALLEST = Path(__file__).parents[1] / "configs/smallest.py"
ADAPTERS = "image:4,text:2:8"


@functools.cache
def built(method, devices=1, fsdp=1, **fields):
    config = tiny_config(method)
    config.model.custom, config.optimizer.lora = TWO_BLOCKS, ADAPTERS
    config.update_from_flattened_dict(fields)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp=fsdp))


def flat(params):
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def is_trained(path):
    return path.split("/")[0] not in ("image", "text") or path.endswith(("lora_a", "lora_b"))


def after_steps(exp, count):
    """Parameters before and after some steps from noise."""
    state = noise_state(exp)
    before = flat(state.params)
    for number in range(count):
        state, _ = exp.train_step(state, exp.put(tiny_batch(number, exp.config, exp.config.batch_size)))
    return before, flat(state.params)


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("fields", [{}, {"model.scan": True, "optimizer.frozen": "logit_scale"}])
def test_moments_are_those_of_the_adapters_and_heads(fields):
    exp = built("clip", **fields)
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    moments = [name_of(path) for path, _ in jax.tree.leaves_with_path(exp.state_shapes.opt_state)]
    paths = traverse_util.flatten_dict(exp.state_shapes.params, sep="/").keys()
    trained = {path for path in paths if is_trained(path)} - ({"logit_scale/value"} if fields else set())
    assert {path for path in paths if any(moment.endswith(f"mu/{path}") for moment in moments)} == trained
    kernel = exp.state_shapes.params["image"]["patch_embed"]["kernel"]  # [3 x 8 x 8, D]
    width, text_width = kernel.shape[1], exp.state_shapes.params["text"]["token_embedding"].shape[1]
    of_adapters = 2 * 4 * 6 * width + 2 * 6 * text_width  # two blocks and one: D x r + r x 3 D, and D x r + r x D
    others = [leaf for name, leaf in exp.state_shapes.params.items() if name not in ("image", "text", "logit_scale")]
    count = of_adapters + sum(leaf.size for leaf in jax.tree.leaves(others)) + (0 if fields else 1)
    assert counting.state_bytes(exp)["moments"] == 8 * count and f"{count:,}" in exp.parameter_table()


@pytest.mark.check
def test_the_base_keeps_its_bits_and_the_rest_moves():
    before, after = after_steps(built("clip", **{"model.scan": True, "optimizer.frozen": "logit_scale"}), 3)
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert moved == {path for path in before if is_trained(path)} - {"logit_scale/value"}


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_devices_and_chunks_give_the_same_numbers(scan):
    fields = {"model.scan": scan, "batch_size": 16}
    _, one = after_steps(built("clip", **fields), 2)
    _, many = after_steps(built("clip", 8, 4, accumulation=2, **fields), 2)
    for path in one:
        np.testing.assert_allclose(many[path], one[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_the_teacher_follows_the_merged_student():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 7), "lora_a": (6, 2), "lora_b": (2, 7), "lora_scale": ()}
    student = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    teacher = jnp.asarray(rng.standard_normal((6, 7)), jnp.float32)
    params = {"image": {"proj": student}}
    state = TrainState(jnp.int32(3), params, {"image": {"proj": {"kernel": teacher}}}, {}, (), {}, jnp.zeros(2))
    plan = train_step.Schedules(lambda step: 0.0, np.float32(0), lambda step: 0.9)
    moved = train_step.with_moved_teacher(state, plan)
    kernel, a, b, scale = map(np.asarray, (student[name] for name in shapes))
    expected = 0.9 * teacher + 0.1 * (kernel + scale * a @ b)
    np.testing.assert_allclose(moved.ema_params["image"]["proj"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert moved.params is params


def test_teacher_and_anchor_have_no_adapters():
    shapes = built("detailclip").state_shapes
    assert "image" in shapes.ema_params and "lora_a" in shapes.params["image"]["blocks_0"]["attn"]["qkv"]
    assert not any("lora" in path for path in traverse_util.flatten_dict(shapes.ema_params, sep="/"))


def test_a_state_of_weights_has_fresh_adapters():
    exp = built("clip")
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), lora.base(exp.state_shapes.params))
    state = exp.state(weights)
    equal(lora.merge(state.params), weights)
    assert flat(state.params)["image/blocks_0/attn/qkv/lora_a"].any()


def noise_start(folder, config):
    """A workdir of noise to start from."""
    shapes, rng = experiment.weight_shapes(config), np.random.default_rng(0)
    drawn = lambda leaf: jax.device_put(np.float32(0.2 * rng.standard_normal(leaf.shape)))
    names = ("params", "ema_params", "batch_stats", "running")
    variables = {name: jax.tree.map(drawn, getattr(shapes, name)) for name in names}
    checkpoint.save_weights(folder, variables, config, "noise")
    return variables


def asked(init="", **fields):
    config = run_config.load(f"{SMALLEST}:method=clip")
    config.update_from_flattened_dict({"total_steps": 4, "checkpoint_every": 2, "max_to_keep": 4, "init": str(init)})
    config.update_from_flattened_dict(fields)
    return config


def test_a_workdir_with_adapters_is_loaded_merged(tmp_path):
    config = asked(**{"optimizer.lora": ADAPTERS})
    variables = noise_start(tmp_path / "run", config)
    _, loaded, of_model = checkpoint.load(tmp_path / "run")
    equal(loaded["params"], lora.merge(variables["params"]))
    assert of_model.optimizer.lora == "" and run_config.read(tmp_path / "run/config.json").optimizer.lora == ADAPTERS
    equal(model_to_export.load(tmp_path / "run").params, loaded["params"])


def test_adapters_are_for_networks_that_are_loaded(tmp_path):
    noise_start(tmp_path / "start", asked())
    adopted = adopted_config.adopt(asked(tmp_path / "start", **{"optimizer.lora": ADAPTERS}))
    assert adopted.optimizer.part_rates.image == 1
    for init, adapters in (("", "image:4"), (tmp_path / "start", "imag:4")):
        with pytest.raises(ValueError) as refused:
            adopted_config.adopt(asked(init, **{"optimizer.lora": adapters}))
        check_names(refused.value, "optimizer.lora", repr(adapters[:-2]), "not loaded", "--config.init=WORKDIR")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of adapters that starts from noise, which is evaluated in between; with DetailCLIP's teacher."""
    folder = tmp_path_factory.mktemp("lora")
    noise_start(folder / "start", asked(method="detailclip"))
    with on_one_device():
        assert training.train(pretraining.prepare(of_run(folder), folder / "run")) == 0
    return folder


def of_run(folder):
    fields = {"optimizer.lora": ADAPTERS, "optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.01}
    evaluators = ConfigDict({"zero_shot": {"num_scenes": 8}})
    return asked(folder / "start", method="detailclip", evaluate_every=4, evaluators=evaluators, **fields)


@pytest.mark.check
def test_a_run_trains_adapters_beside_what_it_starts_from(trained):
    _, start, _ = checkpoint.load(trained / "start")
    _, end, _ = checkpoint.load(trained / "run")
    for name in ("image", "text"):
        moved = {
            path
            for path, leaf in flat(start["params"][name]).items()
            if (leaf != flat(end["params"][name])[path]).any()
        }
        assert moved and all(path.split("/")[-3:-1] in (["attn", "qkv"], ["attn", "proj"]) for path in moved)
        assert all(path.endswith("kernel") for path in moved)
    (scores,) = read_lines(trained / "run/evaluations.jsonl")
    assert scores["step"] == 4 and any("zero_shot" in name for name in scores)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    before, after = (load(trained / name, weights="student").encode_image(images) for name in ("start", "run"))
    assert np.abs(before - after).max() > 1e-3


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    with on_one_device():
        assert training.train(pretraining.prepare(of_run(trained), tmp_path / "run")) == 0
    equal(checkpoint.load(tmp_path / "run")[1], checkpoint.load(trained / "run")[1])


@pytest.mark.slow
def test_a_further_run_starts_from_the_merged_weights(trained, tmp_path):
    config = asked(trained / "run", method="detailclip", **{"optimizer.lora": "image:2", "total_steps": 2})
    with on_one_device():
        run = pretraining.prepare(config, tmp_path / "further")
        state = run.task.fresh(run)
    _, variables, _ = checkpoint.load(trained / "run")
    equal(
        {name: lora.merge(state.params)[name] for name in ("image", "text")},
        {name: variables["params"][name] for name in ("image", "text")},
    )
    equal(state.ema_params["image"], variables["ema_params"]["image"])
