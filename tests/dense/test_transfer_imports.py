"""Segmentation on imported encoders: timm, MAE, DINO, iBOT and CLIP from PyTorch files."""

import argparse

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("timm")

import torch
from test_import_torch import clip_module, save, vit_module
from test_segmentation_step import tiny
from tiny import on_one_device

from detailclip_jax import import_torch
from detailclip_jax.dense import runs
from detailclip_jax.inference.model import load
from detailclip_jax.models import stacking
from detailclip_jax.models.taps import taps
from detailclip_jax.training import train as training

pytestmark = pytest.mark.check


def published(layout):
    """The file of a layout, as its authors publish it, with parameters of noise."""
    if layout == "openai":
        return {**clip_module().state_dict(), "input_resolution": torch.tensor(32)}
    weights = vit_module().state_dict()
    wrapped = {f"module.backbone.{key}": value for key, value in weights.items()}
    head = {"module.head.last_layer.weight_v": torch.ones(3, 3), "module.head.mlp.0.weight": torch.ones(3, 3)}
    other = {"student": {}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    return {
        "timm": {**weights, "head.weight": torch.zeros(5, 48)},
        "mae": {"model": weights | {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(1)}},
        "dino": {"teacher": wrapped | head, **other},
        "ibot": {"teacher": wrapped | head | {"module.backbone.masked_embed": torch.zeros(1, 48)}, **other},
    }[layout]


@pytest.mark.parametrize(
    "layout", ["timm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openai", "mae", "dino", "ibot"))]
)
def test_an_imported_encoder_is_fine_tuned_and_its_taps_are_the_original_s(layout, tmp_path, capsys):
    path, encoder, workdir = save(published(layout), tmp_path / "file.pth"), tmp_path / "encoder", tmp_path / "run"
    heads = ["--num-heads=4", *(["--text-heads=4"] if layout == "openai" else [])]
    assert import_torch.main([f"--from={layout}", str(path), f"--out={encoder}", *heads]) == 0
    config = tiny("linear", total_steps=2, log_every=1, checkpoint_every=2, evaluate_at_end=False)
    config.init = str(encoder)
    with on_one_device():
        assert training.train(runs.prepare(config, workdir)) == 0
    said = capsys.readouterr().out
    assert f"encoder of {encoder}" in said and "positions kept at 4 x 4" in said
    built, state, step = runs.load(workdir)
    assert step == 2
    theirs = stacking.unstack(load(encoder).params["image"])
    jax.tree.map(np.testing.assert_array_equal, dict(state.params["image"]), dict(theirs))
    if layout == "openai":  # its tokens are compared by the tests of imports
        return
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    tapped = lambda params, images: taps(built.model.image.bind({"params": params}), images)((1,))
    (found,) = jax.jit(tapped)(state.params["image"], images)
    with torch.inference_mode():
        tokens = vit_module().forward_features(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    expected = tokens[:, 1:].numpy().reshape(2, 4, 4, 48)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
