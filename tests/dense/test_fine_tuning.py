"""Learning rates of dense tasks: the schedule, and one factor per layer for every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from detailclip_jax.config import run_config
from detailclip_jax.config.segmentation_fields import linear, segmentation
from detailclip_jax.dense import fine_tuning
from detailclip_jax.dense.segmentation import segmentation_heads
from detailclip_jax.dense.segmentation.segmentation_network import SegmentationModel
from detailclip_jax.models.initial_values import generator_of, normal
from detailclip_jax.models.taps import usual_blocks
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.training import mesh
from detailclip_jax.training.optimizer import labels

GOLDEN = {  # of ViT-B/16 with layer decay .65: factor of each layer, .65^(13 - id)
    "patch_embed": 0.65**13,
    "cls_token": 0.65**13,
    "positions": 0.65**13,
    **{f"blocks_{i}": 0.65 ** (12 - i) for i in range(12)},
    "norm": 1.0,
}


def params(depth=12):
    """Parameters of UPerNet with its auxiliary head on a narrow encoder; shapes only."""
    given = {"blocks": usual_blocks(depth), "norm": True, "axis": None, "dtype": jnp.float32, "num_classes": 3}
    vit = VisionTransformer(8, 16, depth, 2, 32)
    model = SegmentationModel(
        vit, segmentation_heads.build("upernet", {"width": 8}, **given), segmentation_heads.build("fcn", {}, **given)
    )
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"]


def test_every_parameter_has_its_layer_s_factor():
    found = traverse_util.flatten_dict(fine_tuning.factors(params(), segmentation()), sep="/")
    assert set(found) == set(traverse_util.flatten_dict(params(), sep="/"))
    for path, factor in found.items():
        part, layer, *_ = path.split("/")
        assert factor == pytest.approx(GOLDEN[layer] if part == "image" else 1.0, rel=1e-12), path
    assert min(found.values()) == pytest.approx(0.003697206, rel=1e-6)


def test_the_table_names_every_layer_and_counts_every_parameter():
    shapes, config = params(3), segmentation()
    text = fine_tuning.table_text(shapes, config)
    counts = [int(line.split()[1].replace(",", "")) for line in text.splitlines()[1:]]
    assert sum(counts) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    for layer in ("image/patch_embed", "image/blocks_2", "image/norm", "head", "auxiliary"):
        assert layer in text


def test_biases_and_norms_do_not_decay_but_positions_and_the_class_token_do():
    groups = traverse_util.flatten_dict(labels(params(2), fine_tuning.rules(segmentation())), sep="/")
    for path, group in groups.items():
        plain = path.endswith(("/bias", "/scale"))
        assert group == ("plain" if plain else "decayed"), path
    frozen = traverse_util.flatten_dict(labels(params(2), fine_tuning.rules(linear(segmentation()))), sep="/")
    assert {group for path, group in frozen.items() if path.startswith("image/")} == {"frozen"}
    assert {group for path, group in frozen.items() if path.startswith("head/")} == {"decayed"}


def test_the_schedule_is_mmcv_s():
    schedule = fine_tuning.polynomial(8e-5, 160_000, 1500, 1e-6)
    for step in (0, 1, 750, 1499, 1500, 80_000, 159_999, 160_000):
        regular = 8e-5 * (1 - step / 160_000)
        expected = regular * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else regular
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-4, atol=1e-14)


def test_another_batch_size_rescales_the_learning_rate_with_a_warning():
    config = segmentation()
    assert fine_tuning.learning_rate(config) == (8e-5, "")
    config.batch_size = 32
    rate, warning = fine_tuning.learning_rate(config)
    assert rate == pytest.approx(1.6e-4)
    assert "batch_size 32 is not the recipe's 16" in warning and "8e-05 becomes 0.00016" in warning
    assert float(fine_tuning.schedule_of(config)(1500)) == pytest.approx(1.6e-4 * (1 - 1500 / 160_000), rel=1e-5)


def test_a_network_is_traced_once_for_its_shapes_and_its_first_values():
    traced = []

    def variables(key):
        traced.append(key)
        return {"params": {"head": {"kernel": normal(1.0)(key, (4, 3))}}}

    alone = mesh.make_mesh(jax.devices()[:1])
    _, _, initial, shapes = fine_tuning.set_up(segmentation(), None, variables, None, alone)
    state = initial.put(0, shapes)
    assert len(traced) == 1 and state.params["head"]["kernel"].shape == shapes.params["head"]["kernel"].shape
    expected = generator_of(0, "params/head/kernel").standard_normal((4, 3), np.float32)
    np.testing.assert_array_equal(state.params["head"]["kernel"], expected)


@pytest.mark.parametrize("name", ["ade20k_upernet", "ade20k_linear"])
def test_the_configs_of_ade20k_are_the_protocol_s(name):
    config = run_config.load(f"configs/transfer/{name}.py")
    frozen = name.endswith("linear")
    assert config.batch_size == 16 and config.total_steps == 160_000 and config.optimizer.weight_decay == 0.05
    assert config.optimizer.learning_rate == (8e-4 if frozen else 8e-5)
    assert config.encoder.frozen is frozen and config.encoder.norm
    assert config.auxiliary.name == ("" if frozen else "fcn") and config.auxiliary.weight == 0.4
    assert config.inference.stride == 341 and config.views.max_share == 0.75
    assert config.model.dtype == "bfloat16"


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_the_configs_of_stickers_take_objects_and_more_scenes_for_more_classes(head):
    config = run_config.load(f"configs/transfer/stickers_{head}.py")
    num_scenes = {"linear": 4800, "upernet": 3200}[head]
    assert config.data.labels == "objects" and config.total_steps * config.batch_size == num_scenes
    assert config.encoder.frozen is (head == "linear")
    for kind in ("groups", "nouns"):
        config = run_config.load(f"configs/transfer/stickers_{head}.py:labels={kind}")
        assert config.data.labels == kind and config.total_steps * config.batch_size == 192_000
        assert config.optimizer.batch_size == config.batch_size and not config.encoder.frozen


def test_the_stepwise_schedule_is_mmcv_s():
    schedule = fine_tuning.stepwise(1e-4, [8 * 7330, 11 * 7330], 500, 0.001)
    for step, regular in ((0, 1e-4), (250, 1e-4), (500, 1e-4), (58_639, 1e-4), (58_640, 1e-5), (80_630, 1e-6)):
        expected = regular * (1 - (1 - step / 500) * (1 - 0.001)) if step < 500 else regular
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_a_warm_up_that_is_cut_is_said():
    config = segmentation()
    config.optimizer.warmup_steps, config.optimizer.batch_size = 1500, config.batch_size
    for total, steps in ((3001, 1500), (3000, 300)):
        config.total_steps = total
        said = fine_tuning.warnings_of(config)
        assert fine_tuning.warmup_of(config)[0] == steps and len(said) == (steps < 1500)
    assert said == ["optimizer.warmup_steps 1500 is half of total_steps 3000 or more: the warm-up has 300 steps"]
