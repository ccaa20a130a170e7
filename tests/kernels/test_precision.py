"""float32 products are exact on GPUs and TPUs too: the precision that the lowered programs ask for."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.interop import compiled_functions
from detailclip_jax.interop.model_to_export import Export, plain
from detailclip_jax.pretraining import validate
from detailclip_jax.training import experiment, mesh

PRODUCT = re.compile(r"stablehlo\.dot_general (?P<how>.*) : \(tensor<(?P<left>\S+)>, tensor<(?P<right>\S+)>\)")
PRECISION = re.compile(r"precision = \[(\w+), (\w+)\]")
FLOAT, HALF = ("f32", "f32"), ("bf16", "bf16")
EXACT = FLOAT, ("HIGHEST", "HIGHEST")


def precisions(text):
    """(type of the factors, precision of each) of every product of a lowered program."""
    products = list(PRODUCT.finditer(text))
    assert products and len(products) == text.count("stablehlo.dot_general")
    kinds = [tuple(shape.split("x")[-1] for shape in match.group("left", "right")) for match in products]
    asked = [PRECISION.search(match["how"]) for match in products]
    return {(kind, match.groups() if match else ("DEFAULT", "DEFAULT")) for kind, match in zip(kinds, asked)}


def lowered(function, platforms, *arguments):
    return jax.export.export(function, platforms=platforms)(*arguments).mlir_module()


def step_of(exp, *platforms):
    given = exp.state_shapes, exp.put(tiny_batch(0, exp.config)), exp.schedules
    return precisions(lowered(exp.train_step.program, platforms, *given))


@functools.cache
def built(method="detailclip", **model):
    config = tiny_config(method)
    config.model.update(model)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:1]))


OTHERS = (pytest.param(name, marks=pytest.mark.slow) for name in ("aclip", "supervised"))
BOTH = "cuda", "tpu"  # one program holds what either computes


@pytest.mark.check
@pytest.mark.parametrize("method", ["detailclip", *OTHERS])
def test_every_product_of_a_float32_step_is_exact(method):
    assert step_of(tiny_experiment(method), *BOTH) == {EXACT}


@pytest.mark.check
def test_every_product_of_terms_with_false_texts_and_regions_is_exact():
    config = tiny_config("clip")
    config.data.negatives, config.data.regions = 2, 3
    config.losses.weights.update(dict.fromkeys(("negatives", "rank", "region_text", "text_contrast"), 1.0))
    assert step_of(experiment.build(config, mesh.make_mesh(jax.devices()[:1])), *BOTH) == {EXACT}


def test_every_product_of_the_encoders_is_exact():
    exp, batch = tiny_experiment(), tiny_batch()
    images, texts, others = (
        batch["image"]["large"][:, 0],
        ("text", "raw_text"),
        ("text_lengths", "jit", "pooled", "class_logits"),
    )
    # DetailCLIP pools no image by texts and has no classes
    functions = {name: getattr(exp.encode, name) for name in set(exp.encode._fields) - {*others}}
    functions["of a user"] = exp.encode.jit(lambda networks, pixels: networks.embed_image(pixels))
    for name, function in functions.items():
        argument = batch["text"][:, 0] if name in texts else images
        assert precisions(lowered(function, BOTH, exp.state_shapes.params, argument)) == {EXACT}, name


@pytest.mark.check
def test_a_bfloat16_step_leaves_its_halves_to_the_device_and_is_exact_elsewhere():
    found = step_of(built(dtype="bfloat16"), "tpu")
    assert (HALF, ("DEFAULT", "DEFAULT")) in found
    assert {how for kind, how in found if kind == FLOAT} == {EXACT[1]}


@pytest.mark.check
def test_the_field_and_jax_s_context_ask_for_another_precision():
    found = step_of(built("clip", matmul_precision="high"), "cuda")
    assert (FLOAT, ("HIGH", "HIGH")) in found and EXACT in found  # the losses stay exact
    with jax.default_matmul_precision("default"):
        assert (FLOAT, ("DEFAULT", "DEFAULT")) in step_of(tiny_experiment("clip"), "cuda")


def test_exported_encoders_are_exact_whatever_the_run_asked_for():
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tiny_experiment().state_shapes.params)
    config = tiny_config()
    config.model.matmul_precision = "default"
    model, variables, config = plain({"params": params}, config)
    export = Export(model, variables["params"], variables, config, "student")
    for function in compiled_functions.functions(export).values():
        shape = jax.ShapeDtypeStruct((2, *function.shape), function.dtype)
        assert precisions(lowered(jax.jit(function.call), ("cuda",), shape)) == {EXACT}


def test_an_unknown_precision_is_refused():
    config = tiny_config()
    config.model.matmul_precision = "hihg"
    with pytest.raises(ValueError, match=r"unknown model\.matmul_precision 'hihg'; did you mean 'high'"):
        validate(config)
