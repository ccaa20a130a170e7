"""Training on images of their own aspect: squares give the loss of squares, and what needs squares is refused."""

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import copied, noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.config import run_config, sizes
from detailclip_jax.data.pipeline import examples_after, native_kinds
from detailclip_jax.models.patchify import at_patch_size, patchify
from detailclip_jax.models.positions import linear_matrix
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training.checkpoint import Checkpoints


def native_config(lengths=(16, 24), **fields):
    config = tiny_config("siglip")
    config.update_from_flattened_dict({"views.native": lengths, "preprocess.resize": "native", **fields})
    return config


def loss_of(built, batch):
    return jax.jit(lambda state, batch: built.combined_loss(state.params, state, batch))(noise_state(built), batch)


@pytest.mark.check
def test_squares_have_the_loss_of_squares_also_with_padding():
    config, squares = native_config(), tiny_batch(config=tiny_config("siglip"))
    built = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    assert experiment.dummy_batch(config, 8)["image"]["large"].shape == (8, 1, 24, 192)
    cut = patchify(squares["image"]["large"].astype(np.float32), 8).astype(np.uint8)
    patches = np.pad(cut, ((0, 0), (0, 0), (0, 8), (0, 0)), constant_values=7)
    batch = {**squares, "image": {"large": patches}, "grid": {"large": np.full((8, 1, 2), 4, np.int32)}}
    expected, found = loss_of(tiny_experiment("siglip"), squares)[0], loss_of(built, batch)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def batch_of(config, step):
    """Noise of several aspects, at the length of the batch."""
    rng, kind = np.random.default_rng(step), native_kinds(config).of(step)
    grid = rng.permutation(np.array([(4, 4), (2, 5), (8, 2), (3, 3)] * (kind.images // 4), np.int32))[:, None]
    patches = rng.integers(0, 256, (kind.images, 1, kind.num_patches, 3 * kind.patch_size**2), np.uint8)
    squares = tiny_batch(step, tiny_config("siglip"), kind.images)
    return {**squares, "image": {"large": patches}, "grid": {"large": grid}}


def run(exp, state, steps):
    """The state after these steps, and the loss of each."""
    losses = []
    for step in steps:
        state, metrics = exp.train_step(state, exp.put(batch_of(exp.config, step)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.check
def test_chunks_on_devices_give_the_same_numbers_and_a_resume_the_same_bits(tmp_path):
    """The run is interrupted between a batch of one length and a batch of the other."""
    config, count = native_config(seed=3), 4
    lengths = [batch_of(config, step)["image"]["large"].shape[2] for step in range(count)]
    before = lengths.index(24 if lengths[0] == 16 else 16)  # steps of the first length
    one = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, losses = run(one, noise_state(one), range(before))
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(before, state, {"examples": 8 * before}, {"config": "{}"})
        restored = checkpoints.restore(one.state_shapes).state
    state, rest = run(one, copied(state), range(before, count))
    again, same = run(one, restored, range(before, count))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
    assert same == rest
    many = experiment.build(native_config(seed=3, accumulation=2), mesh.make_mesh(jax.devices()[:2]))
    _, found = run(many, noise_state(many), range(before))
    np.testing.assert_allclose(found, losses, rtol=2e-5)


@pytest.mark.check
def test_batches_of_a_budget_have_the_same_numbers_in_chunks_on_devices():
    """8 or 16 images, of patches of 8 or 4 pixels: one program each, and the state of one device at once."""
    fields = {"views.native_budget": 256, "views.native_patch_sizes": (8, 4), "seed": 18}
    config = native_config(lengths=(16, 24), **fields)
    batches = [batch_of(config, step)["image"]["large"].shape for step in range(2)]
    assert {shape[0] for shape in batches} == {8, 16} and {shape[3] for shape in batches} == {48, 192}
    assert examples_after(config, 2) == sum(shape[0] for shape in batches)
    one = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    _, losses = run(one, noise_state(one), range(2))
    chunked = native_config(lengths=(16, 24), accumulation=2, **fields)
    many = experiment.build(chunked, mesh.make_mesh(jax.devices()[:2]))
    _, found = run(many, noise_state(many), range(2))
    np.testing.assert_allclose(found, losses, rtol=2e-5)


def test_a_budget_makes_several_batch_sizes():
    config = native_config(lengths=(128, 576), **{"views.native_budget": 16384, "num_epochs": 10})
    config.total_steps = config.steps_per_epoch = None
    assert sizes.images_of_batches(config) == {128: 128, 576: 24} and sizes.mean_batch_size(config) == 76
    resolved = run_config.resolve(config, 7600)
    assert (resolved.steps_per_epoch, resolved.total_steps) == (100, 1000)
    assert run_config.num_epochs(resolved, 7600) == 10


@pytest.mark.parametrize("side", [16, 12])
def test_patches_of_another_size_are_embedded_as_before_their_interpolation(side):
    patches = np.random.default_rng(0).normal(size=(2, 3, 3 * 8 * 8)).astype(np.float32)
    rows = np.asarray(linear_matrix(8, side))
    larger = np.einsum("pa,qb,nsabc->nspqc", rows, rows, patches.reshape(2, 3, 8, 8, 3)).reshape(2, 3, -1)
    np.testing.assert_allclose(jax.jit(at_patch_size, static_argnums=1)(larger, 8), patches, atol=2e-5)
    np.testing.assert_array_equal(at_patch_size(jnp.asarray(patches), 8), patches)
