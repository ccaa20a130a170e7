"""TIPS's published weights, read and compared with its encoders written in PyTorch from their description."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax import import_torch, interop, load, methods
from detailclip_jax.interop import tensor_files, tips_names
from detailclip_jax.models.positions import interpolate

torch = pytest.importorskip("torch")
nn = torch.nn

WIDTH, HEADS, DEPTH, PATCH, SIDE, VOCABULARY, LENGTH = 48, 4, 2, 14, 3, 40, 64


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))


class Mlp(nn.Module):
    def __init__(self, first, second, activation):
        super().__init__()
        self.names, self.activation = (first, second), activation
        setattr(self, first, nn.Linear(WIDTH, 4 * WIDTH))
        setattr(self, second, nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(self.activation(first(x)))


class Block(nn.Module):
    """A block with a trained factor for each channel of both branches."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(), Mlp("fc1", "fc2", nn.functional.gelu)
        self.ls1, self.ls2 = Scale(), Scale()

    def forward(self, x):
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp(self.norm2(x))


class Vision(nn.Module):
    """Two class tokens; the second has no position and follows the first."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.register_tokens = (nn.Parameter(torch.zeros(1, 1, WIDTH)) for _ in range(2))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + SIDE**2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images):
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(images), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = (nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlp = Mlp("c_fc", "c_proj", torch.relu)

    def forward(self, x, padding):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Text(nn.Module):
    """Words times sqrt(D) plus fixed waves; the mean of the words that are not padding."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock() for _ in range(DEPTH))})
        self.ln_final = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        padding, half = ids == 0, WIDTH // 2
        waves = torch.arange(ids.shape[1])[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
        x = self.token_embedding(ids) * WIDTH**0.5 + torch.cat([waves.sin(), waves.cos()], -1)
        for block in self.transformer["resblocks"]:
            x = block(x, padding)
        words = self.ln_final(x) * ~padding[..., None]
        return words.sum(1) / (~padding).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    models = {"vision": Vision(), "text": Text()}
    with torch.no_grad():
        for model in models.values():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return {name: model.eval() for name, model in models.items()}


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """Both files as they are published."""
    path = tmp_path_factory.mktemp("tips")
    arrays = {name: {k: v.numpy() for k, v in model.state_dict().items()} for name, model in published.items()}
    np.savez(path / "tips_oss_b14_vision.npz", **arrays["vision"])
    np.savez(path / "tips_oss_b14_text.npz", **arrays["text"], temperature=np.float32(0.02))
    torch.save(published["vision"].state_dict(), path / "vision.pt")
    return path


def pixels():
    return np.random.default_rng(0).random((2, SIDE * PATCH, SIDE * PATCH, 3), np.float32)


def words():
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (2, LENGTH)).astype(np.int32)
    ids[0, 5:], ids[1, 40:] = 0, 0
    return ids


def tokens_of(vision, images):
    with torch.inference_mode():
        return vision(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("file", ["tips_oss_b14_vision.npz", "vision.pt"])
def test_image_features_are_those_of_the_published_encoder(published, folder, tmp_path, file):
    given = ["--from=tips", str(folder / file), f"--out={tmp_path / 'ours'}", f"--num-heads={HEADS}"]
    assert import_torch.main(given) == 0
    model = load(tmp_path / "ours")
    assert (model.config.method, model.config.model.class_tokens) == ("image_encoder", 2)
    assert model.config.model.image_size == SIDE * PATCH and model.config.preprocess.resize == "squash"
    assert tuple(model.config.preprocess.mean) == (0.0, 0.0, 0.0) and tuple(model.config.preprocess.std) == (1.0,) * 3
    expected, net = tokens_of(published["vision"], pixels()), model.networks.bind({"params": model.params})
    with jax.default_matmul_precision("float32"):
        found = jax.jit(lambda images: net.image(images))(jnp.asarray(pixels()))
    close(found.cls, expected[:, 0])
    close(found.extra[:, 0], expected[:, 1])
    close(found.patches, expected[:, 2:])


@pytest.mark.check
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_of_both_files_is_read_as_one_model(published, folder, scan):
    model, variables, config = interop.load(folder, num_heads=HEADS, text_heads=HEADS)
    assert (config.method, config.model.text_activation, config.model.context_length) == ("clip", "relu", LENGTH)
    with torch.inference_mode():
        text = published["text"](torch.from_numpy(words()).long()).numpy()
    params = variables["params"]
    if scan:
        config.model.scan = True
        from detailclip_jax.models import stacking
        from detailclip_jax.training import experiment

        model = methods.build_networks(config)
        params = stacking.like(params, experiment.weight_shapes(config).params)
    net = model.bind({"params": params})
    with jax.default_matmul_precision("float32"):
        close(jax.jit(net.embed_text)(jnp.asarray(words())), text)
        close(jax.jit(net.embed_image)(jnp.asarray(pixels())), tokens_of(published["vision"], pixels())[:, 0])
    np.testing.assert_allclose(params["logit_scale"]["value"], np.log(1 / 0.02), rtol=1e-6)


@pytest.mark.check
def test_padding_has_no_effect_and_a_text_without_words_is_zero(folder):
    model, variables, _ = interop.load(folder, num_heads=HEADS, text_heads=HEADS)
    embed_text = jax.jit(model.bind({"params": variables["params"]}).embed_text)
    short = words()[:1, :5]
    close(embed_text(jnp.asarray(short)), np.asarray(embed_text(jnp.asarray(words()[:1]))))
    assert not np.asarray(embed_text(jnp.zeros((1, 5), jnp.int32))).any()


def test_text_weights_without_a_temperature_start_at_the_usual_scale(published, caplog):
    parts = {name: model.state_dict() for name, model in published.items()}
    _, variables, _ = interop.load(parts, num_heads=HEADS, text_heads=HEADS)
    np.testing.assert_allclose(variables["params"]["logit_scale"]["value"], np.log(1 / 0.07), rtol=1e-6)
    assert "no temperature" in caplog.text
    parts["text"]["temperature"] = torch.tensor(-1.0)
    with pytest.raises(ValueError, match=r"text\.temperature -1\.0 is not a positive number"):
        interop.load(parts, num_heads=HEADS, text_heads=HEADS)


def test_positions_of_another_size_are_interpolated_as_published():
    positions = np.random.default_rng(0).random((1 + 16, 3)).astype(np.float32)
    grid = torch.from_numpy(positions[1:].reshape(1, 4, 4, 3).transpose(0, 3, 1, 2).copy())
    for side in (7, 3):
        moved = nn.functional.interpolate(grid, size=(side, side), mode="bilinear", antialias=True)
        found = interpolate(jnp.asarray(positions), side, "tips")
        np.testing.assert_allclose(found[1:], moved.numpy()[0].transpose(1, 2, 0).reshape(-1, 3), atol=1e-6)


@pytest.mark.parametrize(("registers", "mean"), [(1, 0.0), (4, 0.485)])
def test_dinov2_with_registers_is_not_taken_for_tips(published, registers, mean):
    """Its tensors have the same names, but four registers, and its pixels are normalised."""
    tensors = published["vision"].state_dict() | {"register_tokens": torch.ones(1, registers, WIDTH)}
    config = interop.load(tensors, num_heads=HEADS)[2]
    assert (config.model.class_tokens, config.preprocess.mean[0]) == (1 + registers, mean)


def refused(tensors, match):
    with pytest.raises(ValueError, match=match):
        interop.load(tensors, "tips", num_heads=HEADS)


def test_what_cannot_be_read_is_named(published, folder, tmp_path):
    vision = dict(published["vision"].state_dict())
    refused(
        vision | {"blocks.1.ls2.gamma": torch.ones(5)}, r"blocks\.1\.mlp\.fc2\.weight has shape .*layer scale \(5,\)"
    )
    refused(vision | {"register_tokens": torch.ones(1, 4, WIDTH)}, r"register_tokens: expected \(1, 1, 48\)")
    refused(vision | {"blocks.7.ls1.gamma": torch.ones(WIDTH)}, r"unknown.*blocks\.7\.ls1\.gamma")
    text = {key: value[:, :32] if value.ndim > 1 else value for key, value in published["text"].state_dict().items()}
    with pytest.raises(ValueError, match=r"text\.positional_embedding is for embeddings of width 32; expected 48"):
        interop.load({"vision": vision, "text": text}, num_heads=HEADS, text_heads=HEADS)
    for number in range(2):
        (tmp_path / f"{number}_vision.npz").write_bytes((folder / "tips_oss_b14_vision.npz").read_bytes())
    with pytest.raises(ValueError, match="has 2 of NAME_vision and 0 of NAME_text"):
        tips_names.pair_in(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # the weights of another library's folder come first
    assert tips_names.pair_in(tmp_path) is None
    _, variables, config = interop.load(vision, "tips", num_heads=HEADS)
    with pytest.raises(ValueError, match="layout 'tips' is only read; --to=safetensors"):
        interop.to_state_dict(variables, config, "tips")


@pytest.mark.parametrize("lacking", [["blocks.1.ls2.gamma"], ["blocks.0.ls1.gamma", "blocks.0.ls2.gamma"]])
def test_a_missing_layer_scale_is_no_layer_scale_of_one(published, lacking):
    vision = {key: value for key, value in published["vision"].state_dict().items() if key not in lacking}
    more = " and 1 more" * (len(lacking) == 2)
    match = f"the weights lack {re.escape(lacking[0])}{more}: every block of TIPS has two layer scales; download"
    refused(vision, match)
    refused({"vision": vision, "text": published["text"].state_dict()}, match.replace("blocks", "vision.blocks"))


def test_arrays_of_objects_are_not_opened_and_compressed_ones_are(tmp_path):
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects\.npz is damaged: .?Object arrays cannot be loaded"):
        interop.load(tmp_path / "objects.npz")
    np.savez_compressed(tmp_path / "small.npz", weight=np.arange(3))
    np.testing.assert_array_equal(tensor_files.read(tmp_path / "small.npz")["weight"], [0, 1, 2])
