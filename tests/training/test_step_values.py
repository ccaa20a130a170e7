"""The record and the terms of a step, at its keys and mask or at others, against the step itself; and given weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import check_names, copied, noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.methods.method import Context, WholeBatch, values
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training.forward_pass import make_keys
from detailclip_jax.training.train_step import step_keys

pytestmark = pytest.mark.check


@functools.cache
def _state(method, devices):
    state = noise_state(tiny_experiment(method, devices))
    return state.replace(step=jax.device_put(np.int32(3), state.step.sharding))


def state_of(method="detailclip", devices=1):
    """A state at step 3, in which teacher and student differ."""
    return copied(_state(method, devices))


def close(found, expected):
    assert {*found} <= {*expected}
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("method", "devices"), [("detailclip", 1), ("detailclip", 2), ("ibot", 1), ("aclip", 1)])
def test_the_terms_are_the_metrics_of_the_step(method, devices):
    exp = tiny_experiment(method, devices)
    state, batch = state_of(method, devices), exp.put(tiny_batch(0, exp.config))
    terms = exp.terms(state, batch)
    assert {"loss", *exp.method.terms} <= {*terms}
    record = exp.record(state, batch)
    again = exp.terms(state, batch, step_keys(state, batch, exp.setup), record.hidden.mask)
    _, metrics = exp.train_step(state, batch)
    close(terms, metrics)
    close(again, metrics)


def test_the_record_gives_the_terms_of_the_step():
    exp = tiny_experiment()
    state, batch = state_of(), exp.put(tiny_batch(0, exp.config))
    record, terms = exp.record(state, batch), exp.terms(state, batch)
    temperatures = {name: schedule(3) for name, schedule in exp.schedules.temperatures.items()}
    close(values(exp.method, record, Context(state.running, temperatures), WholeBatch()), terms)


def test_other_keys_and_another_mask_give_other_values():
    exp = tiny_experiment("mae")
    state, batch = state_of("mae"), exp.put(tiny_batch(0, exp.config))
    keys = make_keys(jax.random.key(5), batch)
    mask = exp.record(state, batch, keys).hidden.mask
    assert (mask != exp.record(state, batch).hidden.mask).any()
    of_keys = exp.terms(state, batch, keys)
    close(exp.terms(state, batch, mask=mask), of_keys)  # the keys of MAE draw the mask alone
    two = np.zeros(mask.shape, bool)
    two[..., [3, 7]] = True
    record = exp.record(state, batch, mask=two)
    assert record.hidden.removed.shape == (*mask.shape[:2], 2) and record.decoded.shape[2] == 2
    np.testing.assert_array_equal(record.hidden.mask, two)
    assert exp.terms(state, batch, mask=two)["loss"] != of_keys["loss"]


def test_masks_that_do_not_fit_are_refused():
    exp = tiny_experiment()
    state, batch = state_of(), exp.put(tiny_batch(0, exp.config))
    mask = np.zeros((2, 8, 16), bool)
    mask[..., :8] = True
    uneven = mask.copy()
    uneven[0, 3, 8] = True
    for wrong, words in {
        "type": (mask.astype(np.float32), ["float32", "[2, 8, 16]", "bool [V, 8, N]"]),
        "images": (mask[:, :4], ["[2, 4, 16]", "8"]),
        "views": (mask[:1], ["1 views", "2 views", "detailclip"]),
        "patches": (mask[..., :12], ["12 patches", "16 patches"]),
        "uneven": (uneven, ["8 to 9", "detailclip", "same number"]),
        "none": (np.zeros_like(mask), ["[0]", "16"]),
        "all": (np.ones_like(mask), ["[16]", "16"]),
    }.values():
        with pytest.raises(ValueError) as error:
            exp.terms(state, batch, mask=wrong)
        check_names(error.value, *words)
    clip = tiny_experiment("clip")
    with pytest.raises(ValueError, match="clip removes no patches"):
        clip.record(state_of("clip"), clip.put(tiny_batch(0, clip.config)), mask=mask)


def test_a_method_that_replaces_patches_takes_uneven_masks():
    exp = tiny_experiment("ibot")
    state, batch = state_of("ibot"), exp.put(tiny_batch(0, exp.config))
    mask = np.array(exp.record(state, batch).hidden.mask)
    assert len({*mask.sum(-1).ravel().tolist()}) > 1
    mask[0, 0] = True
    record = exp.record(state, batch, mask=mask)
    np.testing.assert_array_equal(record.hidden.mask, mask)
    assert np.isfinite(exp.terms(state, batch, mask=mask)["loss"])


def test_the_end_of_a_run_with_patch_dropout_sees_all_patches():
    config = tiny_config("clip")
    config.views.patch_dropout, config.views.patch_dropout_until = 0.5, 0.5
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch = noise_state(exp), exp.put(tiny_batch(0, config))
    assert exp.record(state, batch).tokens["full"].patches.shape[2] == 8
    late = state.replace(step=jnp.int32(10))
    assert exp.record(late, batch).tokens["full"].patches.shape[2] == 16
    terms = exp.terms(late, batch)
    close(terms, exp.unmasked_step(late, batch)[1])


def test_a_state_of_weights_has_them_and_the_rest_of_step_0():
    exp = tiny_experiment("detailclip", 2)
    wanted, fresh = state_of("detailclip", 2), exp.init(exp.config.seed)
    host = jax.tree.map(lambda x: np.asarray(x, np.float64), (wanted.params, wanted.ema_params))
    state = exp.state(*host)
    for name in ("params", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(wanted, name))
    for name in ("step", "opt_state", "running", "batch_stats", "rng"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(fresh, name))
    assert jax.tree.map(lambda x: (x.sharding, x.dtype), state) == jax.tree.map(lambda x: (x.sharding, x.dtype), fresh)
    _, metrics = exp.train_step(state, exp.put(tiny_batch(0, exp.config)))
    assert np.isfinite(metrics["loss"])


def test_the_teacher_is_a_copy_of_the_student_where_it_is_missing():
    exp = tiny_experiment()
    params, teacher = jax.device_get((state_of().params, state_of().ema_params))
    state = exp.state(params, {"image": teacher["image"]})
    jax.tree.map(np.testing.assert_array_equal, state.ema_params["image"], teacher["image"])
    for name in {*state.ema_params} - {"image"}:
        jax.tree.map(np.testing.assert_array_equal, state.ema_params[name], params[name])


def test_weights_that_do_not_fit_are_named():
    exp = tiny_experiment()
    params = jax.device_get(state_of().params)
    without = {name: tree for name, tree in params.items() if name not in ("decoder", "text")}
    with pytest.raises(ValueError) as error:
        exp.state({**without, "pooler": {}})
    check_names(error.value, "params", "missing: decoder, text", "unknown: pooler")
    with pytest.raises(ValueError, match=r"ema_params.*unknown: decoder"):
        exp.state(params, {"decoder": params["decoder"]})
    scale, positions = params["logit_scale"], params["text"]["positions"]
    wrong = {**params, "logit_scale": {"other": 1.0}, "text": {**params["text"], "positions": positions[1:]}}
    with pytest.raises(ValueError) as error:
        exp.state(wrong)
    (name,) = scale
    check_names(error.value, "3 arrays", f"logit_scale/{name}: missing", "logit_scale/other", f"{positions[1:].shape}")
