"""Low-rank adapters: the layer, its gradients and the merged kernel, against NumPy and against PEFT on timm's ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import TWO_BLOCKS, check_names, tiny_config

from detailclip_jax import interop
from detailclip_jax.models import lora, stacking
from detailclip_jax.models.initial_values import ZEROS
from detailclip_jax.models.layers import Linear
from detailclip_jax.training import experiment, mesh

BOTH = "attention,mlp"


def flat(params):
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def noise(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def test_a_layer_computes_the_kernel_and_the_scaled_product_with_their_gradients():
    x, dy, bias, scale = noise(5, 6), noise(5, 7), noise(7), np.float32(3 / 2)
    kernel, a, b = noise(6, 7), noise(6, 2), noise(2, 7)
    params = {"kernel": kernel, "bias": bias, "lora_a": a, "lora_b": b, "lora_scale": scale}
    layer = Linear(7, ZEROS)
    y, pullback = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
    np.testing.assert_allclose(y, x @ kernel + bias + scale * (x @ a) @ b, rtol=1e-5, atol=1e-5)
    of_params, of_x = pullback(jnp.asarray(dy))
    np.testing.assert_allclose(of_params["lora_a"], scale * x.T @ (dy @ b.T), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_params["lora_b"], scale * (x @ a).T @ dy, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, dy @ (kernel + scale * a @ b).T, rtol=1e-5, atol=1e-5)
    merged = lora.merge({"proj": jax.tree.map(jnp.asarray, params)})
    assert {*merged["proj"]} == {"kernel", "bias"}
    np.testing.assert_allclose(layer.apply({"params": merged["proj"]}, jnp.asarray(x)), y, rtol=1e-5, atol=1e-5)


def initial(adapters, targets="attention", scan=False):
    config = tiny_config("clip")
    config.model.custom = {**TWO_BLOCKS, "text_depth": 2}
    config.model.scan = scan
    config.optimizer.lora, config.optimizer.lora_targets = adapters, targets
    return experiment.build(config, mesh.make_mesh(jax.devices()[:1])).initial.draw(0).params


def test_at_the_start_the_model_is_the_base():
    plain, adapted = initial(""), initial("image:4,text:2:6", BOTH)
    jax.tree.map(np.testing.assert_array_equal, lora.base(adapted), plain)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(lora.merge(jax.device_put(adapted))), plain)
    jax.tree.map(np.testing.assert_array_equal, lora.with_adapters(plain, adapted), adapted)
    new = {path: leaf for path, leaf in flat(adapted).items() if path not in flat(plain)}
    assert len(new) == 3 * 4 * (2 + 2)
    for path, leaf in new.items():
        kernel = flat(plain)[f"{path.rpartition('/')[0]}/kernel"]
        rank, scale = (4, 1) if path.startswith("image") else (2, 3)
        if path.endswith("lora_a"):
            bound = kernel.shape[0] ** -0.5  # PEFT's: Kaiming-uniform with a = sqrt(5)
            assert leaf.shape == (len(kernel), rank) and 0.5 * bound < abs(leaf).max() < bound
        elif path.endswith("lora_b"):
            assert leaf.shape == (rank, kernel.shape[1]) and not leaf.any()
        else:
            assert leaf == scale


def test_stacked_blocks_have_the_adapters_of_separate_ones():
    separate, stacked = (initial("image:4,text:2:6", scan=scan) for scan in (False, True))
    assert stacked["image"]["blocks"]["attn"]["qkv"]["lora_b"].shape[:2] == (2, 4)
    jax.tree.map(np.testing.assert_array_equal, stacking.unstack(stacked), separate)
    noisy = jax.tree.map(lambda x: jnp.asarray(noise(*x.shape)), stacked)
    merged = stacking.unstack(lora.merge(noisy)), lora.merge(stacking.unstack(noisy))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), *merged)


@pytest.mark.parametrize("text", ["image", "image:0", "image:-4", "image:4:x", "image:4,image:8", ":4", "image:4:2:1"])
def test_what_is_no_network_with_a_rank_is_refused(text):
    with pytest.raises(ValueError) as refused:
        lora.parse(text)
    check_names(refused.value, "optimizer.lora", text, "NETWORK:RANK", "image:8,text:8")


@pytest.mark.parametrize("name", ["text_projection", "imag"])
def test_a_network_without_blocks_is_refused(name):
    with pytest.raises(ValueError) as refused:
        initial(f"{name}:4")
    check_names(refused.value, "optimizer.lora", repr(name), "no blocks")


@pytest.mark.filterwarnings("ignore")  # PEFT's and accelerate's, at their import
@pytest.mark.check
def test_peft_computes_the_same_on_random_weights():
    """Features, gradients of A and B, and the merged kernels; timm's blocks have one qkv layer, as here."""
    peft, torch, timm = map(pytest.importorskip, ("peft", "torch", "timm"))
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    networks, variables, _ = interop.load(theirs.state_dict(), "timm", num_heads=1)
    layers = r".*\.(attn\.(qkv|proj)|mlp\.fc[12])"
    tuned = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, target_modules=layers))
    params = lora.init(variables["params"], lora.parse("image:4:6"), BOTH, jax.random.key(0))
    ours = abs(flat(params)["image/blocks_0/mlp/fc2/lora_a"]).max()
    drawn = dict(tuned.named_parameters())["base_model.model.blocks.0.mlp.fc2.lora_A.default.weight"]
    assert ours == pytest.approx(drawn.detach().abs().max().item(), rel=0.02)  # both are near 1/16

    adapters = {}  # our path -> their parameter
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
            _, block, layer = name.removeprefix("base_model.model.").split(".lora_")[0].split(".", 2)
            kind = "a" if "lora_A" in name else "b"
            adapters[f"image/blocks_{block}/{layer.replace('.', '/')}/lora_{kind}"] = parameter
    values = {path: jnp.asarray(parameter.detach().numpy().T) for path, parameter in adapters.items()}
    params = traverse_util.unflatten_dict(jax.device_put(flat(params) | values), sep="/")
    images = jnp.asarray(noise(2, 16, 16, 3))
    expected = tuned(torch.tensor(np.array(images)).permute(0, 3, 1, 2))
    expected.square().mean().backward()

    def loss(params):
        cls = networks.bind({"params": params}).image(images).cls
        return jnp.square(cls).mean(), cls

    (_, cls), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(cls, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for path, parameter in adapters.items():
        np.testing.assert_allclose(flat(gradient)[path], parameter.grad.numpy().T, rtol=1e-3, atol=1e-5, err_msg=path)
    _, variables, _ = interop.load(tuned.merge_and_unload().state_dict(), "timm", num_heads=1)
    merged = flat(lora.merge(params))
    for path, leaf in flat(variables["params"]).items():
        np.testing.assert_allclose(merged[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
