"""SigLIP's published encoders: attention pool, text without a causal mask, and Hugging Face's SiglipModel both ways."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from library_features import Inputs, check_export, ours
from PIL import Image
from tiny import noise

from detailclip_jax import embed, evaluate, export, import_torch, interop, load, pretraining
from detailclip_jax.config import default, run_config
from detailclip_jax.data.native_aspect import stacked
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.evaluation import sticker_scenes, subject
from detailclip_jax.inference.readout_maps import readout_encoder
from detailclip_jax.interop import key_tables
from detailclip_jax.interop.huggingface_names import SIGLIP
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.models.attention_pool import AttentionPool
from detailclip_jax.models.layers import ACTIVATIONS
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.text_encoder import TextStyle, TextTransformer
from detailclip_jax.models.vit import VIT_INIT
from detailclip_jax.training import adopted_config, experiment
from detailclip_jax.training import train as training

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pil = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")

from test_vocabularies import word_file  # noqa: E402  # needs the library tokenizers

ROOT = Path(__file__).parents[2]
WIDTH, PATCH, SIDE, CONTEXT, VOCABULARY = 24, 8, 4, 7, 40


def siglip(seed=0, **vision):
    """A SiglipModel with random weights and the widths of no published model."""
    shared = {"hidden_size": WIDTH, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH}
    image = {"num_hidden_layers": 2, "image_size": PATCH * SIDE, "patch_size": PATCH, **shared, **vision}
    text = {"num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    text |= {**shared, "bos_token_id": None, "eos_token_id": 1}
    config = transformers.SiglipConfig(vision_config=image, text_config=text)
    torch.manual_seed(seed)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, PATCH * SIDE, PATCH * SIDE, 3)).astype(np.float32)
    return images, rng.integers(0, VOCABULARY, (2, CONTEXT)).astype(np.int32)


def theirs(model, images, tokens):
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        made = model(pixel_values=pixels, input_ids=torch.from_numpy(tokens).long())
    return made.image_embeds.numpy(), made.text_embeds.numpy(), made.logits_per_image.numpy()


@pytest.mark.parametrize("vision", [{}, {"intermediate_size": 56, "hidden_act": "gelu"}], ids=["usual", "others"])
def test_a_siglip_model_is_read(tmp_path, vision):
    module = siglip(**vision)
    module.save_pretrained(tmp_path)
    model, variables, config = interop.load(tmp_path)
    assert config.method == "siglip"
    images, tokens = inputs()
    made = ours(model, variables["params"], Inputs(images, tokens))
    image, text = (made[name] / np.linalg.norm(made[name], axis=-1, keepdims=True) for name in ("image", "text"))
    expected = theirs(module, images, tokens)
    np.testing.assert_allclose(image, expected[0], atol=1e-5)
    np.testing.assert_allclose(text, expected[1], atol=1e-5)
    scale, bias = (variables["params"][name]["value"] for name in ("logit_scale", "logit_bias"))
    np.testing.assert_allclose(np.exp(scale) * image @ text.T + bias, expected[2], atol=1e-4)


def test_a_state_dict_without_its_config_has_siglips_preprocessing():
    module = siglip()
    _, _, config = interop.load(module.state_dict(), num_heads=3, text_heads=3)
    assert config.preprocess.to_dict() == {
        "filter": "bicubic",
        "resize": "squash",
        "max_patches": 0,
        "crop_ratio": 1.0,
        "decoding": "upright",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    assert (config.model.image_style.activation, config.model.text_activation) == ("gelu_tanh", "gelu_tanh")
    assert config.model.text_style.to_dict() == SIGLIP.text_style._asdict()
    assert config.model.image_is_embedding and config.model.size == "custom"
    assert (config.model.context_length, config.model.vocab_size) == (CONTEXT, VOCABULARY)


def test_the_widths_of_the_mlps_are_read_from_the_shapes():
    """SigLIP So400m has 4304 hidden units at width 1152; here 56 at 24, in the image encoder alone."""
    _, _, config = interop.load(siglip(intermediate_size=56).state_dict(), num_heads=3, text_heads=3)
    assert (config.model.custom.mlp_width, config.model.custom.text_mlp_width) == (56, 0)
    with pytest.raises(ValueError, match="layout 'open_clip' cannot represent"):
        interop.to_state_dict({}, config, "open_clip")


@pytest.fixture(scope="module")
def naflex(tmp_path_factory):
    """A Siglip2Model (NaFlex) with random weights, and the workdir of its import; its images have up to 20 patches."""
    folder = tmp_path_factory.mktemp("naflex")
    shared = {"hidden_size": WIDTH, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "bos_token_id": None, "eos_token_id": 1}
    image = {"num_patches": SIDE**2, "patch_size": PATCH, **shared}
    module = transformers.Siglip2Model(
        transformers.Siglip2Config(vision_config=image, text_config=text | shared)
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    module.save_pretrained(folder / "theirs")
    pil.Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=20).save_pretrained(folder / "theirs")
    assert import_torch.main([str(folder / "theirs"), f"--out={folder / 'ours'}"]) == 0
    return module, folder / "ours"


@pytest.mark.check
def test_a_naflex_model_encodes_images_in_their_own_aspect(naflex):
    module, workdir = naflex
    model, rng = load(workdir), np.random.default_rng(0)
    assert model.config.preprocess.resize == "native" and model.config.preprocess.max_patches == 20
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((40, 40), (90, 20), (13, 77))]
    views = stacked([model.view(image) for image in images])
    assert views.grid.tolist() == [[4, 4], [9, 2], [2, 10]]
    processed = pil.Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=20)(images=images, return_tensors="pt")
    pixels = np.where(views.valid[..., None], (views.patches / 255 - 0.5) / 0.5, 0).astype(np.float32)
    np.testing.assert_allclose(processed["pixel_values"], pixels, atol=1.01 / 127.5)  # one level of rounding
    with torch.inference_mode():
        mask, grid = torch.from_numpy(views.valid).int(), torch.from_numpy(views.grid).long()
        given = {"pixel_values": torch.from_numpy(pixels), "pixel_attention_mask": mask, "spatial_shapes": grid}
        expected = torch.nn.functional.normalize(module.get_image_features(**given).pooler_output, dim=-1).numpy()
    np.testing.assert_allclose(model.encode_image(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(images[1:2]), expected[1:2], atol=1e-5)
    with pytest.raises(ValueError, match=r"features needs a square.*resize.*squash"):
        model.features(images)
    squares = load(workdir, preprocess={"resize": "squash"})
    assert squares.features(images).patches.shape == (3, SIDE, SIDE, WIDTH)
    assert squares.fingerprint != model.fingerprint


def big_vision(model, scanned):
    """The parameters of a model of transformers as big_vision's flax modules name and shape them."""
    array = lambda tensor: tensor.detach().numpy()
    norm = lambda layer: {"scale": array(layer.weight), "bias": array(layer.bias)}
    dense = lambda layer: {"kernel": array(layer.weight).T, "bias": array(layer.bias)}
    mlp = lambda layer: {"Dense_0": dense(layer.fc1), "Dense_1": dense(layer.fc2)}

    def attention(weights, biases, out):
        names = "query", "key", "value"
        shares = {
            name: {"kernel": array(weight).T.reshape(WIDTH, 3, -1), "bias": array(bias).reshape(3, -1)}
            for name, weight, bias in zip(names, weights, biases)
        }
        return {**shares, "out": {**dense(out), "kernel": array(out.weight).T.reshape(3, -1, WIDTH)}}

    def block(layer):
        attn = layer.self_attn
        shares = attn.q_proj, attn.k_proj, attn.v_proj
        mixed = attention([each.weight for each in shares], [each.bias for each in shares], attn.out_proj)
        norms = {"LayerNorm_0": norm(layer.layer_norm1), "LayerNorm_1": norm(layer.layer_norm2)}
        return {**norms, "MultiHeadDotProductAttention_0": mixed, "MlpBlock_0": mlp(layer.mlp)}

    def encoder(layers, last):
        blocks = [block(layer) for layer in layers]
        apart = {f"encoderblock_{number}": each for number, each in enumerate(blocks)}
        stacked = {"encoderblock": jax.tree.map(lambda *each: np.stack(each), *blocks)}
        return {**(stacked if scanned else apart), "encoder_norm": norm(last)}

    image, text, pool = model.vision_model, model.text_model, model.vision_model.head
    kernel, places = array(image.embeddings.patch_embedding.weight), array(image.embeddings.position_embedding.weight)
    is_naflex = kernel.ndim == 2
    mixed = attention(
        pool.attention.in_proj_weight.chunk(3), pool.attention.in_proj_bias.chunk(3), pool.attention.out_proj
    )
    tree = {
        "img": {
            "embedding": {
                "kernel": kernel.T if is_naflex else kernel.transpose(2, 3, 1, 0),
                "bias": array(image.embeddings.patch_embedding.bias),
            },
            "pos_embedding": places.reshape(SIDE, SIDE, WIDTH) if is_naflex else places[None],
            "Transformer": encoder(image.encoder.layers, image.post_layernorm),
            "MAPHead_0": {
                "probe": array(pool.probe),
                "MultiHeadDotProductAttention_0": mixed,
                "LayerNorm_0": norm(pool.layernorm),
                "MlpBlock_0": mlp(pool.mlp),
            },
        },
        "txt": {
            "Embed_0": {"embedding": array(text.embeddings.token_embedding.weight)},
            "pos_embedding": array(text.embeddings.position_embedding.weight)[None],
            "Encoder_0": encoder(text.encoder.layers, text.final_layer_norm),
            "head": dense(text.head),
        },
        "t": array(model.logit_scale),
        "b": array(model.logit_bias),
    }
    return {f"params/{name}": value for name, value in key_tables.flatten(tree).items()}


@pytest.mark.parametrize("kind", ["naflex", "squares"])
def test_a_file_of_big_vision_gives_the_parameters_of_the_model_of_transformers(kind, request, tmp_path):
    module = request.getfixturevalue("naflex")[0] if kind == "naflex" else siglip(intermediate_size=56)
    np.savez(tmp_path / "siglip2.npz", **big_vision(module, scanned=kind == "naflex"))
    _, found, config = interop.load(tmp_path / "siglip2.npz")
    _, expected, known = interop.load(module.state_dict(), num_heads=3, text_heads=3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert config.model.to_dict() == known.model.to_dict() and config.method == "siglip"
    assert config.preprocess.to_dict() == {**known.preprocess.to_dict(), "filter": "bilinear"}
    assert config.preprocess.resize == ("native" if kind == "naflex" else "squash")


def test_a_native_model_is_exported_to_its_own_format_alone(naflex, tmp_path, capsys):
    given = f"--checkpoint={naflex[1]}"
    assert export.main([given, "--to=huggingface", f"--out={tmp_path / 'out'}"]) == 2
    assert "preprocess.resize 'native'" in capsys.readouterr().err
    assert export.main([given, "--to=safetensors", f"--out={tmp_path / 'own.safetensors'}"]) == 0
    assert interop.load(tmp_path / "own.safetensors")[2].preprocess.resize == "native"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The workdir of an imported SiglipModel, and the folder of the original."""
    folder = tmp_path_factory.mktemp("siglip")
    siglip().save_pretrained(folder / "theirs")
    assert import_torch.main([str(folder / "theirs"), f"--out={folder / 'ours'}"]) == 0
    return folder


def test_an_import_is_exported_loaded_by_transformers_and_equal(imported, tmp_path, capsys):
    out = tmp_path / "again"
    assert export.main([f"--checkpoint={imported / 'ours'}", "--to=huggingface", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert check_export("huggingface", imported / "ours", out) == {"image", "text"}
    assert "gives a SiglipModel" in printed and "no tokenizer is written" in printed
    again, module = transformers.AutoModel.from_pretrained(out), siglip()
    assert type(again).__name__ == "SiglipModel"
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor, err_msg=name)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert type(processor).__name__.startswith("SiglipImageProcessor")
    assert (dict(processor.size), processor.resample) == ({"height": 32, "width": 32}, 3)
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3


def test_an_import_encodes_images_and_ids_and_refuses_texts(imported):
    model = load(imported / "ours")
    pixels = np.random.default_rng(1).integers(0, 256, (2, PATCH * SIDE, PATCH * SIDE, 3), np.uint8)
    _, tokens = inputs()
    normalised = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    image, text, _ = theirs(siglip(), normalised, tokens)
    np.testing.assert_allclose(model.encode_image(list(pixels)), image, atol=1e-5)
    np.testing.assert_allclose(model.encode.text(model.params, tokens), text, atol=1e-5)
    assert model.attention(pixels[0]).shape == (SIDE, SIDE)
    (heads,) = model.attention_heads(list(pixels[:1]))
    assert heads.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(heads.sum((-2, -1)), 1, atol=1e-5)  # the pool attends to patches alone
    np.testing.assert_allclose(heads.mean((0, 1)), model.attention(pixels[0]), atol=1e-6)
    with pytest.raises(ValueError, match="vocabulary of 40 tokens"):
        model.encode_text(["a frog"])
    with pytest.raises(ValueError, match=r"vocabulary of 40 tokens.*its own tokenizer.*docs/pytorch\.md"):
        Tokenizer(CONTEXT, vocab_size=VOCABULARY)(["a frog"])


@pytest.mark.check
def test_an_import_with_its_tokenizer_encodes_texts(imported, tmp_path):
    """The record has the file, so that texts are tokenized wherever the workdir is read."""
    file = word_file(tmp_path, ["a", "frog"], padding="</s>")
    command = [str(imported / "theirs"), f"--out={tmp_path / 'ours'}", f"--tokenizer={file}"]
    assert import_torch.main(command) == 0
    model = load(tmp_path / "ours")
    assert model.config.data.tokenizer == str(file)
    found = model.encode_text(["A frog", "frog"])
    ids = np.array([[2, 3, 1, 1, 1, 1, 1], [3, 1, 1, 1, 1, 1, 1]], np.int32)  # </s> is 1, and fills the text
    np.testing.assert_allclose(found, model.encode.text(model.params, ids), atol=1e-6)
    ours, exported = tmp_path / "ours", tmp_path / "ours.safetensors"
    assert export.main([f"--checkpoint={ours}", "--to=safetensors", f"--out={exported}"]) in (0, None)

    moved = file.rename(tmp_path / "moved.json")  # what encodes images alone does without the file
    (batch,) = sticker_scenes.batches(sticker_scenes.scenes(model.config, "held_out_scenes", 1), model.config)
    assert "text" not in batch and load(ours).fingerprint == model.fingerprint
    of_images = subject.from_checkpoint(ours)
    assert of_images.tokenize(["frog"]).tolist() == ids[1:].tolist()  # by the copy in the workdir
    (ours / file.name).unlink()
    of_images = subject.from_checkpoint(ours)
    with pytest.raises(FileNotFoundError, match=r"data\.tokenizer .* is not a file"):
        of_images.tokenize(["a frog"])

    _, _, config = interop.load(exported, tokenizer=str(moved))  # another place of the same file
    assert config.data.tokenizer == str(moved) and config.data.tokenizer_digest == model.config.data.tokenizer_digest
    word_file(tmp_path, ["a", "bus"], padding="</s>")
    with pytest.raises(ValueError, match="is not the one this model was trained with"):
        interop.load(exported, tokenizer=str(file))


@pytest.mark.slow
def test_an_import_is_trained_further_with_siglip(tmp_path):
    """With CLIP's vocabulary, which our tokenizer has: the loss falls, and the image projection stays the identity."""
    module = siglip()
    module.text_model.embeddings.token_embedding = torch.nn.Embedding(49408, WIDTH)
    module.config.text_config.vocab_size = 49408
    module.save_pretrained(tmp_path / "theirs")
    assert import_torch.main([str(tmp_path / "theirs"), f"--out={tmp_path / 'ours'}"]) == 0
    c = run_config.load(str(ROOT / "configs/stickers.py:method=siglip"))
    c.init, c.batch_size, c.total_steps, c.evaluate_at_end = str(tmp_path / "ours"), 16, 4, False
    c.optimizer.warmup_epochs, c.steps_per_epoch = 0.0, 4
    assert training.train(pretraining.prepare(c, tmp_path / "run")) == 0
    before, after = (load(tmp_path / name).params for name in ("ours", "run"))
    np.testing.assert_array_equal(after["image_projection"]["proj"]["kernel"], np.eye(WIDTH))
    assert not np.array_equal(after["image"]["pool"]["probe"], before["image"]["pool"]["probe"])
    export.main([f"--checkpoint={tmp_path / 'run'}", "--to=huggingface", f"--out={tmp_path / 'out'}"])
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "SiglipModel"


def test_fgclip2_starts_from_an_import_with_an_attention_pool(tmp_path):
    """As the config says: its maps of regions are those of the pool, in the value read-out."""
    module = siglip(image_size=64, patch_size=16)
    module.text_model.embeddings.token_embedding = torch.nn.Embedding(49408, WIDTH)
    module.text_model.embeddings.position_embedding = torch.nn.Embedding(64, WIDTH)
    module.config.text_config.vocab_size, module.config.text_config.max_position_embeddings = 49408, 64
    module.save_pretrained(tmp_path / "theirs")
    assert import_torch.main([str(tmp_path / "theirs"), f"--out={tmp_path / 'ours'}"]) == 0
    c = run_config.load(str(ROOT / "configs/beyond/fgclip2.py"))
    c.init, c.batch_size, c.total_steps, c.data.tokenizer = str(tmp_path / "ours"), 4, 4, "clip"
    adopted = adopted_config.adopt(c, ())
    assert adopted.model.image_style.pooling == "attention" and adopted.losses.weights.region_text
    assert "pool" in experiment.weight_shapes(adopted).params["image"]


# the read-outs of patches


def test_each_patch_pools_the_image_as_in_fgclip2():
    """Its map: PyTorch's attention of the pool with all patches as queries, then the MLP and its residual."""
    module = siglip()
    networks, variables, _ = interop.load(module.state_dict(), num_heads=3, text_heads=3)
    images, _ = inputs()
    values = networks.apply(variables, jnp.asarray(images), method=lambda net, x: net.image(x, values=True).values)
    head = module.vision_model.head
    with torch.inference_mode():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        x = module.vision_model(pixels).last_hidden_state
        pooled = head.attention(x, x, x)[0]
        expected = (pooled + head.mlp(head.layernorm(pooled))).numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_patches_are_compared_with_texts_after_the_pool():
    """An image of one patch is embedded as its patch is; of several, each as if it was alone."""
    one_patch = siglip(image_size=PATCH).state_dict()
    networks, variables, config = interop.load(one_patch, num_heads=3, text_heads=3)
    params, images = variables["params"], np.random.default_rng(0).integers(0, 256, (2, PATCH, PATCH, 3), np.uint8)
    (found,) = np.moveaxis(readout_encoder(networks, config, "plain")(params, images), 0, 2)
    pixels = normalise_pixels(jnp.asarray(images), tuple(config.preprocess.mean), tuple(config.preprocess.std))
    expected = l2_normalise(networks.apply(variables, pixels, method="embed_image"))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


# the layers


def test_attention_pool_is_pytorchs_attention_and_a_residual_mlp():
    pool = AttentionPool(12, 3, VIT_INIT, 1e-6, "gelu_tanh", mlp_width=20)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 12)).astype(np.float32)
    params = noise(jax.eval_shape(pool.init, jax.random.key(0), x)["params"], scale=1)
    feature, row = jax.jit(pool.apply, static_argnums=2)({"params": params}, x, True)
    p = jax.tree.map(np.asarray, params)
    expected, shares = np.zeros((2, 12)), np.zeros((2, 5))
    qkv = [p["attn"]["qkv"]["kernel"][:, 12 * i : 12 * i + 12] for i in range(3)]
    bias = [p["attn"]["qkv"]["bias"][12 * i : 12 * i + 12] for i in range(3)]
    for b in range(2):
        query, key, value = p["probe"] @ qkv[0] + bias[0], x[b] @ qkv[1] + bias[1], x[b] @ qkv[2] + bias[2]
        mixed = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            weights = np.exp(key[:, part] @ query[part] / 2)
            weights /= weights.sum()
            shares[b] += weights / 3
            mixed.append(weights @ value[:, part])
        y = np.concatenate(mixed) @ p["attn"]["proj"]["kernel"] + p["attn"]["proj"]["bias"]
        normed = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
        h = normed @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        expected[b] = y + h @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]
    np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(row, shares, atol=1e-5)


def test_tanh_gelu_and_its_slope_are_jaxs():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    own, jaxs = ACTIVATIONS["gelu_tanh"], lambda v: jax.nn.gelu(v, approximate=True)
    found, expected = (jax.jit(jax.vmap(jax.value_and_grad(function)))(x) for function in (own, jaxs))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.check
@pytest.mark.parametrize("style", [SIGLIP.text_style._replace(pooling="eot"), TextStyle(pooling="last")])
def test_padding_has_an_effect_unless_the_encoder_is_causal_and_reads_the_end_token(style):
    assert not style.trims and TextStyle().trims
    encoder = TextTransformer(12, 2, 3, 6, 20, style=style)
    tokens = np.array([[18, 3, 19, 0, 0, 0], [18, 3, 19, 0, 7, 0]])
    params, encode = noise(jax.eval_shape(encoder.init, jax.random.key(0), tokens), scale=0.3), jax.jit(encoder.apply)
    plain, changed = encode(params, tokens)
    assert np.abs(changed - plain).max() > 1e-3
    assert np.abs(encode(params, tokens[:1, :4])[0] - plain).max() > 1e-3


def test_texts_are_projected_to_the_width_of_an_image_whose_feature_is_its_embedding():
    c = default()
    c.method, c.model.image_is_embedding, c.model.size = "siglip", True, "B/16"
    params = experiment.weight_shapes(c).params
    assert params["image_projection"]["proj"]["kernel"].shape == (768, 768)
    assert params["text_projection"]["proj"]["kernel"].shape == (512, 768)


def test_a_text_head_of_another_width_is_refused():
    tensors = siglip().state_dict()
    tensors["text_model.head.weight"] = tensors["text_model.head.weight"][:-4]
    with pytest.raises(ValueError, match=r"text_model\.head\.weight .* width 20; expected 24"):
        interop.load(tensors, num_heads=3, text_heads=3)


@pytest.mark.check
def test_an_import_is_evaluated_on_images_and_says_why_not_on_texts(imported, tmp_path, capsys):
    command = [f"--checkpoint={imported / 'ours'}", f"--out={tmp_path}", "--num-examples=24", "--num-train-examples=48"]
    assert evaluate.main([*command, "--tasks=knn:stickers"]) == 0
    assert "knn" in (tmp_path / "results.jsonl").read_text()
    assert evaluate.main([*command, "--tasks=zero_shot:stickers"]) == 1
    printed = capsys.readouterr()
    assert "vocabulary of 40 tokens" in printed.out + printed.err


def test_an_import_embeds_images(imported, tmp_path):
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    command = [f"--checkpoint={imported / 'ours'}", f"--images={tmp_path}", f"--out={tmp_path / 'images.npz'}"]
    assert embed.main(command) == 0
    with np.load(tmp_path / "images.npz") as file:
        assert any(value.shape == (1, WIDTH) for value in file.values())
