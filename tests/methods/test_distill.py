"""The term distill: its loss, what the teacher sees and gives, and a run that learns from a frozen teacher."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import SIZE, check_names, copied, drawn, noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.benchmarks import variants
from detailclip_jax.config import run_config
from detailclip_jax.config.fields import CLIP_MEAN, CLIP_STD
from detailclip_jax.losses.distill import token_cosine_loss
from detailclip_jax.methods.distill import MAP, TEACHER, on_grid, resampled
from detailclip_jax.pretraining import validate
from detailclip_jax.training import adopted_config, checkpoint, experiment, mesh, optimizer, warm_start

# Another width, depth, patch and image size, normalisation, and two registers; the student has 4 x 4 patches.
LARGER = {**SIZE, "width": 64, "depth": 3, "num_heads": 2, "patch_size": 6}
OF_TEACHER = {
    "model.custom": LARGER,
    "model.image_size": 30,
    "model.class_tokens": 3,
    "model.image_style.norm_eps": 1e-5,
    "model.image_style.pre_norm": True,
    "preprocess.mean": CLIP_MEAN,
    "preprocess.std": CLIP_STD,
    "preprocess.filter": "bicubic",
    "views.crops.large.size": 30,
}
RECORD = {  # what `adopt` copies of it
    "model": {
        "size": "custom",
        "custom": LARGER,
        "image_size": 30,
        "image_style": {**tiny_config().model.image_style.to_dict(), "norm_eps": 1e-5, "pre_norm": True},
        "class_tokens": 3,
        "interpolation": "bicubic",
    },
    "preprocess": {"filter": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD},
}


# the loss


def test_the_loss_is_the_mean_distance_of_directions():
    rng = np.random.default_rng(0)
    student, teacher = (np.float32(rng.normal(size=(2, 3, 5, 7))) for _ in range(2))
    unit = lambda x: np.float64(x) / np.linalg.norm(x)
    expected = np.mean([1 - unit(student[i]) @ unit(teacher[i]) for i in np.ndindex(2, 3, 5)])
    loss, gradients = jax.jit(jax.value_and_grad(token_cosine_loss, argnums=(0, 1)))(student, teacher)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.asarray(gradients[0]).any() and not np.asarray(gradients[1]).any()
    assert token_cosine_loss(*(jnp.asarray(x) for x in (student, 3 * student))) == pytest.approx(0, abs=1e-6)


# resampling


def naive_axis(old, new):
    """Weights [new, old] of a triangle over half-pixel centres, as wide as a new cell if that is larger than an old."""
    weights, width = np.zeros((new, old)), max(old / new, 1)
    for to in range(new):
        centre = (to + 0.5) * old / new
        for cell in range(old):
            weights[to, cell] = max(0, 1 - abs(cell + 0.5 - centre) / width)
        weights[to] /= weights[to].sum()
    return weights


@pytest.mark.parametrize(("old", "new"), [(5, 4), (4, 7), (9, 3), (1, 4), (6, 6)])
def test_a_map_is_resampled_as_in_loops(old, new):
    patches = np.float32(np.random.default_rng(0).normal(size=(2, 3, old**2, 5)))
    found, weights = jax.jit(on_grid, static_argnums=1)(patches, new), naive_axis(old, new)
    grid = patches.reshape(2, 3, old, old, 5)
    for row, column in np.ndindex(new, new):
        expected = sum(
            weights[row, y] * weights[column, x] * np.float64(grid[:, :, y, x]) for y, x in np.ndindex(old, old)
        )
        np.testing.assert_allclose(found[:, :, row * new + column], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 48])
def test_pixels_are_resampled_as_pillow_does(filter, size):
    pixels = np.random.default_rng(0).integers(90, 166, (1, 2, 32, 32, 3), np.uint8)  # no overshoot beyond 0 and 255
    found = np.asarray(jax.jit(resampled, static_argnums=(1, 2))(pixels, size, filter))
    for image in range(2):
        theirs = Image.fromarray(pixels[0, image]).resize((size, size), Image.Resampling[filter.upper()])
        assert np.abs(found[0, image] - np.asarray(theirs)).max() <= 1.13  # Pillow rounds after each axis
    np.testing.assert_array_equal(resampled(jnp.asarray(pixels), 32, filter), pixels)


# the term


def asked(method="clip", **fields):
    config = tiny_config(method)
    config.distill.record = RECORD
    config.update_from_flattened_dict({"losses.weights.distill": 1.0, **fields})
    return config


def built(method="clip", **fields):
    return experiment.build(asked(method, **fields), mesh.make_mesh(jax.devices()[:1]))


@functools.cache
def history():
    """The experiment, its state after three steps, and the metrics of each."""
    exp = built()
    state, found = noise_state(exp), []
    for step in range(3):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        found.append(jax.device_get(metrics))
    return exp, copied(state), found


@functools.cache
def recorded(method="clip", **fields):
    exp = built(method, **fields)
    state = noise_state(exp)
    return exp, state, exp.forward(state, exp.put(tiny_batch(0, exp.config)))


def teacher_of(exp):
    """The teacher's own networks, as they would be loaded from its folder."""
    config = tiny_config()
    config.update_from_flattened_dict(OF_TEACHER)
    return methods.build_networks(config).only("image")


def expected_tokens(exp, state, size):
    """What the teacher's own evaluation gives of the first view: its class tokens, and its map at 4 x 4 places."""
    pixels = np.moveaxis(tiny_batch(0, exp.config)["image"]["large"], 1, 0).astype(np.float32)
    images = np.asarray(resampled(jnp.asarray(pixels), size, "bicubic"))
    images = (images / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    encode = jax.jit(lambda params, x: teacher_of(exp).bind({"params": {"image": params}}).image(x))
    tokens = encode(state.params[TEACHER], images.reshape(-1, size, size, 3))
    side = size // LARGER["patch_size"]
    maps, weights = np.asarray(tokens.patches).reshape(*pixels.shape[:2], side, side, -1), naive_axis(side, 4)
    patches = np.einsum("iy,jx,vbyxd->vbijd", weights, weights, maps).reshape(*pixels.shape[:2], 16, -1)
    return np.asarray(tokens.cls).reshape(*pixels.shape[:2], -1), patches


@pytest.mark.parametrize("size", [0, pytest.param(24, marks=pytest.mark.check)])
def test_the_targets_are_what_the_teacher_s_own_networks_give_of_its_own_preprocessing(size):
    exp, state, record = recorded(**({"distill.size": size} if size else {}))
    cls, patches = expected_tokens(exp, state, size or 30)
    np.testing.assert_allclose(record.heads["distill_cls_target"], cls, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(record.heads["distill_patches_target"], patches, rtol=1e-4, atol=1e-4)


@pytest.mark.check
def test_the_loss_of_a_step_is_that_of_the_mapped_tokens():
    _, state, record = recorded()
    _, _, found = history()
    kernel, bias = (np.float64(state.params[MAP]["proj"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (96, 64)
    tokens, losses = record.tokens["full"], []
    for kind in ("cls", "patches"):
        mapped = np.float64(getattr(tokens, kind)) @ kernel + bias
        target = np.float64(record.heads[f"distill_{kind}_target"])
        cosine = (mapped * target).sum(-1) / np.linalg.norm(mapped, axis=-1) / np.linalg.norm(target, axis=-1)
        losses.append(np.mean(1 - cosine))
    np.testing.assert_allclose([found[0]["distill_cls"], found[0]["distill_patches"]], losses, rtol=1e-4)
    for metrics in found:
        np.testing.assert_allclose(metrics["distill"], metrics["distill_cls"] + metrics["distill_patches"], rtol=1e-6)
        np.testing.assert_allclose(metrics["loss"], metrics["clip"] + metrics["distill"], rtol=1e-6)


@pytest.mark.check
def test_a_student_that_drops_patches_is_compared_at_those_that_it_sees():
    exp, state, record = recorded("detailclip")
    _, patches = expected_tokens(exp, state, 30)
    kept = np.asarray(record.hidden.kept)
    assert record.heads["distill_patches"].shape[2] == kept.shape[-1] < 16
    expected = np.take_along_axis(patches, kept[..., None], 2)
    np.testing.assert_allclose(record.heads["distill_patches_target"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.check
def test_the_teacher_keeps_its_bits_and_has_neither_moments_nor_an_average():
    exp, state, _ = history()
    before = noise_state(exp).params
    jax.tree.map(np.testing.assert_array_equal, state.params[TEACHER], before[TEACHER])
    for network in ("image", MAP):
        assert not np.array_equal(*(jax.tree.leaves(params[network])[-1] for params in (state.params, before)))
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert any(MAP in path for path in moments) and not any(TEACHER in path for path in moments)
    assert TEACHER not in state.ema_params
    trained = optimizer.trained(exp.state_shapes.params, exp.setup.groups)
    assert not jax.tree.leaves(trained[TEACHER]) and "frozen" in exp.parameter_table()


def test_patch_dropout_compares_the_patches_that_are_seen():
    exp = built(**{"views.patch_dropout": 0.5})
    names = "distill_patches", "distill_patches_target"
    compared = lambda state, batch: [exp.forward(state, batch).heads[name] for name in names]
    student, teacher = jax.eval_shape(compared, exp.state_shapes, tiny_batch(0, exp.config))
    assert student.shape == teacher.shape == (1, 8, 8, 64)


# the folder of the teacher


def saved_teacher(path, method="clip"):
    """A workdir of noise; returns its weights."""
    config = tiny_config(method)
    config.update_from_flattened_dict(OF_TEACHER)
    for name, crop in config.views.crops.items():
        crop.size = 12 if name == "local" else 30
    shapes = experiment.weight_shapes(config)
    names = ("params", "ema_params", "batch_stats", "running")
    trees = {name: jax.device_put(drawn(getattr(shapes, name), seed, 1.0)) for seed, name in enumerate(names)}
    checkpoint.save_weights(path, trees, config, "noise")
    return trees


def student_of(folder, **fields):
    config = tiny_config()
    config.update_from_flattened_dict({"losses.weights.distill": 1.0, "distill.teacher": str(folder), **fields})
    return config


@pytest.mark.parametrize(
    ("method", "which"),
    [("clip", "params"), ("cosmos", "ema_params")],
)
def test_the_teacher_is_the_encoder_that_its_method_evaluates(tmp_path, method, which):
    trees = saved_teacher(tmp_path / "teacher", method)
    config = adopted_config.adopt(student_of(tmp_path / "teacher"))
    assert config.distill.record.to_dict() == RECORD
    validate(config)
    assert run_config.to_json(run_config.from_json(run_config.to_json(config))) == run_config.to_json(config)
    state, lines = warm_start.load_terms(config, built_state(config))
    jax.tree.map(np.testing.assert_array_equal, state.params[TEACHER], trees[which]["image"])
    check_names("\n".join(lines), "teacher", method, "30 px", "bicubic", "0.4815", "0.2686", "5 x 5", "64")


def built_state(config):
    shapes = experiment.weight_shapes(config)
    return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


def test_benchmarks_count_the_teacher_that_is_named_or_one_of_the_student_s_size(tmp_path):
    saved_teacher(tmp_path / "teacher")
    found = [
        variants.build("configs/beyond/distill.py", fields).config.distill.record
        for fields in ({"distill.teacher": str(tmp_path / "teacher")}, {})
    ]
    assert found[0].to_dict() == RECORD and found[1].model.size == "S/16"


def test_a_run_goes_on_without_the_folder_of_its_teacher(tmp_path):
    saved_teacher(tmp_path / "teacher")
    asked = student_of(tmp_path / "teacher")
    adopted = adopted_config.adopt(asked)
    state = built_state(adopted)
    trees = {name: getattr(state, name) for name in ("params", "ema_params", "batch_stats", "running")}
    checkpoint.save_weights(tmp_path / "run", trees, adopted, "zeros")
    shutil.rmtree(tmp_path / "teacher")
    again = adopted_config.adopt(asked, workdir=tmp_path / "run")
    assert run_config.to_json(again) == run_config.to_json(adopted)
    with pytest.raises(FileNotFoundError, match=r"config\.distill\.teacher '.*/teacher' is not a workdir"):
        adopted_config.adopt(asked, workdir=tmp_path / "other")


def test_what_is_no_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError) as refused:
        adopted_config.adopt(student_of(""))
    check_names(refused.value, "losses.weights.distill", "--config.distill.teacher=")
    with pytest.raises(ValueError) as refused:
        adopted_config.adopt(student_of("", **{"losses.weights.distill": 0.0, "distill.size": 24}))
    check_names(refused.value, "distill.size 24", "--config.losses.weights.distill=1")
    file = tmp_path / "dinov3.pth"
    file.touch()
    with pytest.raises(FileNotFoundError) as refused:
        adopted_config.adopt(student_of(file))
    check_names(refused.value, "distill.teacher", "dinov3.pth", "import_torch")
    saved_teacher(tmp_path / "teacher")
    config = adopted_config.adopt(student_of(tmp_path / "teacher"))
    config.distill.record.model.custom.mlp_width = 100
    with pytest.raises(
        checkpoint.CheckpointError, match=r"distill, from .*/teacher, .*/mlp/fc1/kernel: \(64, 256\) there, \(64, 100\)"
    ):
        warm_start.load_terms(config, built_state(config))


@pytest.mark.check
def test_a_distilled_run_is_loaded_without_its_teacher_s_folder_and_starts_another_run(tmp_path):
    saved_teacher(tmp_path / "teacher")
    config = adopted_config.adopt(student_of(tmp_path / "teacher"))
    state = built_state(config)
    trees = {name: getattr(state, name) for name in ("params", "ema_params", "batch_stats", "running")}
    checkpoint.save_weights(tmp_path / "run", trees, config, "zeros")
    shutil.rmtree(tmp_path / "teacher")
    plain = tiny_config()
    plain.init = str(tmp_path / "run")
    plain = adopted_config.adopt(plain)
    _, lines = warm_start.load(plain, built_state(plain))
    assert TEACHER in next(line for line in lines if "not used" in line)
