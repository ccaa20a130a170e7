"""Terms that any method may add, all in one step: devices, chunks, resumed runs, ramps, weight 0, other methods."""

import functools
from contextlib import closing
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import SIZE, TWO_BLOCKS, copied, drawn, noise_state, program_of, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.methods.distill import TEACHER
from detailclip_jax.models import stacking
from detailclip_jax.training import experiment, mesh, sharding
from detailclip_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.check

START = 1  # step at which the weights rise from 0, and at which the anchor is copied
WEIGHTS = {
    **{"token_set": 1.0, "beta": 1.0, "gram": 2.0, "region": 1.0, "distill": 1.0},
    **{"negatives": 1.0, "region_text": 1.0, "text_contrast": 1.0, "rank": 1.0, "intra_modal": 1.0},
}
FALSE, REGIONS = {"data.negatives": 2}, {"data.regions": 2}
READS = dict.fromkeys(("negatives", "rank", "intra_modal"), FALSE)  # fields of the data
READS |= dict.fromkeys(("region_text", "text_contrast"), REGIONS)
LOCAL = {"count": 3, "size": 16}
OF_TEACHER = {  # its record, see `distill.record`
    "model": {
        "size": "custom",
        "custom": {**SIZE, "width": 64, "num_heads": 2},
        "image_size": 32,
        "image_style": tiny_config().model.image_style.to_dict(),
        "class_tokens": 1,
        "interpolation": "bicubic",
    },
    "preprocess": {name: tiny_config().preprocess[name] for name in ("filter", "mean", "std")},
}
SEVERAL = {"data.caption": "crops", "data.num_captions": 3}


def test_every_term_of_the_package_is_tested_here():
    own = {name for name, term in methods.TERMS.items() if term.add.__module__.startswith(methods.__name__)}
    assert WEIGHTS.keys() == own


def asked(method="beta", terms=(*WEIGHTS,), start=START, **fields):
    """A config with these terms, by default B-CLIP's with all of them."""
    config = tiny_config(method)
    config.model.custom = TWO_BLOCKS
    if "region" in terms and "local" not in config.views.crops:
        config.views.crops.local = LOCAL
    if "distill" in terms:
        config.distill.record = OF_TEACHER
    for name in terms:
        config.update_from_flattened_dict(READS.get(name, {}))
        config.losses.weights[name] = WEIGHTS[name]
        config.losses.ramps[name] = (start / config.total_steps,) * 2
    config.update_from_flattened_dict(fields)
    return config


def batch_of(exp, step=0):
    """Noise; crops that captions are compared with have two thirds of the image: some boxes count, others do not."""
    batch = tiny_batch(step, exp.config)
    for name in {"large", "clean"} & {*batch["box"]}:
        batch["box"][name][...] = np.float32([2, 0, 38, 44])
    return batch


def start_of(exp):
    """Noise, the same however the blocks are stored and wherever the arrays lie."""
    state, plain = noise_state(exp), experiment.weight_shapes(asked())
    trees = {}
    for seed, name in enumerate(("params", "ema_params")):
        shapes = getattr(exp.state_shapes, name)
        tree = {network: drawn(getattr(plain, name)[network], seed, 0.1) for network in shapes}
        places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        trees[name] = jax.device_put(stacking.like(tree, shapes), places)
    return state.replace(**trees)


@functools.cache
def history(devices=1, fsdp=1, **given):
    """The experiment, the state after some steps, the metrics of each, and the parameters after the first."""
    exp = experiment.build(asked(**given), mesh.make_mesh(jax.devices()[:devices], fsdp))
    state, found, first = start_of(exp), [], None
    for step in range(3):
        state, metrics = exp.train_step(state, exp.put(batch_of(exp, step)))
        found.append(jax.device_get(metrics))
        first = first or jax.device_get(state.params)
    return exp, copied(state), found, first


def test_every_term_is_logged_and_adds_to_the_loss_by_its_weight():
    _, _, found, _ = history()
    for step, metrics in enumerate(found):
        assert {float(metrics[f"{name}_weight"]) for name in WEIGHTS} == ({0.0} if step < START else {1.0, 2.0})
        total = sum(metrics[f"{name}_weight"] * metrics[name] for name in WEIGHTS)
        np.testing.assert_allclose(metrics["loss"], metrics["clip"] + total, rtol=1e-6)


SHARDED = {"devices": 4, "fsdp": 2, "accumulation": 2, "model.scan": True, "model.remat": "full"}


def test_devices_shards_and_chunks_give_the_same_numbers():
    """Each device has another number of boxes and captions that count; the means are those of the whole batch."""
    _, expected, one, _ = history()
    exp, state, many, _ = history(**SHARDED)
    for a, b in zip(one, many, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-5, atol=1e-5, err_msg=name)
    for name in ("params", "ema_params", "running"):
        trees = (stacking.unstack(jax.device_get(getattr(each, name))) for each in (expected, state))
        for a, b in zip(*(jax.tree.leaves(tree) for tree in trees), strict=True):
            # a key's bias changes no softmax: its gradient is rounding alone, which AdamW makes steps of
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=name)
    # anchor and teacher are sharded as the student
    assert state.running["anchor"]["image"]["patch_embed"]["kernel"].sharding.spec == P("fsdp", None)
    shapes = exp.state_shapes.params[TEACHER]["blocks"]["attn"]
    assert sharding.device_bytes(shapes) < sharding.total_bytes(shapes)


@pytest.mark.parametrize("other", [{}, SHARDED])
def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path, other):
    exp, state, _, _ = history(**other)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, state, {"examples": 24}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    step = lambda state: jax.device_get(exp.train_step(copied(state), exp.put(batch_of(exp, 3))))
    jax.tree.map(np.testing.assert_array_equal, step(restored), step(state))


def test_before_its_start_a_term_changes_nothing():
    """Parameters after a step in which all weights are 0 are those of a run without the terms."""
    *_, with_terms = history()
    without = {"losses.weights.region": 0.0, "losses.weights.beta": 0.0}  # but with the crops and captions of the terms
    exp = experiment.build(asked(terms=("region",), **without), mesh.make_mesh(jax.devices()[:1]))
    state = start_of(exp)
    assert not state.running and not state.ema_params
    state, _ = exp.train_step(state, exp.put(batch_of(exp)))
    for network, expected in state.params.items():
        for a, b in zip(*(jax.tree.leaves(tree) for tree in (with_terms[network], expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=network)


@pytest.mark.parametrize("method", ["clip", pytest.param("cosmos", marks=pytest.mark.slow)])
def test_weight_0_is_the_method_without_the_term(method):
    with_terms = program_of(method, {f"losses.weights.{name}": 0.0 for name in WEIGHTS})
    with mock.patch.dict(methods.TERMS, clear=True):
        assert program_of(method, {}) == with_terms
    assert program_of(method, {"losses.weights.token_set": 1.0}) != with_terms


def test_the_step_lowers_for_accelerators():
    exp = experiment.build(asked(**{"model.scan": True}), mesh.make_mesh(jax.devices()[:1]))
    given = exp.state_shapes, exp.put(batch_of(exp)), exp.schedules
    assert jax.export.export(exp.train_step.program, platforms=["cuda", "tpu"])(*given).mlir_module()


@pytest.mark.parametrize(
    ("method", "terms", "fields"),
    [
        ("cosmos", ("token_set", "beta", "region", "distill"), {}),
        ("detailclip", ("token_set", "region", "distill"), {}),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("siglip", ("token_set", "beta", "region", "distill"), SEVERAL),
                ("mae", ("distill",), {}),
                ("silc", ("region", "gram"), {}),
                ("tipsv2", ("region", "distill"), {}),
            ]
        ),
    ],
)
def test_other_methods_train_with_the_terms(method, terms, fields):
    """One view or two, one caption or several, all patches or the kept ones, with and without a teacher or captions."""
    config = asked(method, terms, start=0, **fields, **{"model.custom.depth": 1})
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch, found = noise_state(exp), exp.put(batch_of(exp)), []
    for _ in range(6):
        state, metrics = exp.train_step(state, batch)
        found.append([float(metrics[name]) for name in terms if name != "gram"])  # 0 until the student has moved
    assert np.isfinite(found).all() and (np.array(found[-1]) < found[0]).all(), found
