"""The battery that every row passes."""

import functools
from collections import Counter
from contextlib import closing

import jax
import numpy as np
import pytest
from collectives import collectives
from flax import traverse_util
from ml_collections import ConfigDict
from tiny import (
    BATCH,
    check_names,
    copied,
    gradient_of_one_step,
    noise_state,
    tiny_batch,
    tiny_config,
    tiny_experiment,
    tiny_state,
)

from detailclip_jax import methods
from detailclip_jax.training import experiment, mesh, optimizer
from detailclip_jax.training.checkpoint import Checkpoints

# `make test` runs the methods that differ most in networks, heads and losses.
FIRST = ("clip", "detailclip")
INITIAL = "detailclip"  # starts from its initial values; the others from noise, for which nothing has to be compiled
# The parts of these are those of other methods: `ibot` has the losses of `attmask` and `dino`, `tips` those of `silc`,
# `siglip` and `tips` those of `siglip2`, `aclip` those of `slip`, `detailclip` those of `maskclip`.  `test_terms`
# trains, divides and resumes `beta` with the term of `superclip`; `test_dinotxt` trains and resumes `dinotxt`.
PARTS_OF_OTHERS = ("attmask", "dino", "silc", "siglip2", "slip", "maskclip", "beta", "superclip", "dinotxt")
CHECKED = tuple(name for name in methods.METHODS if name not in PARTS_OF_OTHERS)
# In `make check`: over devices DetailCLIP's collectives and several captions; in chunks on two devices sums over pairs,
# and BatchNorm by view and by batch.  The terms of `test_terms` are tested there, other methods by `make slow`.
OVER_DEVICES = ("detailclip", "cosmos")
CHUNKS = ("siglip", "detailclip", "aclip")  # those of `aclip` include CLIP's and `slip`'s


def first(names, checked=CHECKED):
    """Every method; those not in `names` are left to `make check`, if in `checked`, or `make slow`."""
    later = lambda name: pytest.mark.check if name in checked else pytest.mark.slow
    return [pytest.param(name, marks=() if name in names else later(name)) for name in methods.METHODS]


CHUNKED = first((), CHUNKS)


def own_networks():
    """The networks that the method of INITIAL lacks, each with the first method that has it."""
    known = set(methods.build(tiny_config(INITIAL)).networks)
    for name in methods.METHODS:
        if new := set(methods.build(tiny_config(name)).networks) - known:
            yield pytest.param(name, new, id=name)
        known |= new


@pytest.fixture(params=first(FIRST), scope="module")
def method(request):
    """One method after the other; steps that other tests compiled do not count."""
    trained.cache_clear()
    tiny_experiment(request.param).train_step.program.clear_cache()
    return request.param


def start_of(method, devices=1):
    """The state of seed 0, or noise, see INITIAL."""
    if method == INITIAL:
        return tiny_state(method, devices)
    state = noise_state(tiny_experiment(method, devices))
    return state.replace(params=with_gains(state.params), ema_params=with_gains(state.ema_params))


def with_gains(params):
    """Gains of norms around 1, so that gradients are not small beside what two programs may differ by."""
    plus_one = lambda leaf: jax.device_put(np.asarray(leaf) + 1, leaf.sharding)
    return jax.tree.map_with_path(lambda path, leaf: plus_one(leaf) if path[-1].key == "scale" else leaf, params)


def zeros_like(leaf):
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)


def fresh(exp, names):
    """The initial parameters of some networks."""
    params = exp.initial.draw(0).params
    return {name: params[name] for name in names}


@functools.cache
def trained(method, devices=1, steps=3):
    """State after a few steps on noise, metrics of each, and the state after the first one, on the host."""
    exp = tiny_experiment(method, devices)
    state, history, first = start_of(method, devices), [], None
    for step in range(steps):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        history.append(jax.device_get(metrics))
        first = first or jax.device_get(state)
    return state, history, first


def test_every_number_is_finite(method):
    state, history, _ = trained(method)
    for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf).all()
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())


@pytest.mark.check
@pytest.mark.parametrize(("name", "networks"), [*own_networks()])
def test_networks_that_detailclip_lacks_start_with_finite_numbers(name, networks):
    for path, leaf in jax.tree.leaves_with_path(fresh(tiny_experiment(name), networks)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


def test_every_term_is_logged_and_sums_to_the_loss(method):
    exp, (_, history, _) = tiny_experiment(method), trained(method)
    for metrics in history:
        total = sum(loss.weight * metrics[loss.name] for loss in exp.method.losses)
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_does(method):
    """In a step after the first, where a teacher equal to its student could hide a missing path."""
    exp, before = tiny_experiment(method), trained(method)[0]
    start = copied(before.replace(opt_state=jax.tree.map(zeros_like, before.opt_state)))
    after, metrics = exp.train_step(start, exp.put(tiny_batch(9, exp.config)))
    gradients = gradient_of_one_step(after)
    groups = traverse_util.flatten_dict(exp.setup.groups, sep="/")
    assert gradients.keys() == {path for path, group in groups.items() if group != optimizer.FROZEN}
    assert [path for path, gradient in gradients.items() if not gradient.any()] == []
    norm = np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in gradients.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)  # of all parameters: nothing for frozen ones
    old, new = (traverse_util.flatten_dict(state.params, sep="/") for state in (before, after))
    for path in groups.keys() - gradients.keys():
        np.testing.assert_array_equal(new[path], old[path], err_msg=path)


def test_the_teacher_owns_exactly_what_the_row_names(method):
    exp, (state, _, _) = tiny_experiment(method), trained(method)
    assert set(state.ema_params) == set(exp.method.ema)
    assert set(state.params) == set(exp.method.networks)
    assert set(state.running) == set(exp.method.running)


@pytest.mark.parametrize("method", first((), OVER_DEVICES), indirect=True)
def test_eight_devices_give_the_numbers_of_one(method):
    """Metrics and centers of three steps; gradients and BatchNorm statistics of the first."""
    (one, history, first), (eight, many, first_of_eight) = trained(method), trained(method, devices=8)
    for a, b in zip(history, many, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.running), jax.tree.leaves(eight.running), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    expected, gradients = gradient_of_one_step(first), gradient_of_one_step(first_of_eight)
    for path, a in expected.items():
        assert np.linalg.norm(a - gradients[path]) <= 1e-5 * np.linalg.norm(a) + 1e-6, path
    statistics = (jax.tree.leaves(state.batch_stats) for state in (first, first_of_eight))
    for a, b in zip(*statistics, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_same_seed_same_numbers(method):
    exp, history = tiny_experiment(method), trained(method)[1]
    _, metrics = exp.train_step(start_of(method), exp.put(tiny_batch(0, exp.config)))
    assert jax.device_get(metrics) == history[0]


@pytest.mark.parametrize("method", CHUNKED, indirect=True)
def test_chunks_give_the_numbers_of_the_whole_batch(method):
    """Two of two images on each of two devices: metrics, state and gradients of a step."""
    config = tiny_config(method)
    config.accumulation = 2
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:2]))
    (_, history, whole), state = trained(method), jax.device_put(start_of(method), mesh.replicated(exp.mesh))
    chunked, metrics = jax.device_get(exp.train_step(state, exp.put(tiny_batch(0, config))))
    assert set(metrics) == set(history[0])
    for name, value in history[0].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(*(jax.tree.leaves((state.running, state.batch_stats)) for state in (whole, chunked)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    expected, gradients = gradient_of_one_step(whole), gradient_of_one_step(chunked)
    assert expected.keys() == gradients.keys()
    for path, a in expected.items():
        assert np.linalg.norm(a - gradients[path]) <= 1e-5 * np.linalg.norm(a) + 1e-6, path


def test_a_checkpoint_gives_the_whole_state_back(method, tmp_path):
    exp, (state, _, _) = tiny_experiment(method), trained(method)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, state, {"examples": 24}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_step_compiles_once(method):
    trained(method)
    assert tiny_experiment(method).train_step.program._cache_size() == 1


# What only some methods have: these tests come after those of every method, whose compiled steps they take.


def said_in_a_step(devices):
    """The experiment of DetailCLIP over devices, and what they say to each other in a step."""
    exp = tiny_experiment("detailclip", devices)
    lowered = exp.train_step.lower(tiny_state("detailclip", devices), exp.put(tiny_batch(0)))
    return exp, collectives(lowered.compile().as_text())


def trained_bytes(exp):
    leaves, groups = jax.tree.leaves(exp.state_shapes.params), jax.tree.leaves(exp.setup.groups)
    return sum(4 * leaf.size for leaf, group in zip(leaves, groups, strict=True) if group != optimizer.FROZEN)


@pytest.mark.check
def test_over_data_gradients_are_reduced_and_embeddings_gathered_and_nothing_else_moves():
    exp, found = said_in_a_step(devices=8)
    kinds, joint_width = Counter(kind for kind, _ in found), exp.config.model.custom.joint_width
    embeddings = 4 * BATCH * 3 * joint_width  # u, v and text
    assert set(kinds) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert [size for kind, size in found if kind == "all-gather"] == [embeddings]
    assert [size for kind, size in found if kind == "reduce-scatter"] == [embeddings // 8]
    reduced = sum(size for kind, size in found if kind == "all-reduce")
    centers = sum(4 * leaf.size for leaf in jax.tree.leaves(exp.state_shapes.running))
    scalars = 4 * 32  # terms and what is logged
    assert trained_bytes(exp) + centers <= reduced <= trained_bytes(exp) + centers + scalars


@pytest.mark.check
def test_a_single_device_reduces_nothing():
    assert not said_in_a_step(devices=1)[1]


def test_a_run_learns():
    """On eight pairs seen again and again the contrast falls below chance, ln 8."""
    exp = tiny_experiment()
    state, batch = tiny_state(), exp.put(tiny_batch(0))
    for _ in range(15):
        state, metrics = exp.train_step(state, batch)
    assert float(metrics["clip"]) < 0.7 * np.log(8)


@pytest.mark.check
def test_siglip_learns():
    exp, state, history = tiny_experiment("siglip"), start_of("siglip"), []
    batch = exp.put(tiny_batch(0, exp.config))
    for _ in range(12):
        state, metrics = exp.train_step(state, batch)
        history.append(float(metrics["loss"]))
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("name", ["detailclip", pytest.param("tipsv2", marks=pytest.mark.check)])
def test_the_teacher_moves_before_it_teaches(name):
    exp = tiny_experiment(name)
    state, _ = exp.train_step(start_of(name), exp.put(tiny_batch(0, exp.config)))
    after, metrics = exp.train_step(copied(state), exp.put(tiny_batch(1, exp.config)))
    momentum = float(metrics["ema_momentum"])
    before = jax.device_get(state)
    for part, teacher in before.ema_params.items():
        expected = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, before.params[part])
        for a, b in zip(jax.tree.leaves(after.ema_params[part]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.check
def test_aclip_s_teacher_keeps_statistics_of_its_own():
    exp = tiny_experiment("aclip")
    new, _ = exp.train_step(start_of("aclip"), exp.put(tiny_batch(0, exp.config)))
    student, teacher = new.batch_stats["student"], new.batch_stats["teacher"]
    assert set(student) == {"ssl_head", "byol_projector", "byol_predictor"} and set(teacher) == {"byol_projector"}
    ours, theirs = (stats["byol_projector"]["norm_0"]["mean"] for stats in (student, teacher))
    assert ours.any() and theirs.any() and (ours != theirs).any()


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("clip", {"logit_scale": np.log(1 / 0.07)}),
        *(
            pytest.param(name, starts, marks=pytest.mark.check)
            for name, starts in [
                ("siglip", {"logit_scale": np.log(10), "logit_bias": -10.0}),
                ("cosmos", {"logit_scale": np.log(1 / 0.07), "distill_scale": np.log(1 / 0.07)}),
                ("flair", {"logit_scale": np.log(1 / 0.07), "logit_bias": -10.0}),
            ]
        ),
    ],
)
def test_scalars_start_at_the_published_values_and_scales_of_a_softmax_are_clamped(name, starts):
    exp, state = tiny_experiment(name), start_of(name)
    for scalar, parameter in fresh(exp, starts).items():
        np.testing.assert_allclose(parameter["value"], starts[scalar], rtol=1e-6)
    assert {exp.setup.groups[scalar]["value"] for scalar in starts} == {optimizer.PLAIN}  # no decay
    seven = lambda leaf: jax.device_put(np.full_like(leaf, 7.0), leaf.sharding)  # no other program than that of a run
    far = {**state.params, **{scalar: jax.tree.map(seven, state.params[scalar]) for scalar in starts}}
    after, metrics = exp.train_step(state.replace(params=far), exp.put(tiny_batch(0, exp.config)))
    assert "logit_bias" not in starts or metrics["logit_bias"] == 7.0
    for scalar in starts:
        value, clamped = after.params[scalar]["value"], scalar != "logit_bias" and name != "siglip"
        if clamped:
            np.testing.assert_allclose(value, np.log(100), rtol=1e-6)
        else:
            np.testing.assert_allclose(value, 7.0, atol=0.01)
            assert value != 7.0


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        (("cls",), {"center": {"cls"}}),
        (("patch",), {"center": {"patch"}}),
        (("cls", "patch"), {"center": {"cls", "patch"}, "params": {"prototype_head"}}),
        (("reconstruction",), {"params": {"pixel_head"}}),
        (("patch", "reconstruction"), {"center": {"patch"}, "params": {"pixel_head", "decoder"}}),
    ],
)
def test_a_term_of_weight_zero_takes_its_networks_along(off, gone):
    config = tiny_config()
    for name in off:
        config.losses.weights[name] = 0.0
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = exp.state_shapes
    assert not set(off) & set(exp.method.terms)
    assert set(shapes.running) == {"cls", "patch"} - gone.get("center", set())
    assert not gone.get("params", set()) & set(shapes.params)


@pytest.mark.slow
def test_a_weight_that_rises_is_0_before_its_ramp_and_full_after_it():
    config = tiny_config()
    config.losses.ramps.cls = (0.1, 0.2)  # of 20 steps
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, found = start_of(INITIAL), []
    for step in range(5):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, config)))
        weights = dict.fromkeys(exp.method.terms, 1.0) | {"cls": metrics["cls_weight"]}
        np.testing.assert_allclose(metrics["loss"], sum(w * metrics[name] for name, w in weights.items()), rtol=1e-6)
        found.append(float(metrics["cls_weight"]))
    np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl_teacher_student", "kl_student_teacher"])
def test_divergences_train(divergence):
    config = tiny_config()
    config.losses.divergence = divergence
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    _, metrics = exp.train_step(tiny_state(), exp.put(tiny_batch(0)))
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_new_weight_must_be_one_that_the_method_reads(method):
    written = tiny_config(method)
    reads = {loss.weight_name for loss in methods.METHODS[method](written).losses}
    for name, weight in written.losses.weights.items():
        config = ConfigDict(written.to_dict())
        config.losses.weights[name] = weight + 0.25
        if name in methods.TERMS:  # every method can get these, or refuses them itself
            continue
        if name in reads:
            methods.check_weights(config, written)
            continue
        with pytest.raises(ValueError) as raised:
            methods.check_weights(config, written)
        check_names(raised.value, f"losses.weights.{name} {weight + 0.25:g}", method, *reads, *methods.TERMS)
        methods.check_weights(config, config)  # the file itself has it


def test_a_new_ramp_must_be_of_a_weight_that_the_method_reads():
    written = tiny_config("clip")
    for name in ("clip", "gram"):
        config = ConfigDict(written.to_dict())
        config.losses.ramps[name] = (0.1, 0.2)
        methods.check_weights(config, written)
    config.losses.ramps.patch = (0.1, 0.2)
    with pytest.raises(ValueError, match=r"losses.ramps.patch \(0.1, 0.2\): method clip has no such term"):
        methods.check_weights(config, written)
