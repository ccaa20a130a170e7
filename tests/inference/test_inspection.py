"""Attention by head, removed patches, reconstructions, similarity and PCA: against loops and plain linear algebra."""

import dataclasses

import jax
import numpy as np
import pytest
from test_inference import made, make_images, model_of, normalised

from detailclip_jax.inference.similar_patches import pca_colours, principal_components, similarity
from detailclip_jax.methods import masking
from detailclip_jax.models.patchify import patchify

RNG = np.random.default_rng(0)


def test_the_mean_of_all_heads_and_layers_is_eq_9():
    model, images = model_of(), make_images(2)
    heads = model.attention_heads(images)
    size = model.networks.image
    assert heads.shape == (2, size.depth, size.num_heads, 4, 4) and heads.dtype == np.float32
    for image, values in zip(images, heads):
        np.testing.assert_allclose(values.mean((0, 1)), model.attention(image), atol=1e-6)


def test_a_head_is_the_softmax_of_its_own_query_and_keys():
    """The first layer of one image: norm, qkv, one head after the other, in NumPy."""
    model, (image,) = model_of(), make_images(1, seed=3)
    encoder = model.networks.image

    @jax.jit
    def first_layer(params, images):
        net = model.networks.bind({"params": params}).image
        block = net.blocks[0]
        return block.norm1(net.embed(images))[0], *block.attn.qkv(encoder.width)

    x, kernel, bias = map(np.asarray, first_layer(model.params, normalised(image, model.config)))
    qkv = x @ kernel + bias
    query, key = qkv[0, : encoder.width], qkv[:, encoder.width : 2 * encoder.width]
    wide = encoder.width // encoder.num_heads
    for number in range(encoder.num_heads):
        part = slice(number * wide, (number + 1) * wide)
        shares = np.exp(key[:, part] @ query[part] / np.sqrt(wide))
        shares /= shares.sum()
        found = model.attention_heads([image])[0, 0, number].ravel()
        np.testing.assert_allclose(found, shares[1:], rtol=1e-4, atol=1e-6)
        assert found.sum() + shares[0] == pytest.approx(1, abs=1e-5)  # the rest is the CLS token's own


@pytest.mark.parametrize("ratio", [None, 0.25, 0.5, 0.8])
def test_the_removed_share_is_the_ratio_and_has_the_lowest_attention(ratio):
    model, images = model_of(), make_images(3)
    removed = model.removed(images, ratio)
    share = model.config.masking.ratio if ratio is None else ratio
    assert removed.shape == (3, 4, 4) and removed.dtype == bool
    assert (removed.sum((1, 2)) == int(16 * share)).all()
    for image, mask in zip(images, removed):
        attention = model.attention(image)
        assert attention[mask].max() <= attention[~mask].min()


def test_a_method_without_a_mask_removes_the_same_way_and_no_image_gives_no_mask():
    config = model_of("clip").config.copy_and_resolve_references()
    config.masking.ratio = 0.0  # not read
    for ratio in (None, 0.5):
        assert dataclasses.replace(model_of("clip"), config=config).removed(make_images(1), ratio).sum() == 8
    assert model_of().removed([]).shape == (0, 4, 4)
    assert model_of().attention_heads([]).shape[0] == 0
    with pytest.raises(ValueError, match=r"masking.ratio 0.01 removes no unit"):
        model_of().removed(make_images(1), 0.01)


def test_a_reconstruction_is_the_decoder_s_prediction_where_patches_are_removed():
    """One image at a time, in the units of the image: the decoder's output, scaled by each true patch's statistics."""
    model, images = model_of(), make_images(9, seed=5)
    removed = np.zeros((9, 16), bool)
    for row in removed:
        row[RNG.choice(16, 6, replace=False)] = True
    found = model.reconstruct(images, removed.reshape(9, 4, 4))
    config, (networks, variables, _) = model.config, made("detailclip")

    @jax.jit
    def predict(params, pixels, mask):
        student, hidden = networks.bind({"params": params}), masking.from_mask(mask, 6)
        return student.pixel_head(student.decoder(student.image(pixels, hidden.kept), hidden))

    for image, mask, drawn in zip(images[:2], removed, found):
        pixels = normalised(image, config)
        values = predict(variables["params"], pixels, mask[None])[0]
        true = patchify(np.asarray(pixels), 8)[0]
        for place, value in zip(np.flatnonzero(mask), np.asarray(values)):
            target = true[place]
            value = value * np.sqrt(target.var(ddof=1) + config.losses.pixel_eps) + target.mean()
            value = value.reshape(8, 8, 3) * np.array(config.preprocess.std) + np.array(config.preprocess.mean)
            row, column = divmod(int(place), 4)
            patch = drawn[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert np.abs(patch - np.clip(255 * value, 0, 255)).max() <= 1
    kept = ~np.kron(removed.reshape(9, 4, 4), np.ones((8, 8), bool))
    assert (found[kept] == np.stack(images)[kept]).all()


def test_the_student_reconstructs_also_for_the_teacher_s_weights():
    images = make_images(2)
    removed = model_of(weights="ema").removed(images)
    both = [model_of(weights=name).reconstruct(images, removed) for name in ("ema", "student")]
    np.testing.assert_array_equal(*both)


def test_a_model_with_stacked_blocks_gives_the_same_heads():
    model, images = model_of(), make_images(1)
    image = dict(model.params["image"])
    blocks = [image.pop(f"blocks_{number}") for number in range(model.networks.image.depth)]
    image["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    params, networks = {**model.params, "image": image}, model.networks._changed("scan", True)
    stacked = dataclasses.replace(model, networks=networks, params=params)
    np.testing.assert_allclose(stacked.attention_heads(images), model.attention_heads(images), atol=1e-6)


def test_similarity_is_the_cosine_with_the_chosen_patch():
    patches = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    places = [(0, 3), (2, 1)]
    found = similarity(patches, places)
    for b, (row, column) in enumerate(places):
        chosen = patches[b, row, column]
        assert found[b, row, column] == pytest.approx(1)
        for i in range(3):
            for j in range(4):
                other = patches[b, i, j]
                cosine = other @ chosen / np.linalg.norm(other) / np.linalg.norm(chosen)
                assert found[b, i, j] == pytest.approx(cosine, abs=1e-6)
    with pytest.raises(ValueError, match="patch 3,0 is outside the grid of 3 x 4 patches; rows are 0 to 2"):
        similarity(patches, [(3, 0), (0, 0)])


def test_principal_components_are_those_of_the_covariance():
    flat = RNG.normal(size=(60, 7)) @ RNG.normal(size=(7, 7))
    flat -= flat.mean(0)
    found = principal_components(flat, 3)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    for number in range(3):
        expected = flat @ vectors[:, -1 - number]
        assert min(np.abs(found[:, number] - expected).max(), np.abs(found[:, number] + expected).max()) < 1e-9
        assert (found[:, number] ** 2).sum() == pytest.approx(values[-1 - number])


def test_images_share_the_components_and_colours_have_the_order_of_the_scores():
    patches = RNG.normal(size=(3, 4, 4, 6)).astype(np.float32)
    colours = pca_colours(patches)
    assert colours.shape == (3, 4, 4, 3) and colours.min() == 0 and colours.max() == 1
    flat = patches.reshape(-1, 6).astype(np.float64)
    scores = principal_components(flat - flat.mean(0), 3)
    for number in range(3):
        order = np.argsort(scores[:, number])
        assert (np.diff(colours.reshape(-1, 3)[order, number]) >= 0).all()
    twice = pca_colours(np.concatenate([patches, patches]))
    np.testing.assert_array_equal(twice[:3], twice[3:])


def test_features_of_fewer_axes_than_colours_leave_the_other_colours_empty():
    line = np.linspace(0, 1, 10)[:, None] * np.ones((1, 2))
    colours = pca_colours(line)
    assert colours.shape == (10, 3) and np.ptp(colours[:, 0]) == 1 and (colours[:, 2] == 0).all()
    assert jax.tree.all(np.isfinite(colours).all())
