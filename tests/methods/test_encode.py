"""`Encode.jit`: any function of (networks, batch), compiled with the pixels and the precision of the config."""

import functools

import jax
import numpy as np
import pytest
from evaluation_data import variables_of

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.evaluation.embedder import Embedder, Store
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.patchify import normalise_pixels


def spread(networks, batch):
    """The variance of the patch features of each image within its mask."""
    where = batch["mask"].reshape(len(batch["mask"]), -1, 1) > 0
    return networks.image(batch["image"]).patches.var((1, 2), where=where)


def example():
    rng = np.random.default_rng(1)
    images, masks = rng.integers(0, 256, (3, 32, 32, 3), np.uint8), rng.integers(0, 2, (3, 4, 4), np.uint8)
    return {"image": images, "mask": masks, "valid": np.ones(3, bool)}


def test_a_function_of_networks_and_batch_sees_normalised_pixels_and_everything_else_unchanged():
    built, variables, config = variables_of("detailclip")
    batch, fields = example(), config.preprocess
    pixels = normalise_pixels(jax.numpy.asarray(batch["image"]), tuple(fields.mean), tuple(fields.std))
    expected = spread(built.model.bind({"params": variables["params"]}), batch | {"image": pixels})
    found = built.encode.jit(spread)(variables["params"], batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.shape == (3,)


def test_what_evaluation_computes_is_such_a_function_too():
    built, variables, _ = variables_of("detailclip")
    params, images = variables["params"], example()["image"]
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    texts = built.encode.jit(lambda networks, tokens: networks.embed_text(tokens))
    np.testing.assert_array_equal(texts(params, tokens), built.encode.raw_text(params, tokens))
    scores = built.encode.jit(lambda networks, pixels, words: networks.embed_image(pixels) @ words.T)
    found = scores(params, images, np.asarray(texts(params, tokens)))
    assert found.shape == (3, 2) and np.isfinite(found).all()


def test_an_embedder_stores_the_features_of_a_function_by_its_name_and_source(tmp_path):
    built, variables, _ = variables_of("detailclip")
    params, images = variables["params"], example()["image"]

    def variance(networks, batch):
        return networks.image(batch["image"]).patches.var(1)

    source = [{"image": image, "label": 0, "captions": (), "key": ""} for image in images]
    data = LabelledSet("noise", source, (), "f", None)
    embedders = [
        Embedder(built.encode, lambda texts: texts, digest_of=lambda params: "d", store=Store(tmp_path)) for _ in "ab"
    ]
    first, again = (one.images(params, data, Transform(32, 32), variance).features for one in embedders)
    expected = built.encode.jit(variance)(params, {"image": images})
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    np.testing.assert_array_equal(first, again)
    embedders[0].images(params, data, Transform(32, 32), "cls")
    assert len(list(tmp_path.iterdir())) == 2


def layer(networks, batch, block=3):
    return networks.image(batch["image"]).patches.var(1) * block


def scaled(factor):
    return lambda networks, batch: networks.image(batch["image"]).patches.var(1) * factor


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functools.partial(layer, block=11), "it is a partial"),
        (layer, "features of layer .* its parameters have default values; define a function"),
        (scaled(3), r"reads variables of the function around it \(factor\)"),
        (eval("lambda networks, batch: batch"), "its source cannot be read"),
    ],
)
def test_a_function_that_its_name_and_source_do_not_determine_is_not_stored(tmp_path, function, message):
    source = [{"image": image, "label": 0, "captions": (), "key": ""} for image in example()["image"]]
    embedder = Embedder(None, lambda texts: texts, digest_of=lambda params: "d", store=Store(tmp_path))
    with pytest.raises(ValueError, match=message):
        embedder.images({}, LabelledSet("noise", source, (), "f", None), Transform(32, 32), function)


def test_a_function_is_compiled_once_for_a_model_and_its_pixels():
    built, variables, config = variables_of("detailclip")
    mine = built.encode.jit(spread)
    for _ in range(2):
        mine(variables["params"], example())
    assert mine._cache_size() == 1
    assert encoders(built.model, config).jit(spread) is mine  # of an equal model
    config = config.copy_and_resolve_references()
    config.preprocess.mean = (0.0, 0.0, 0.0)
    assert encoders(built.model, config).jit(spread) is not mine


@pytest.mark.parametrize("name", ["image", "cls"])
def test_the_functions_of_evaluation_can_be_lowered_under_jax(name):
    """Export and the counts of FLOP read their programs."""
    built, variables, _ = variables_of("detailclip")
    function = getattr(built.encode, name)
    assert "stablehlo" in function.lower(variables["params"], example()["image"]).as_text()
    assert isinstance(jax.eval_shape(function, variables["params"], example()["image"]), jax.ShapeDtypeStruct)
