"""Cross-entropies over the global batch in blocks, against the printed form; and what they cost."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.kernels import global_softmax
from detailclip_jax.losses import clip, sigmoid, simclr
from detailclip_jax.training import mesh

RNG = np.random.default_rng(0)
CLIP, SIMCLR = ((0, (2,)), (1, (2,)), (2, (0,)), (2, (1,))), ((0, (1, 0)), (1, (0, 1)))


def normal(*shape):
    return jax.device_put(np.float32(RNG.standard_normal(shape)))


def printed(rows, columns, scale, own, contrasts):
    """The equations of `losses.clip` and `losses.simclr`, for the same contrasts."""
    logits = []
    for row, (first, *others) in contrasts:
        x, y = rows[:, row], columns[:, first]
        within = simclr.simclr_logits(x, y, columns[:, row], 1 / scale, own) if others else None
        logits.append(clip.similarity(x, y, scale) if within is None else within)
    return jnp.stack([clip.cross_entropy(x, own) for x in logits]), jnp.stack([x.argmax(1) for x in logits])


@functools.cache
def weighted(function, contrasts, *options):
    """Compiled: a weighted sum of the cross-entropies, these, the nearest columns, and the gradients of the sum."""

    def loss(rows, columns, scale, weights):
        values, places = function(rows, columns, scale, jnp.arange(4, 8), contrasts, *options)
        return jnp.vdot(values, weights), (values, places)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


SIZES = [(12, 1), (12, 3), (12, 12), (13, 5), (13, 12), (17, 3)]  # columns, and how many of them in a block


@pytest.mark.parametrize(
    ("contrasts", "size", "block"), [*((CLIP, *each) for each in SIZES), (SIMCLR, 12, 3), (SIMCLR, 13, 5)]
)
def test_blocks_give_the_printed_form_and_its_gradients(contrasts, size, block):
    given = normal(4, 3, 5), normal(size, 3, 5), jnp.float32(2.5), normal(len(contrasts), 4)
    (_, (values, places)), grads = weighted(global_softmax.blockwise_cross_entropies, contrasts, block)(*given)
    (_, (expected, nearest)), oracle = weighted(printed, contrasts)(*given)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(places, nearest)
    for ours, theirs in zip(grads, oracle, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow_whatever_the_order_of_blocks():
    columns = jnp.stack([normal(8, 1), normal(8, 1)], 1) * jnp.linspace(1, 300, 8)[:, None, None]
    given = jnp.arange(8), ((0, (1,)),)
    blocks = jax.jit(lambda x: global_softmax.blockwise_cross_entropies(x, x, 1.0, *given, 2)[0])
    expected = jax.jit(lambda x: printed(x, x, 1.0, *given)[0])
    for moved in (columns, columns[::-1]):
        np.testing.assert_allclose(blocks(moved), expected(moved), rtol=1e-5, atol=0.05)  # of logits up to 4e5


def test_equal_logits_are_nearest_to_the_first():
    same = jnp.ones((6, 2, 3))
    _, places = global_softmax.blockwise_cross_entropies(same, same, 1.0, jnp.arange(6), ((0, (1,)), (1, (0,))), 2)
    assert not places.any()


@pytest.mark.parametrize("block", [0, 1, 4])
def test_blocks_of_clip_and_simclr_change_no_number(block):
    image, text = normal(2, 8, 6), normal(1, 8, 6)

    @functools.partial(jax.jit, static_argnums=0)
    def both(block):
        return *clip.clip_loss(image, text, 9.0, None, block), *simclr.simclr_loss(image, 0.1, None, block)

    np.testing.assert_allclose(both(block), both(8), 3e-6)


def test_the_automatic_block_stays_small_and_its_number_least():
    for rows, columns in ((256, 4096), (8192, 65536), (7, 7 * 11 * 13), (2**21, 2**21), (2053, 4106), (4099, 4099)):
        size, most = global_softmax.block_size(0, rows, columns), max(global_softmax.LOGITS // rows, 1)
        assert size <= most and math.ceil(columns / size) == math.ceil(columns / most)
    assert global_softmax.block_size(0, 256, 4096) == 4096  # the paper's batch on 16 devices: all at once
    assert global_softmax.block_size(5, 4, 12) == 5 and global_softmax.block_size(50, 4, 12) == 12


@pytest.mark.parametrize(("batch", "devices", "blocks"), [(4099, 1, 17), (4106, 2, 9), (4096, 1, 16)])
def test_a_batch_without_a_good_divisor_takes_few_blocks(batch, devices, blocks):
    """Counted in the traced program: forwards and backwards."""
    grid = mesh.make_mesh(jax.devices()[:devices])

    def local(image, text):
        return jax.grad(lambda *x: clip.clip_loss(*x, 9.0, mesh.BATCH)[0], (0, 1))(image, text)

    specs = (P(None, mesh.BATCH), P(None, mesh.BATCH))
    shapes = tuple(jax.ShapeDtypeStruct((number, batch, 4), jnp.float32) for number in (2, 1))
    mapped = jax.shard_map(local, mesh=grid, in_specs=specs, out_specs=specs, check_vma=False)
    assert re.findall(r"length=(\d+)", str(jax.make_jaxpr(mapped)(*shapes))) == [str(blocks)] * 2


@pytest.mark.parametrize("block", [0, 8, 3])
def test_logits_that_fit_are_computed_by_the_printed_form(block):
    """Counted in the traced program: only blocks make a loop."""
    gradient = jax.grad(lambda x: clip.clip_loss(x, normal(1, 8, 6), 9.0, None, block)[0])
    assert ("scan" in str(jax.make_jaxpr(gradient)(normal(2, 8, 6)))) == (block == 3)
    gradient = jax.grad(lambda x: simclr.simclr_loss(x, 0.1, None, block)[0])
    assert ("scan" in str(jax.make_jaxpr(gradient)(normal(2, 8, 6)))) == (block == 3)


def largest_array(program):
    """The largest number of elements of any array in a printed program, as f32[4,64]; loops are printed too."""
    shapes = re.findall(r"[a-z]\d+\[([\d,]+)\]", program)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


LOSSES = {  # the number of pairs that the printed form compares at once
    "cosmos": (16, lambda x: clip.clip_loss(x, x, 9.0)[0]),
    "simclr": (4, lambda x: simclr.simclr_loss(x[:2])[0]),
    "siglip": (4, lambda x: sigmoid.sigmoid_loss(x, x, 9.0, -9.0)[0]),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_all_pairs_stay_within_the_promised_number(monkeypatch, loss):
    """Counted in the traced program, forwards and backwards; embeddings have fewer elements."""
    num_pairs, run = LOSSES[loss]
    for limit in (num_pairs * 64**2, num_pairs * 64**2 - 1, 64**2):
        monkeypatch.setattr(global_softmax, "LOGITS", limit)
        gradient = jax.value_and_grad(lambda x: run(x))  # a new function, whose program is not cached
        found = str(jax.make_jaxpr(gradient)(jnp.ones((4, 64, 2))))
        assert 64**2 <= largest_array(found) <= limit
        assert ("scan" in found) == (limit < num_pairs * 64**2)


@pytest.mark.parametrize("size", [7, 13])
@pytest.mark.parametrize("loss", ["clip", "simclr"])
def test_a_prime_batch_in_small_blocks_changes_no_number(monkeypatch, size, loss):
    monkeypatch.setattr(global_softmax, "LOGITS", 3 * size)
    image, text = normal(2, size, 6), normal(1, size, 6)
    run = {
        "clip": lambda image, text, block: clip.clip_loss(image, text, 9.0, None, block)[0],
        "simclr": lambda image, _, block: simclr.simclr_loss(image, 0.1, None, block)[0],
    }[loss]
    gradient = jax.jit(jax.value_and_grad(run, (0, 1)), static_argnums=2)
    ours, theirs = (gradient(image, text, block) for block in (0, size))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_of_65536_needs_less_than_a_gigabyte_a_device(views):
    """Loss and gradient at width 512 over 8 devices, compiled and not run; in one gather and one scatter."""
    grid = mesh.make_mesh()

    def loss(image, text, scale):
        def local(*arrays):
            return jax.lax.pmean(clip.clip_loss(*arrays, mesh.BATCH)[0], mesh.BATCH)

        specs = {"in_specs": (P(None, mesh.BATCH), P(None, mesh.BATCH), P()), "out_specs": P(), "check_vma": False}
        return jax.shard_map(local, mesh=grid, **specs)(image, text, scale)

    def shape(*sizes, spec):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(grid, spec))

    image, text = (shape(number, 65536, 512, spec=P(None, mesh.BATCH)) for number in (views, 1))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(image, text, shape(spec=P())).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9
    text = compiled.as_text()
    assert [len(re.findall(rf" {name}\(", text)) for name in ("all-gather", "reduce-scatter")] == [1, 1]
