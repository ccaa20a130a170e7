"""Each loss against a loop written from its equation, then its properties and edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detailclip_jax.losses import clip, labels, reconstruction
from detailclip_jax.training import mesh

RNG = np.random.default_rng(0)

clip_loss = jax.jit(clip.clip_loss, static_argnames=("block", "pairs"))
accuracy_of = jax.jit(labels.accuracy)


def normal(*shape):
    return jax.device_put(np.float32(RNG.standard_normal(shape)))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def clip_oracle(image, text, scale, pairs="all"):
    """Eq. 1-5: both directions, by loops over the pairs of views and captions that `pairs` names."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    views, texts = (unit(np.asarray(x, np.float64)) for x in (image, text))
    losses = []
    for view, caption in zip(views, texts) if pairs == "same" else itertools.product(views, texts):
        logits = scale * view @ caption.T
        rows = [-log_softmax(logits[i])[i] for i in range(len(view))]
        columns = [-log_softmax(logits[:, i])[i] for i in range(len(view))]
        losses.append((np.mean(rows) + np.mean(columns)) / 2)
    return np.mean(losses)


PAIRS = [(2, 1, "all"), (2, 3, "all"), (1, 4, "all"), (3, 3, "all"), (3, 3, "same"), (1, 1, "same")]


@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.parametrize(("views", "captions", "pairs"), PAIRS)
def test_clip_loss_is_the_equation_in_any_block(views, captions, pairs, block):
    image, text = normal(views, 6, 5), normal(captions, 6, 5)
    loss, _ = clip_loss(image, text, 7.0, block=block, pairs=pairs)
    np.testing.assert_allclose(loss, clip_oracle(image, text, 7.0, pairs), rtol=1e-6)


@pytest.mark.check
@pytest.mark.parametrize("pairs", ["all", "same"])
def test_blocks_of_several_captions_have_the_gradients_and_the_accuracy_of_the_equation(pairs):
    given = normal(2, 6, 5), normal(2, 6, 5), jnp.float32(7)
    run = lambda block: jax.value_and_grad(
        lambda *x: clip.clip_loss(*x, block=block, pairs=pairs), (0, 1, 2), has_aux=True
    )(*given)
    found, expected = jax.jit(lambda: (run(4), run(6)))()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_only_stacks_of_one_length_are_paired_one_by_one():
    with pytest.raises(ValueError, match="'same' of 2 views and 3 captions"):
        clip.clip_loss(normal(2, 4, 5), normal(3, 4, 5), 1.0, pairs="same")


def test_clip_loss_does_not_mind_the_order_of_pairs_or_the_lengths():
    image, text, order = normal(2, 6, 5), normal(1, 6, 5), RNG.permutation(6)
    loss, accuracy = clip_loss(image, text, 7.0)
    shuffled, shuffled_accuracy = clip_loss(3 * image[:, order], text[:, order] / 2, 7.0)
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6)
    assert accuracy == shuffled_accuracy


def test_clip_loss_edges():
    one, accuracy = clip_loss(normal(1, 1, 4), normal(1, 1, 4), 10.0)
    assert one == 0 and accuracy == 1
    same = normal(1, 4, 8)
    loss, accuracy = clip_loss(same, same, 100.0)
    assert loss < 1e-3 and accuracy == 1
    zero = jax.jit(jax.grad(lambda x: clip.clip_loss(x, same, 1.0)[0]))(np.zeros((1, 4, 8), np.float32))
    assert np.isfinite(zero).all()


global_loss = jax.jit(jax.value_and_grad(lambda i, t: clip.clip_loss(i, t, 5.0), (0, 1), has_aux=True))


@pytest.mark.parametrize("devices", [2, 8])
def test_clip_loss_over_devices_is_the_global_one(devices):
    image, text = normal(2, 8, 5), normal(3, 8, 5)
    grid = mesh.make_mesh(jax.devices()[:devices])

    def local(image, text):
        return jax.lax.pmean(clip.clip_loss(image, text, 5.0, mesh.DATA), mesh.DATA)

    mapped = jax.shard_map(local, mesh=grid, in_specs=P(None, mesh.DATA), out_specs=P(), check_vma=False)
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(mapped, (0, 1), has_aux=True))(image, text)
    (expected, expected_accuracy), expected_gradient = global_loss(image, text)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_read_in_float32():
    loss, _ = clip_loss(jnp.asarray(normal(1, 3, 4), jnp.bfloat16), normal(1, 3, 4), 1.0)
    assert loss.dtype == jnp.float32


def test_pixel_loss_is_the_equation():
    predicted, target = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    patches = [np.mean((np.asarray(predicted)[i] - np.asarray(target)[i]) ** 2) for i in np.ndindex(2, 3, 4)]
    np.testing.assert_allclose(reconstruction.pixel_loss(predicted, target), np.mean(patches), rtol=1e-6)
    assert reconstruction.pixel_loss(target, target) == 0


def test_examples_without_a_label_count_neither_as_right_nor_as_wrong():
    logits, label = normal(6, 4), np.array([0, -1, 3, -1, 2, 1])
    right = [int(np.argmax(row) == one) for row, one in zip(logits, label) if one >= 0]
    np.testing.assert_allclose(accuracy_of(logits, label), np.mean(right), rtol=1e-6)
    assert accuracy_of(logits, np.full(6, -1)) == 0
    loss = np.asarray(jax.jit(labels.label_loss)(logits, label))
    assert (loss[label < 0] == 0).all() and (loss[label >= 0] > 0).all()


@pytest.mark.check
def test_the_accuracy_of_devices_with_few_labels_is_that_of_the_batch():
    logits, label = normal(8, 4), np.array([0, -1, -1, -1, -1, -1, 2, 1])
    devices = mesh.make_mesh(jax.devices()[:4])
    local = lambda x, y: labels.accuracy(x, y, mesh.BATCH)
    mapped = jax.shard_map(local, mesh=devices, in_specs=P(mesh.BATCH), out_specs=P(), check_vma=False)
    assert jax.jit(mapped)(logits, label) == accuracy_of(logits, label)
