"""Training on images of their own aspect: squares give the loss of squares, and what needs squares is refused."""

import jax
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax import pretraining
from detailclip_jax.models.patches import patchify
from detailclip_jax.training import experiment, mesh


def native_config(method="siglip", lengths=(16, 24), **fields):
    config = tiny_config(method)
    config.update_from_flattened_dict({"views.native": lengths, "preprocess.resize": "native", **fields})
    return config


def loss_of(built, batch):
    return jax.jit(lambda state, batch: built.combined_loss(state.params, state, batch))(noise_state(built), batch)


def test_squares_have_the_loss_of_squares_also_with_padding():
    config, squares = native_config(), tiny_batch(config=tiny_config("siglip"))
    built = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    assert experiment.dummy_batch(config, 8)["image"]["large"].shape == (8, 1, 24, 192)
    cut = patchify(squares["image"]["large"].astype(np.float32), 8).astype(np.uint8)
    patches = np.pad(cut, ((0, 0), (0, 0), (0, 8), (0, 0)), constant_values=7)
    batch = {**squares, "image": {"large": patches}, "grid": {"large": np.full((8, 1, 2), 4, np.int32)}}
    expected, found = loss_of(tiny_experiment("siglip"), squares)[0], loss_of(built, batch)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method, fields, words",
    [
        ("detailclip", {}, ("views.native (16, 24)", "clip and siglip", "detailclip")),
        ("clip", {"losses.weights.gram": 1.0}, ("views.native", "losses.weights.gram")),
        ("clip", {"views.patch_dropout": 0.5}, ("views.native", "views.patch_dropout")),
        ("clip", {"preprocess.resize": "squash"}, ("views.native", "'squash'", "--config.preprocess.resize=native")),
        ("clip", {"model.image_style.positions": "rotary"}, ("preprocess.resize", "'rotary'", "'squash'")),
        ("clip", {"views.native": (0,)}, ("views.native", "at least 1")),
    ],
)
def test_what_needs_squares_is_refused(method, fields, words):
    config = native_config(method, **fields)
    with pytest.raises(ValueError) as error:
        pretraining.validate(config)
    assert all(word in str(error.value) for word in words), error.value
