"""Layers of the dense heads in bfloat16: gradients have float32 sums, and logits are not rounded to bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise

from detailclip_jax.dense.detection.fpn import XAVIER, Conv1, Conv3
from detailclip_jax.dense.detection.roi_heads import BoxHead, MaskHead
from detailclip_jax.dense.detection.rpn import RpnHead
from detailclip_jax.dense.segmentation.convolution import Classifier
from detailclip_jax.dense.segmentation.upernet import Doubling

RNG = np.random.default_rng(0)
LAYERS = {
    "classifier": lambda dtype: Classifier(5, dtype),
    "doubling": lambda dtype: Doubling(dtype),
    "conv 1": lambda dtype: Conv1(5, XAVIER, dtype),
    "conv 3": lambda dtype: Conv3(5, XAVIER, dtype),
}


def halves(*shape, low=-1.0, high=1.0):
    """Float32 values that bfloat16 holds exactly."""
    return RNG.uniform(low, high, shape).astype(jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_many_places_are_summed_in_float32(name):
    """16,384 addends of one sign: a bfloat16 sum stays at the value from which on an addend is below its spacing."""
    maps = halves(4, 64, 64, 8, low=0.0)
    layer = LAYERS[name](jnp.float32)
    outputs, shapes = jax.eval_shape(layer.init_with_output, jax.random.key(0), maps)
    params, weights = jax.tree.map(lambda x: halves(*x.shape), shapes), halves(*outputs.shape, low=0.5, high=1.5)

    def gradients(dtype):
        loss = lambda params, maps, weights: (LAYERS[name](dtype).apply(params, maps) * weights).sum()
        return jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params, maps, weights))

    for (path, ours), (_, exact) in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert ours.dtype == jnp.float32
        off = np.linalg.norm(np.subtract(ours, exact)) / np.linalg.norm(exact)
        assert off < 0.01, f"{jax.tree_util.keystr(path)} is off by {off:.3f}"


def outputs(name):
    """The float32 outputs of a head in bfloat16."""
    maps, dtype = jnp.asarray(halves(2, 8, 8, 16)), jnp.bfloat16
    heads = {
        "classifier": (Classifier(5, dtype), (maps,)),
        "rpn": (RpnHead(16, 3, dtype), ([maps],)),
        "boxes": (BoxHead(3, 16, 16, 1, None, dtype), (maps, jnp.ones(2, bool), False)),
        "masks": (MaskHead(3, 16, 1, dtype), (maps,)),
    }
    head, given = heads[name]
    params = noise(jax.eval_shape(lambda: head.init(jax.random.key(0), *given)))
    return jax.tree.leaves(head.apply(params, *given))  # layer by layer: one program might not round in between


@pytest.mark.check
@pytest.mark.parametrize("name", ["classifier", "rpn", "boxes", "masks"])
def test_outputs_of_a_head_are_not_rounded_to_bfloat16(name):
    for found in outputs(name):
        assert found.dtype == jnp.float32
        assert (found != np.asarray(found).astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9
