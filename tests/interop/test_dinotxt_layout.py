"""dino.txt's published layout: read on noise, and compared with its equations in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dino_layouts import DEPTH, HEADS, SIDE, WIDTH, dinov3, original_v3, pixels, tokens_of
from tiny import check_names

from detailclip_jax import import_torch, interop, load
from detailclip_jax.interop import published
from detailclip_jax.models.image_blocks import hidden_width

torch = pytest.importorskip("torch")
F = torch.nn.functional

TEXT_WIDTH, TEXT_HEADS, TEXT_DEPTH, LENGTH, VOCABULARY = 32, 2, 2, 12, 64
IN_HEAD = ("norm1", "attn.qkv", "attn.proj", "ls1.gamma", "norm2", "ls2.gamma")  # of a block
IN_TEXT = ("attention_norm", "attention.qkv", "attention.proj", None, "ffn_norm", None)
FILE = "dinov3_vitl16_dinotxt_vision_head_and_text_encoder.pth"


def layers(generator, key, *shape, bias=True):
    tensors = {f"{key}.weight": torch.randn(shape, generator=generator) * 0.3}
    return tensors | ({f"{key}.bias": torch.randn(shape[:1], generator=generator) * 0.3} if bias else {})


def head_and_texts():
    """The tensors of the published file."""
    g, found = torch.Generator().manual_seed(0), {}
    for number in range(2):
        key, hidden = f"visual_model.head.blocks.{number}", hidden_width(WIDTH)
        for name, shape in {"w1": (hidden, WIDTH), "w2": (hidden, WIDTH), "w3": (WIDTH, hidden)}.items():
            found |= layers(g, f"{key}.mlp.{name}", *shape)
        found |= layers(g, f"{key}.norm1", WIDTH) | layers(g, f"{key}.norm2", WIDTH)
        found |= layers(g, f"{key}.attn.qkv", 3 * WIDTH, WIDTH, bias=False) | layers(
            g, f"{key}.attn.proj", WIDTH, WIDTH
        )
        found |= {f"{key}.ls{n}.gamma": torch.randn(WIDTH, generator=g) for n in (1, 2)}
    for number in range(TEXT_DEPTH):
        key, wide = f"text_model.backbone.blocks.{number}", 4 * TEXT_WIDTH
        found |= layers(g, f"{key}.attention_norm", TEXT_WIDTH) | layers(g, f"{key}.ffn_norm", TEXT_WIDTH)
        found |= layers(g, f"{key}.attention.qkv", 3 * TEXT_WIDTH, TEXT_WIDTH, bias=False)
        found |= layers(g, f"{key}.attention.proj", TEXT_WIDTH, TEXT_WIDTH)
        found |= layers(g, f"{key}.feed_forward.fc1", wide, TEXT_WIDTH)
        found |= layers(g, f"{key}.feed_forward.fc2", TEXT_WIDTH, wide)
    found |= layers(g, "visual_model.head.ln_final", WIDTH) | layers(g, "text_model.backbone.ln_final", TEXT_WIDTH)
    found |= layers(g, "text_model.backbone.token_embedding", VOCABULARY, TEXT_WIDTH, bias=False)
    found |= layers(g, "text_model.head.linear_projection", 2 * WIDTH, TEXT_WIDTH, bias=False)
    positions = torch.randn(LENGTH, TEXT_WIDTH, generator=g)
    return found | {"text_model.backbone.positional_embedding": positions, "logit_scale": torch.tensor([3.0])}


def normed(state, key, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"], 1e-5)


def layer(state, key, x):
    return F.linear(x, state[f"{key}.weight"], state.get(f"{key}.bias"))


def attended(state, key, names, x, heads, causal):
    """The first branch of a block; its layer scale is 1 where it has none."""
    norm, qkv, proj, scale, *_ = names
    parts = layer(state, f"{key}.{qkv}", normed(state, f"{key}.{norm}", x)).unflatten(-1, (3, heads, -1))
    values = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), is_causal=causal).transpose(1, 2).flatten(2)
    return x + state.get(f"{key}.{scale}", 1.0) * layer(state, f"{key}.{proj}", values)


def image_embedding(state, x):
    for number in range(2):
        key = f"visual_model.head.blocks.{number}"
        x = attended(state, key, IN_HEAD, x, HEADS, causal=False)
        y = normed(state, f"{key}.norm2", x)
        y = F.silu(layer(state, f"{key}.mlp.w1", y)) * layer(state, f"{key}.mlp.w2", y)
        x = x + state[f"{key}.ls2.gamma"] * layer(state, f"{key}.mlp.w3", y)
    x = normed(state, "visual_model.head.ln_final", x)
    return torch.cat([x[:, 0], x[:, 5:].mean(1)], -1)


def text_embedding(state, tokens):
    x = state["text_model.backbone.token_embedding.weight"][tokens] + state["text_model.backbone.positional_embedding"]
    for number in range(TEXT_DEPTH):
        key = f"text_model.backbone.blocks.{number}"
        x = attended(state, key, IN_TEXT, x, TEXT_HEADS, causal=True)
        y = F.gelu(layer(state, f"{key}.feed_forward.fc1", normed(state, f"{key}.ffn_norm", x)))
        x = x + layer(state, f"{key}.feed_forward.fc2", y)
    x = normed(state, "text_model.backbone.ln_final", x)
    return layer(state, "text_model.head.linear_projection", x[torch.arange(len(x)), tokens.argmax(-1)])


def test_both_files_of_a_folder_are_the_model_of_the_equations(tmp_path):
    theirs, state, folder = dinov3(hidden=4 * WIDTH), head_and_texts(), tmp_path / "dinotxt"
    folder.mkdir()
    torch.save(original_v3(theirs, False), folder / "dinov3_vitl16_pretrain_lvd1689m.pth")
    torch.save(state, folder / FILE)
    command = [str(folder), f"--out={tmp_path / 'ours'}", f"--num-heads={HEADS}", f"--text-heads={TEXT_HEADS}"]
    assert import_torch.main(command) == 0
    model = load(tmp_path / "ours")
    config, size = model.config, model.config.model.custom
    assert (config.method, config.model.class_tokens, config.model.text_activation) == ("dinotxt", 5, "gelu")
    assert (size.depth, size.text_depth, size.text_width) == (DEPTH, TEXT_DEPTH, TEXT_WIDTH)
    assert (config.preprocess.resize, config.preprocess.crop_ratio) == ("shorter_side", 224 / 256)
    assert all(not np.any(model.params["text"][f"blocks_{n}"]["attn"]["qkv"]["bias"]) for n in range(TEXT_DEPTH))
    assert float(model.params["logit_scale"]["value"]) == 3.0
    images, rng = pixels(SIDE, patch=16), np.random.default_rng(1)
    tokens = rng.integers(1, VOCABULARY - 1, (2, LENGTH))
    tokens[0, 5], tokens[1, LENGTH - 1] = VOCABULARY - 1, VOCABULARY - 1  # end tokens
    net = model.networks.bind({"params": model.params})
    with torch.inference_mode():
        expected = (
            image_embedding(state, torch.from_numpy(tokens_of(theirs, images))),
            text_embedding(state, torch.from_numpy(tokens)),
        )
    with jax.default_matmul_precision("float32"):
        found = jax.jit(net.embed_image)(jnp.asarray(images)), jax.jit(net.embed_text)(jnp.asarray(tokens))
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5 * np.abs(reference.numpy()).max())


def test_the_folder_names_the_model_as_a_repository_does(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, encoder = tmp_path / "dinotxt", "dinov3_vitl16_pretrain_lvd1689m.pth"
    folder.mkdir()
    torch.save(original_v3(dinov3(hidden=4 * WIDTH), False), folder / encoder)
    torch.save(head_and_texts(), folder / FILE)
    assert load(published.fetch(folder)).config.method == "dinotxt"
    files = dict.fromkeys((encoder, FILE), 1)
    assert published.files_of(published.Repository("a/b", "1", "mit", files, {})) == sorted(files)
    with pytest.raises(FileNotFoundError, match="several models"):
        published.files_of(published.Repository("a/b", "1", "mit", files | {"dinov3_vits16.pth": 1}, {}))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError) as refused:
        interop.load(head_and_texts())
    check_names(refused.value, "without an image encoder", "folder", "dinov3_vitl16_pretrain")
    torch.save(head_and_texts(), tmp_path / FILE)
    with pytest.raises(ValueError) as refused:
        interop.load(tmp_path)
    check_names(refused.value, str(tmp_path), FILE, "image encoder")
