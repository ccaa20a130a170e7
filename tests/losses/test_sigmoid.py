"""SigLIP's loss against the printed sum and torch, in blocks and over devices."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_export import save_noise

from detailclip_jax import export, interop
from detailclip_jax.interop import tensor_files
from detailclip_jax.losses.sigmoid import sigmoid_loss
from detailclip_jax.training import mesh

compiled_loss = jax.jit(sigmoid_loss, static_argnames="block")


def arrays(num_views=2, size=10, width=6, num_captions=1):
    rng = np.random.default_rng(size)
    shapes = (num_views, size, width), (num_captions, size, width)
    return tuple(jax.device_put(np.float32(rng.normal(size=shape))) for shape in shapes)


def oracle(images, texts, scale, bias):
    """The printed sum, in a loop over pairs and float64: mean over views, captions and images, sum over texts."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    images, texts = (unit(np.asarray(x, np.float64)) for x in (images, texts))
    total = 0.0
    for view, captions in itertools.product(images, texts):
        for i, u in enumerate(view):
            for j, t in enumerate(captions):
                z = scale * u @ t + bias
                total -= np.log(1 / (1 + np.exp(-(z if i == j else -z))))
    return total / (len(images) * len(texts) * images.shape[1])


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (30.0, 2.5)])
@pytest.mark.parametrize(("block", "captions"), [(0, 1), (1, 1), (3, 1), (10, 1), (0, 3), (4, 3)])
def test_the_loss_is_the_printed_sum_in_any_block(scale, bias, block, captions):
    images, texts = arrays(num_captions=captions)
    loss, _ = compiled_loss(images, texts, scale, bias, block=block)
    np.testing.assert_allclose(loss, oracle(images, texts, scale, bias), rtol=2e-5)


@pytest.mark.parametrize("block", [0, 3])
def test_value_and_gradients_are_those_of_torch(block):
    torch = pytest.importorskip("torch")
    images, texts = arrays()
    given = [torch.tensor(np.array(x), dtype=torch.float64, requires_grad=True) for x in (images, texts, 12.0, -4.0)]
    u, t = (torch.nn.functional.normalize(x, dim=-1) for x in given[:2])
    z = given[2] * u @ t[0].T + given[3]
    theirs = -torch.nn.functional.logsigmoid((2 * torch.eye(texts.shape[1]) - 1) * z).sum(-1).mean()
    theirs.backward()
    ours = jax.jit(jax.value_and_grad(lambda *x: sigmoid_loss(*x, block=block)[0], argnums=(0, 1, 2, 3)))
    value, gradients = ours(images, texts, jnp.float32(12.0), jnp.float32(-4.0))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    for a, b in zip(gradients, given, strict=True):
        np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_eight_devices_give_the_loss_and_the_gradients_of_one():
    images, texts = arrays(size=16)
    grid = mesh.make_mesh(jax.devices()[:8])

    def over(images, texts, scale, bias):
        local = lambda *x: jax.lax.pmean(sigmoid_loss(*x, axis=mesh.BATCH, block=3)[0], mesh.BATCH)
        specs = P(None, mesh.BATCH), P(None, mesh.BATCH), P(), P()
        return jax.shard_map(local, mesh=grid, in_specs=specs, out_specs=P(), check_vma=False)(
            images, texts, scale, bias
        )

    one, given = lambda *x: sigmoid_loss(*x)[0], (images, texts, jnp.float32(10), jnp.float32(-10))
    a, b = (jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2, 3)))(*given) for function in (one, over))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [0, 1, 4])
def test_the_accuracy_counts_images_whose_own_text_is_nearest(block):
    texts = np.eye(7, dtype=np.float32)[None]
    images = np.concatenate([texts, texts[:, [0, 1, 2, 3, 5, 4, 6]]])
    _, accuracy = compiled_loss(images, texts, 10.0, -10.0, block=block)
    np.testing.assert_allclose(accuracy, 12 / 14, rtol=1e-6)


@pytest.mark.parametrize("captions", [1, 2])
def test_no_array_of_all_pairs_is_made_at_32768(captions):
    """The largest array of value and gradient, in the traced program: embeddings, or a block of logits."""
    size = 32768
    shapes = [jax.ShapeDtypeStruct((number, size, 64), jnp.float32) for number in (1, captions)]
    loss = jax.value_and_grad(lambda *x: sigmoid_loss(*x, 10.0, -10.0)[0], argnums=(0, 1))
    arrays = re.findall(r"\w+\[([\d,]+)\]", str(jax.make_jaxpr(loss)(*shapes)))
    assert max(math.prod(map(int, dims.split(","))) for dims in arrays) <= captions * size * 64 < size**2 / 100


def test_large_logits_stay_finite():
    images, texts = arrays()
    value, gradient = jax.jit(jax.value_and_grad(lambda x: sigmoid_loss(x, texts, 1e4, -10.0)[0]))(images)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.check
def test_our_own_format_keeps_the_bias_and_other_libraries_formats_leave_it_out(tmp_path):
    """It shifts all logits alike, so that no ranking and no softmax over classes needs it."""
    workdir = save_noise(tmp_path / "run", "siglip")
    for to, name in (("safetensors", "own.safetensors"), ("slip", "slip.pt")):
        assert export.main([f"--checkpoint={workdir}", f"--to={to}", f"--out={tmp_path / name}"]) == 0
    _, variables, config = interop.load(tmp_path / "own.safetensors")
    assert config.method == "siglip" and {"logit_scale", "logit_bias"} <= set(variables["params"])
    tensors = tensor_files.read(tmp_path / "slip.pt")
    assert any("logit_scale" in name for name in tensors) and not any("logit_bias" in name for name in tensors)
