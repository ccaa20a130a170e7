"""The platform of a step is that of its mesh: a process on a CPU lowers the step that a process on a GPU lowers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from detailclip_jax import methods
from detailclip_jax.training import experiment, mesh

CUDNN = "__cudnn$fmhaSoftmax"


def lowered(platform, grid):
    config = tiny_config()
    config.model.dtype = "bfloat16"
    exp = experiment.build(config, grid)
    shapes = jax.eval_shape(lambda: experiment.dummy_batch(config, config.batch_size))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh.sharded(grid)), shapes)
    traced = exp.train_step.program.trace(exp.state_shapes, shapes, exp.schedules)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def one_device():
    return mesh.make_mesh(jax.devices()[:1])


@pytest.fixture
def cudnn(monkeypatch):
    """What jax asks for cuDNN's version; without its CUDA plugin there is none."""
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo"), "cuda_versions", versions)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
def test_the_process_decides_nothing(platform, cudnn, monkeypatch):
    name = {"cuda": "gpu"}.get(platform, platform)
    monkeypatch.setattr(mesh, "platform_of", lambda grid: name)
    here = lowered(platform, one_device())
    assert (CUDNN in here) == (name == "gpu")
    grid, device = one_device(), types.SimpleNamespace(platform=name, device_kind=name)
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: [device])
    assert lowered(platform, grid) == here


def test_a_program_without_a_mesh_is_of_the_platform_it_is_compiled_for(cudnn):
    """Networks for inference, built in a process on a CPU that finds cuDNN: one program for each platform."""
    config = tiny_config("clip")
    config.model.dtype = "bfloat16"
    model = methods.build_networks(config)
    images = jnp.zeros((2, config.model.image_size, config.model.image_size, 3))
    params = experiment.weight_shapes(config).params
    traced = jax.jit(lambda params: model.apply({"params": params}, images, method="embed_image")).trace(params)
    assert CUDNN in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert CUDNN not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert np.isfinite(traced.lower().compile()(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params))).all()


def test_the_platform_of_a_mesh():
    assert mesh.platform_of(one_device()) == "cpu"
    described = types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform="tpu")]]))
    assert mesh.platform_of(described) == "tpu"
