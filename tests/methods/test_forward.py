import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SIZE, tiny_batch, tiny_config, tiny_experiment, tiny_state

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.methods import method as forward
from detailclip_jax.methods import running_statistics
from detailclip_jax.models import patchify
from detailclip_jax.training import experiment, mesh

ROOT = pathlib.Path(__file__).parents[2]


def test_the_record_has_the_shapes_of_the_letters():
    exp = tiny_experiment()
    record = exp.forward(tiny_state(), exp.put(tiny_batch()))
    assert record.views["large"].image.shape == (2, 8, 32, 32, 3)
    assert record.targets["full"].patches.shape == (2, 8, 16, 96)
    assert record.targets["full"].attention.shape == (2, 8, SIZE["depth"], 16)
    assert record.hidden.mask.shape == (2, 8, 16) and record.hidden.kept.shape == (2, 8, 8)
    assert record.tokens["visible"].patches.shape == (2, 8, 8, 96)
    assert record.decoded.shape == (2, 8, 8, 96)
    assert record.text.embedding.shape == (1, 8, 64)
    assert record.heads["student_patches"].shape == (2, 8, 8, 32)
    assert record.heads["predicted_pixels"].shape == (2, 8, 8, 192)


def test_the_patch_center_by_linearity_is_the_mean_of_all_logits():
    exp = tiny_experiment()
    state = tiny_state()
    record = exp.forward(state, exp.put(tiny_batch()))
    head = exp.model.prototype_head
    variables, targets = {"params": state.params["prototype_head"]}, record.targets["full"]
    logits = jax.jit(lambda variables, x: head.apply(variables, x.reshape(-1, 96))[...])(variables, targets.patches)
    np.testing.assert_allclose(record.heads["patch_mean"], logits.mean(0), rtol=1e-4, atol=1e-6)


def test_the_student_never_sees_hidden_pixels():
    exp = tiny_experiment()
    state, batch = tiny_state(), tiny_batch()
    record = exp.forward(state, exp.put(batch))
    pixels = patchify.patchify(batch["image"]["large"].astype(np.float32), 8)  # [B, V, N, P]
    hidden = np.moveaxis(np.asarray(record.hidden.mask), 1, 0)
    changed = patchify.unpatchify(np.where(hidden[..., None], 0, pixels), 8)

    @jax.jit
    def cls(params, images, kept):
        return forward.fold(lambda x, kept: exp.model.image.apply({"params": params}, x, kept).cls, images, kept)

    of = lambda images: cls(state.params["image"], np.float32(images.swapaxes(0, 1)), record.hidden.kept)
    np.testing.assert_array_equal(of(batch["image"]["large"]), of(changed))


def test_fold_is_a_loop_over_views():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(forward.fold(lambda y: y[:, :2] * 2, x), jnp.stack([v[:, :2] * 2 for v in x]))


def test_patchify_is_undone_by_unpatchify_and_orders_as_mae():
    images = jnp.asarray(np.random.default_rng(0).random((2, 3, 8, 8, 3)), jnp.float32)
    cut = patchify.patchify(images, 4)
    np.testing.assert_array_equal(patchify.unpatchify(cut, 4), images)
    np.testing.assert_array_equal(cut[1, 2, 1].reshape(4, 4, 3), images[1, 2, :4, 4:])


def test_normalised_patches_have_mean_zero_and_unbiased_variance_one():
    x = jnp.asarray(np.random.default_rng(0).random((5, 48)), jnp.float32)
    y = patchify.normalise_patches(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1, ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(patchify.normalise_patches(jnp.ones((1, 48))), 0, atol=1e-6)


def row(**changes):
    return dataclasses.replace(methods.METHODS["detailclip"](tiny_config()), **changes)


def test_a_wrong_row_fails_when_it_is_built():
    loss = forward.Loss("clip", ("nonsense",), lambda record, context: (0.0, {}))
    with pytest.raises(ValueError, match=r"'clip' .*\['nonsense'\].*\['cls_mean'"):
        forward.build(row(losses=(loss,)), {"clip": 1.0})
    with pytest.raises(ValueError, match=r"no entry for \['reconstruction'\]"):
        forward.build(row(), {"clip": 1.0, "cls": 1.0, "patch": 1.0})


def test_a_head_that_only_a_running_statistic_takes_is_kept():
    """It was dropped, if the term did not also read it, and the first step ended with a missing key."""
    value = forward.Head(("value",), lambda student, teacher, record: {})
    mean = forward.Head(("value_mean",), lambda student, teacher, record: {})
    statistic = running_statistics.Running("value_mean", running_statistics.MEAN)
    loss = forward.Loss("clip", ("value",), lambda record, context: (0.0, {}), running=statistic)
    built = forward.build(row(heads=(value, mean), losses=(loss,)), {"clip": 1.0})
    assert built.heads == (value, mean)


def test_weights_of_other_rows_do_not_concern_this_one():
    assert set(methods.build(tiny_config("clip")).terms) == {"clip"}


@pytest.mark.check
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowering_for_accelerators(platform, monkeypatch):
    """The whole step of the paper's run as that platform takes it: 224 px, 77 words, on a GPU cuDNN's attention."""
    monkeypatch.setattr(mesh, "platform_of", lambda _: {"cuda": "gpu"}.get(platform, platform))
    checks = []
    if platform == "cuda":
        cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
        monkeypatch.setattr(cudnn, "cuda_versions", types.SimpleNamespace(cudnn_get_version=lambda: 91000))
        calls = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
        checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in calls]
    config = run_config.load(str(ROOT / "configs/vitb16_yfcc.py"))
    config.batch_size, config.total_steps, config.steps_per_epoch = 2, 10, 5
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), experiment.dummy_batch(config, 2))
    exported = jax.export.export(exp.train_step.program, platforms=[platform], disabled_checks=checks)
    lowered = exported(exp.state_shapes, shapes, exp.schedules)
    assert ("__cudnn$fmhaSoftmax" in lowered.mlir_module()) == (platform == "cuda")
