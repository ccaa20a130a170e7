"""Our numbers against the authors' PyTorch code, observed once on tiny models (tests/golden/README.md)."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import copied, gradient_of_one_step, noise_state

from detailclip_jax import config as config_lib
from detailclip_jax import interop
from detailclip_jax.config import sizes
from detailclip_jax.interop import key_tables, reference_names
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.training import ema, experiment, mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
DETAILCLIP = sizes.Size(16, 96, 3, 4, 64, 2, 4, 48, 1, 4, 128, 32, 256)
CLIP = sizes.Size(16, 64, 2, 4, 48, 2, 4, 32)
VIEWS = ("u", "v")


@functools.cache
def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def part(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def relative(ours, theirs):
    """Largest difference over the largest value."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def relative_l2(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / max(np.linalg.norm(theirs), 1e-12)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def config_for(size, vocab_size, **changes):
    sizes.SIZES["golden"] = size
    config = config_lib.reference_preset(config_lib.default())
    config.model.size, config.model.vocab_size = "golden", vocab_size
    config.batch_size, config.total_steps, config.steps_per_epoch = 4, 10, 1
    config.ema.start = config.ema.end = 0.9
    config.update(changes)
    return config


def nhwc(images):
    return np.moveaxis(images, 1, -1)


@functools.cache
def detailclip_case(devices=1):
    golden = load("tiny_detailclip")
    exp = experiment.build(config_for(DETAILCLIP, 512), mesh.make_mesh(jax.devices()[:devices]))
    _, variables, _ = interop.load(part(golden, "sd/"), "reference")
    state = noise_state(exp).replace(
        step=jnp.asarray(int(golden["in/epoch"]), jnp.int32),
        params=variables["params"],
        ema_params=variables["ema_params"],
        running={
            "cls": jnp.asarray(golden["in/center"][0]),
            "patch": jnp.asarray(golden["in/center2"][0, 0]),
        },
    )
    state = jax.device_put(state, jax.tree.map(lambda shape: shape.sharding, exp.state_shapes))
    images = np.stack([nhwc(golden["in/u_u8"]), nhwc(golden["in/v_u8"])], 1)
    batch = {
        "image": {"large": images},
        "box": {"large": np.zeros((4, 2, 4), np.float32)},
        "text": golden["in/text"][:, None],
        "label": np.zeros(4, np.int32),
    }
    return golden, exp, state, exp.put(batch)


@functools.cache
def detailclip_line():
    golden, exp, state, batch = detailclip_case()
    moved = state.replace(ema_params=jax.jit(ema.update)(state.ema_params, state.params, 0.9))
    return golden, exp, moved, exp.forward(moved, batch)


@functools.cache
def detailclip_step():
    """Golden values, the state before, and state and metrics after a step."""
    golden, exp, state, batch = detailclip_case()
    after, metrics = exp.train_step(copied(state), batch)
    return golden, state, after, metrics


def test_input_is_normalised_as_the_reference_does():
    golden, _, _, line = detailclip_line()
    crop = np.moveaxis(np.asarray(line.views["large"].image[0, 0, 100:104, 50:54]), -1, 0)
    np.testing.assert_allclose(crop, golden["in/u_check"], rtol=1e-6, atol=1e-6)


def test_attention():
    golden, _, _, line = detailclip_line()
    attention = np.asarray(line.targets["full"].attention).mean(-2)
    for v, name in enumerate(VIEWS):
        assert relative(attention[v], golden[f"out/attn_{name}"]) < 1e-5


def test_masks_are_exact():
    golden, _, _, line = detailclip_line()
    mask, kept = jax.device_get((line.hidden.mask, line.hidden.kept))
    for v, name in enumerate(VIEWS):
        np.testing.assert_array_equal(mask[v], golden[f"out/mask_{name}"])
        np.testing.assert_array_equal(kept[v], np.sort(golden[f"out/ids_keep_{name}"], -1))


def test_teacher_and_student_tokens():
    golden, _, _, line = detailclip_line()
    teacher, student = (
        [np.asarray(tokens.cls), np.asarray(tokens.patches)]
        for tokens in (line.targets["full"], line.tokens["visible"])
    )
    for v, name in enumerate(VIEWS):
        tokens = np.concatenate([teacher[0][v, :2, None], teacher[1][v, :2]], 1)
        assert relative(tokens, golden[f"out/teacher_tokens_{name}_2img"]) < 1e-5
        assert relative(student[0][v], golden[f"out/latent_cls_{name}"]) < 1e-5
        order = np.argsort(golden[f"out/ids_keep_{name}"][:2], -1)
        latent = np.take_along_axis(golden[f"out/latent_{name}_2img"][:, 1:], order[..., None], 1)
        assert relative(student[1][v, :2], latent) < 1e-5


def test_decoder_and_heads_at_removed_patches():
    golden, _, _, line = detailclip_line()
    ours = jax.device_get((line.hidden.removed, line.decoded, line.heads["predicted_pixels"]))
    for v, (name, removed, our_decoded, predicted) in enumerate(zip(VIEWS, *ours, strict=True)):
        decoded = np.take_along_axis(golden[f"out/decoder_{name}_2img"][:, 1:], removed[:2, :, None], 1)
        assert relative(our_decoded[:2], decoded) < 1e-5
        pixels = np.take_along_axis(golden[f"out/{name}_reconstructed_1img"], removed[:1, :, None], 1)
        assert relative(predicted[:1], pixels) < 1e-5
        for who in ("teacher", "student"):
            logits = np.take_along_axis(golden[f"out/{who}_ibot_patch_{name}_2img"], removed[:2, :, None], 1)
            assert relative(line.heads[f"{who}_patches"][v, :2], logits) < 1e-5
            cls = golden[f"out/{who}_ibot_cls"].reshape(2, 4, -1)[v]
            assert relative(line.heads[f"{who}_cls"][v], cls) < 1e-5


def test_embeddings():
    golden, _, _, line = detailclip_line()
    for v, name in enumerate(VIEWS):
        assert relative(np.asarray(line.heads["image_embedding"])[v], golden[f"out/img_embed_{name}"]) < 1e-5
    assert relative(np.asarray(line.text.embedding)[0], golden["out/text_embed"]) < 1e-5


def test_losses():
    golden, _, _, metrics = detailclip_step()
    expected = {
        "loss": golden["loss/loss"],
        "clip": (golden["loss/contra_loss_1"] + golden["loss/contra_loss_2"]) / 2,
        "cls": golden["loss/ibot_cls_loss"],
        "patch": golden["loss/ibot_patch_loss"],
        "reconstruction": golden["loss/reconst_loss"],
    }
    for name, value in expected.items():
        assert relative(metrics[name], value) < 1e-5, name


@pytest.mark.parametrize("epoch", [0, 1, 3, 49])
def test_losses_by_epoch(epoch):
    golden, exp, state, batch = detailclip_case()
    expected = part(golden, f"loss_epoch{epoch}/")
    state = copied(state.replace(step=jax.device_put(np.int32(epoch), state.step.sharding)))
    _, metrics = exp.train_step(state, batch)
    assert relative(metrics["patch"], expected["ibot_patch_loss"]) < 1e-5
    assert relative(metrics["loss"], expected["loss"]) < 1e-5


def all_gradients(before, after):
    """The gradients of a step from Adam's first moment, zero for frozen parameters."""
    zeros = traverse_util.flatten_dict(jax.tree.map(np.zeros_like, before.params), sep="/")
    return traverse_util.unflatten_dict(zeros | gradient_of_one_step(after), sep="/")


def test_gradients_of_every_trainable_parameter():
    golden, before, after, _ = detailclip_step()
    theirs = key_tables.write(reference_names.student(3, 2, 1), all_gradients(before, after))
    trainable = part(golden, "grad/")
    assert set(golden["meta/trainable"]) == set(trainable)
    for name, gradient in trainable.items():
        assert relative_l2(theirs[name], gradient) < 1e-4, name


def test_frozen_parameters_stay_as_they_were():
    golden, *states, _ = detailclip_step()
    before, after = (key_tables.write(reference_names.student(3, 2, 1), state.params) for state in states)
    frozen = set(before) - set(golden["meta/trainable"])
    assert frozen and all(np.array_equal(before[name], after[name]) for name in frozen)
    assert any((before[name] != after[name]).any() for name in golden["meta/trainable"])


def test_teacher_and_centers_after_the_step():
    golden, _, new, _ = detailclip_step()
    theirs = key_tables.write(reference_names.teacher(3, 2), new.ema_params)
    for name, value in part(golden, "teacher_after_ema/").items():
        assert relative(theirs[name], value) < 1e-6, name
    assert relative(new.running["cls"], golden["out/center_after"][0]) < 1e-6
    assert relative(new.running["patch"], golden["out/center2_after"][0, 0]) < 1e-6


@pytest.mark.slow
def test_four_devices_give_the_same_step():
    _, exp, state, batch = detailclip_case()
    _, many, many_state, many_batch = detailclip_case(devices=4)
    one, metrics = exp.train_step(copied(state), batch)
    four, many_metrics = many.train_step(copied(many_state), many_batch)
    for name, value in metrics.items():
        np.testing.assert_allclose(many_metrics[name], value, rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.running), jax.tree.leaves(four.running), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sincos_positions_are_the_reference_s():
    from detailclip_jax.models.decoder import sincos_positions

    np.testing.assert_allclose(sincos_positions(96, 14), load("tiny_detailclip")["sd/decoder_pos_embed"][0], atol=1e-6)


@functools.cache
def clip_case():
    golden = load("tiny_clip")
    config = config_for(CLIP, 256, method="clip")
    config.model.freeze_patch_embed = False
    config.views.crops.large.count = 1
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    _, variables, _ = interop.load(part(golden, "sd/"), "clip")
    batch = {
        "image": {"large": nhwc(golden["in/image_u8"])[:, None]},
        "box": {"large": np.zeros((4, 1, 4), np.float32)},
        "text": golden["in/text"][:, None],
        "label": np.zeros(4, np.int32),
    }
    return golden, exp, noise_state(exp).replace(params=variables["params"]), exp.put(batch)


@functools.cache
def clip_step():
    """Golden values, embeddings before and after normalisation, and loss and gradients, from one program."""
    golden, exp, state, batch = clip_case()
    given = exp.forward_pass
    loss = jax.value_and_grad(exp.combined_loss, has_aux=True)

    @jax.jit
    def compute(state, batch):
        images, text = batch["image"]["large"][:, 0], batch["text"][:, 0]
        normalised = normalise_pixels(images, given.pixel_mean, given.pixel_std)
        embedded = exp.model.apply({"params": state.params}, normalised, method="embed_image")
        encoded = exp.encode.image(state.params, images), exp.encode.text(state.params, text)
        return (embedded, *encoded), loss(state.params, state, batch)

    return golden, *compute(state, batch)


def test_clip_embeddings():
    golden, (embedded, image, text), _ = clip_step()
    assert relative(embedded, golden["out/image_embed"]) < 1e-5
    assert relative(text, unit(golden["out/text_embed"])) < 1e-5
    assert relative(image, unit(golden["eval/image"])) < 1e-5


def test_clip_loss_and_gradients():
    golden, _, ((value, _), grads) = clip_step()
    assert relative(value, golden["loss/loss"]) < 1e-5
    theirs = key_tables.write(reference_names.clip(2, 2), grads)
    for name, gradient in part(golden, "grad/").items():
        assert relative_l2(theirs[name], gradient) < 1e-4, name


def slip_entries():
    """SLIP's layout: CLIP's, and the SSL MLP."""
    layers = [e for i in range(3) for e in key_tables.linear(f"ssl_head/linear_{i}", f"image_mlp.layer{i + 1}")]
    norms = [e for i in range(2) for e in key_tables.norm(f"ssl_head/norm_{i}", f"image_mlp.bn{i + 1}")]
    return [*reference_names.clip(2, 2), *layers, *norms]


def slip_statistics():
    """The running statistics of SLIP's two BatchNorms."""
    names = [(f"ssl_head/norm_{i}", f"image_mlp.bn{i + 1}.running") for i in range(2)]
    pairs = [
        (f"{ours}/{a}", f"{theirs}_{b}") for ours, theirs in names for a, b in (("mean", "mean"), ("variance", "var"))
    ]
    return [key_tables.Entry(ours, theirs, key_tables.SAME) for ours, theirs in pairs]


@functools.cache
def slip_case():
    golden = load("tiny_slip")
    size = CLIP._replace(ssl_width=64, ssl_output=32)
    config = config_for(size, 256, method="slip")
    config.model.freeze_patch_embed = False
    config.views.crops.clean = {"count": 1, "size": 224}
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    _, variables, _ = interop.load(part(golden, "sd/"), "slip")
    state = noise_state(exp).replace(params=variables["params"], batch_stats=variables["batch_stats"])
    augmented = np.stack([nhwc(golden["in/aug1_u8"]), nhwc(golden["in/aug2_u8"])], 1)
    batch = {
        "image": {"clean": nhwc(golden["in/image_u8"])[:, None], "large": augmented},
        "box": {"clean": np.zeros((4, 1, 4), np.float32), "large": np.zeros((4, 2, 4), np.float32)},
        "text": golden["in/text"][:, None],
        "label": np.zeros(4, np.int32),
    }
    return golden, exp, state, exp.put(batch)


@functools.cache
def slip_step():
    """Golden values, the record of a forward pass, and loss and gradients, from one program."""
    golden, exp, state, batch = slip_case()
    loss = jax.value_and_grad(exp.combined_loss, has_aux=True)
    compute = jax.jit(lambda state, batch: (exp.forward(state, batch), loss(state.params, state, batch)))
    return golden, *compute(state, batch)


@pytest.mark.check
def test_slip_embeddings():
    golden, line, _ = slip_step()
    heads = {name: np.asarray(line.heads[name]) for name in ("image_embedding", "ssl")}
    assert relative(heads["image_embedding"][0], golden["out/image_embed"]) < 1e-5
    assert relative(np.asarray(line.text.embedding)[0], golden["out/text_embed"]) < 1e-5
    for view, name in enumerate(("out/aug1_embed", "out/aug2_embed")):
        assert relative(heads["ssl"][view], golden[name]) < 1e-5


@pytest.mark.check
def test_slip_losses_gradients_and_batch_statistics():
    golden, _, ((value, (metrics, _, stats)), grads) = slip_step()
    assert relative(value, golden["loss/loss"]) < 1e-5
    assert relative(metrics["clip"], golden["loss/clip_loss"]) < 1e-5
    assert relative(metrics["simclr"], golden["loss/ssl_loss"]) < 1e-5
    theirs = key_tables.write(slip_entries(), jax.device_get(grads))
    for name, gradient in part(golden, "grad/").items():
        # a bias before a BatchNorm has no gradient but rounding
        assert relative_l2(theirs[name], gradient) < 1e-4 or np.abs(theirs[name]).max() < 1e-5, name
    after = key_tables.write(slip_statistics(), jax.device_get(stats["student"]))
    for name, statistic in part(golden, "bn_after/").items():
        assert relative(after[name], statistic) < 1e-5, name
