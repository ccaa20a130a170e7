"""`Model.features` after chosen blocks, against timm and against the whole encoder."""

import numpy as np
import pytest
from test_inference import made

from detailclip_jax import interop
from detailclip_jax.inference.model import Model, Square

IMAGES = [Square(image) for image in np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)]


def model_of(networks, variables, config):
    return Model(networks, variables, config, variables["params"], "student", 0, "")


@pytest.mark.parametrize("normalise", [True, False])
def test_features_after_blocks_are_those_of_timm(normalise):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 1, "num_classes": 0}
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.1)
    model = model_of(*interop.load(theirs.state_dict(), "timm", num_heads=1))
    mean, std = (np.array(model.config.preprocess[name]) for name in ("mean", "std"))
    pixels = np.stack([(each.pixels / 255 - mean) / std for each in IMAGES])
    with torch.inference_mode():
        expected = theirs.forward_intermediates(
            torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2),
            indices=[0, 2, 3],
            norm=normalise,
            return_prefix_tokens=True,
            intermediates_only=True,
        )
    ours = model.features(IMAGES, layers=(0, 2, -1), normalise=normalise)
    assert len(ours) == len(expected) == 3
    for (cls, patches), (maps, prefix) in zip(ours, expected):
        np.testing.assert_allclose(patches, maps.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(cls, prefix[:, 0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["clip", "mae"])
def test_the_last_block_gives_the_features_of_the_encoder(method):
    model = model_of(*made(method))
    (last,), whole = model.features(IMAGES, layers=(-1,)), model.features(IMAGES)
    np.testing.assert_allclose(last.patches, whole.patches, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last.cls, whole.cls, rtol=1e-5, atol=1e-5)
    assert model.features([], layers=(0,))[0].patches.shape == (0, *whole.patches.shape[1:])


def test_a_norm_of_the_mean_is_not_applied_to_tokens():
    model = model_of(*made("clip", **{"model.image_style.pooling": "norm_of_mean"}))
    (last,), whole = model.features(IMAGES, layers=(-1,)), model.features(IMAGES)
    np.testing.assert_allclose(last.patches, whole.patches, rtol=1e-5, atol=1e-5)


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"layers \[9, -9\]: the encoder has \d blocks, 0 to"):
        model_of(*made("clip")).features(IMAGES, layers=(0, 9, -9))
