"""The method dinotxt: its blocks, its embedding and its words against the equations, and a run on a frozen encoder."""

import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from library_features import check_export
from straightforward import linear, norm
from tiny import SHORT_RUN, check_names, drawn, noise, noise_state, on_one_device, tiny_batch, tiny_config

from detailclip_jax import export, methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.data.native_aspect import Native
from detailclip_jax.inference.model import load
from detailclip_jax.inference.readout_maps import cosines, readout_encoder
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.image_blocks import ImageBlocks, hidden_width
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.training import adopted_config, checkpoint, experiment, mesh
from detailclip_jax.training import train as training

ROOT = Path(__file__).parents[2]
WIDTH, HEADS = 96, 4


def noisy_config(**fields):
    config = tiny_config("dinotxt")
    config.model.class_tokens = 3  # two registers
    config.update_from_flattened_dict(fields)
    return config


def aligned(params, tokens, factors=((1, 1), (1, 1))):
    """All tokens after the two blocks and the final norm, from those of the encoder [B, M, D].

    `factors` are those of drop path: for each block of its two branches.
    """
    x = tokens
    for number in range(2):
        p = params[f"blocks_{number}"]
        qkv = norm(p["norm1"], x, 1e-5) @ p["attn"]["qkv"]["kernel"]
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / (WIDTH / HEADS) ** 0.5
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value).reshape(x.shape)
        x = x + factors[number][0] * p["ls1"]["scale"] * linear(p["attn"]["proj"], attended)
        y, mlp = norm(p["norm2"], x, 1e-5), p["mlp"]
        gate, value = jnp.split(linear(mlp["fc1"], y), 2, -1)
        x = x + factors[number][1] * p["ls2"]["scale"] * linear(mlp["fc2"], gate / (1 + jnp.exp(-gate)) * value)
    return norm(params["norm"], x, 1e-5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_embedding_and_words_are_those_of_the_equations():
    config = noisy_config()
    model, params = methods.build_networks(config), noise(experiment.weight_shapes(config).params, scale=0.3)
    assert {*params} == {"image", "image_projection", "text", "text_projection", "logit_scale"}
    images, fields = jnp.asarray(tiny_batch(0, config)["image"]["large"][:2, 0]), config.preprocess

    @jax.jit
    def expected(params):
        tokens = model.bind({"params": params}).image(normalise_pixels(images, fields.mean, fields.std))
        x = aligned(params["image_projection"], jnp.concatenate([tokens.cls[:, None], tokens.extra, tokens.patches], 1))
        return jnp.concatenate([x[:, 0], x[:, 3:].mean(1)], -1), x[:, 3:]

    embedding, patches = expected(params)
    encode, text = encoders(model, config), tiny_batch(0, config)["text"][:, 0]
    np.testing.assert_allclose(encode.image(params, images), unit(embedding), atol=1e-5)
    found = readout_encoder(model, config, "plain")(params, images)
    np.testing.assert_allclose(found, unit(patches).reshape(2, 4, 4, WIDTH), atol=1e-5)
    texts = np.asarray(encode.text(params, text))
    second = unit(np.asarray(encode.raw_text(params, text))[:, WIDTH:])
    assert texts.shape == (8, 2 * WIDTH)
    np.testing.assert_allclose(cosines(np.asarray(found), texts), np.asarray(found) @ second.T, atol=1e-5)


def test_drop_path_of_the_new_blocks_drops_a_branch_of_an_image_or_multiplies_it_by_1_over_07():
    blocks, tokens = ImageBlocks(WIDTH, HEADS), jnp.asarray(np.random.default_rng(0).standard_normal((8, 3, WIDTH)))
    params = noise(jax.eval_shape(blocks.init, jax.random.key(0), tokens)["params"], scale=0.3)
    found = jax.jit(blocks.apply)({"params": params}, tokens, jax.random.split(jax.random.key(1), 8))
    choices = jnp.asarray(list(itertools.product((0, 1 / 0.7), repeat=4))).reshape(-1, 2, 2)
    every = jax.jit(jax.vmap(lambda factors: aligned(params, tokens, factors)))(choices)  # [16, 8, 3, D]
    fits = np.isclose(every, found, atol=1e-4).all((2, 3))
    np.testing.assert_array_equal(fits.sum(0), 1)
    assert len({*fits.argmax(0)}) > 2


def test_padding_of_native_images_changes_nothing():
    config = noisy_config()
    model, params = methods.build_networks(config), noise(experiment.weight_shapes(config).params, scale=0.3)
    patches = jnp.asarray(np.random.default_rng(0).standard_normal((2, 15, 192)), jnp.float32)
    grid, embed = jnp.array([[3, 4], [2, 5]]), jax.jit(model.bind({"params": params}).embed_image)
    whole = embed(Native(patches, grid))
    for row, count in enumerate((12, 10)):
        alone = embed(Native(patches[row : row + 1, :count], grid[row : row + 1]))
        np.testing.assert_allclose(whole[row], alone[0], rtol=1e-4, atol=1e-5)


def test_new_blocks_change_nothing_at_first_and_the_hidden_width_is_the_published_one():
    assert [hidden_width(width) for width in (1024, 768, 96)] == [2752, 2048, 256]
    exp = experiment.build(noisy_config(), mesh.make_mesh(jax.devices()[:1]))
    head = exp.initial.draw(0).params["image_projection"]
    np.testing.assert_array_equal(head["blocks_1"]["ls2"]["scale"], np.float32(1e-5))
    assert "bias" not in head["blocks_0"]["attn"]["qkv"] and head["blocks_0"]["mlp"]["fc2"]["kernel"].shape == (256, 96)


@pytest.mark.slow
def test_chunks_give_the_gradient_of_the_whole_batch():
    exps = []
    for chunks in (1, 2):
        config = noisy_config(**{"batch_size": 4, "accumulation": chunks, "model.custom.depth": 1})
        exps.append(experiment.build(config, mesh.make_mesh(jax.devices()[:1])))
    state, batch = noise_state(exps[0]), exps[0].put(tiny_batch(3, exps[0].config, size=4))
    step = lambda exp: jax.jit(jax.value_and_grad(exp.combined_loss, has_aux=True))(state.params, state, batch)
    for a, b in zip(*(jax.tree.leaves(step(exp)) for exp in exps), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


# a run on the encoder of another checkpoint

SMALL = {
    **SHORT_RUN,
    "model.custom.text_width": 32,
    "model.custom.text_depth": 1,
    "model.custom.text_heads": 2,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A workdir of noise, of a method without texts."""
    folder, config = tmp_path_factory.mktemp("dinotxt") / "encoder", tiny_config("dino")
    config.model.vocab_size = 49408
    shapes = experiment.weight_shapes(config)
    names = ("params", "ema_params", "batch_stats", "running")
    trees = {name: jax.device_put(drawn(getattr(shapes, name), seed, 0.3)) for seed, name in enumerate(names)}
    checkpoint.save_weights(folder, trees, config, "noise")
    return folder


def asked(init):
    config = run_config.load(f"{ROOT}/configs/beyond/dinotxt.py")
    config.update_from_flattened_dict(SMALL | {"init": str(init)})
    return config


@pytest.fixture(scope="module")
def trained(encoder):
    """The workdir of a run."""
    with on_one_device():
        assert training.train(pretraining.prepare(asked(encoder), encoder.parent / "run")) == 0
    return encoder.parent / "run"


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.check
def test_the_encoder_stays_and_a_stopped_run_ends_with_the_same_bits(encoder, trained, tmp_path):
    model, before = load(trained), checkpoint.load(encoder)[1]["params"]
    equal(model.params["image"], before["image"])
    assert model.config.model.custom.text_width == 32 and model.config.model.custom.width == WIDTH
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    with on_one_device():
        assert training.train(pretraining.prepare(asked(encoder), tmp_path / "run")) == 0
    equal(load(tmp_path / "run").params, model.params)
    first = checkpoint.load(trained, 2)[1]["params"]["image_projection"]["norm"]["scale"]
    assert not np.array_equal(first, model.params["image_projection"]["norm"]["scale"])


@pytest.mark.check
def test_a_model_embeds_and_names_patches_by_its_plain_read_out(trained):
    model = load(trained)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    assert model.encode_image(images).shape == model.encode_text(["a frog", "a bus"]).shape == (2, 2 * WIDTH)
    assert model.features(images).patches.shape == (2, 4, 4, WIDTH)
    maps = model.dense(images[0], ["a frog", "a bus"])
    np.testing.assert_array_equal(maps, model.dense(images[0], ["a frog", "a bus"], readout="plain"))
    assert maps.shape == (2, 32, 32) and np.abs(maps).max() <= 1


@pytest.mark.check
@pytest.mark.parametrize("to", ["safetensors", "timm", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_it_is_exported_and_equal(trained, tmp_path, to):
    out = tmp_path / ("out.safetensors" if to != "stablehlo" else "out")
    assert export.main([f"--checkpoint={trained}", f"--to={to}", f"--out={out}"]) == 0
    assert len(check_export(to, trained, out)) == (1 if to == "timm" else 2)


@pytest.mark.check
def test_a_layout_without_a_place_for_the_blocks_is_refused(trained, tmp_path, capsys):
    for to in ("open_clip", "reference", "huggingface"):
        assert export.main([f"--checkpoint={trained}", f"--to={to}", f"--out={tmp_path / to}"]) == 2
        check_names(capsys.readouterr().err, to, "dinotxt", "--to=safetensors")


@pytest.mark.check
def test_projections_are_loaded_from_the_same_kind_alone(trained, encoder):
    again = adopted_config.adopt(asked(trained)).optimizer.part_rates
    assert {*again} == {"image", "image_projection", "text", "text_projection", "logit_scale"}
    config = tiny_config("clip")
    config.init = str(trained)
    assert {*adopted_config.adopt(config).optimizer.part_rates} == {"image", "text"}
    assert {*adopted_config.adopt(asked(encoder)).optimizer.part_rates} == {"image"}
