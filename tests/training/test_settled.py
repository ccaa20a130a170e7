"""`model.remat` and `model.scan` where they are left open: chosen for the devices, kept by a run that goes on."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax import config as config_lib
from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.models import networks
from detailclip_jax.training import experiment

SMALLEST = str(Path(__file__).parents[1] / "configs/smallest.py")


def on(platform):
    """What `settled` reads of a mesh."""
    return types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform=platform)]]))


def settled(platform, **fields):
    config = config_lib.default()
    config.update_from_flattened_dict(fields)
    model = experiment.settled(config, on(platform)).model
    return model.remat, model.scan


@pytest.mark.parametrize(
    ("size", "platform", "expected"),
    [
        *(("B/16", "cpu", ("dots", True)), ("S/16", "cpu", ("none", False)), ("tiny", "cpu", ("none", False))),
        *(("B/16", "gpu", ("none", False)), ("L/16", "tpu", ("none", False))),
    ],
)
def test_a_wide_encoder_on_a_cpu_recomputes_in_a_loop(size, platform, expected):
    assert settled(platform, **{"model.size": size}) == expected


def test_what_is_set_stays():
    assert settled("cpu", **{"model.remat": "none", "model.scan": False}) == ("none", False)
    assert settled("cpu", **{"model.remat": "none"}) == ("none", False)
    assert settled("cpu", **{"model.remat": "full"}) == ("full", False)
    assert settled("cpu", **{"model.scan": False}) == ("none", False)
    assert settled("gpu", **{"model.scan": True}) == ("none", True)
    assert settled("cpu", **{"optimizer.frozen": "text,image:-1"}) == ("none", False)


def test_networks_without_a_training_step_have_separate_blocks():
    shapes = []
    for remat, scan in (("auto", None), ("none", False)):
        model = config_lib.default().model
        model.size, model.image_size, model.remat, model.scan = "tiny", 64, remat, scan
        image = networks.build(model, ("image",)).table["image"]
        shapes.append(jax.eval_shape(image.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert shapes[0] == shapes[1]


def prepared(workdir, **fields):
    config = run_config.load(SMALLEST)
    config.update_from_flattened_dict({"model.remat": "auto", "model.scan": None} | fields)
    return pretraining.prepare(config, workdir, [])


@pytest.mark.parametrize("stored", [("none", False), ("dots", True)])
def test_a_run_goes_on_with_what_it_began_with(stored, tmp_path, monkeypatch):
    """Of an earlier version, which chose nothing, or on other devices: the stored state has one layout."""
    remat, scan = stored
    begun = prepared(tmp_path / "run", **{"model.remat": remat, "model.scan": scan})
    run_config.claim_workdir(begun.workdir, begun.config)
    monkeypatch.setattr(experiment, "WIDE_ON_CPU", 0 if stored == ("none", False) else 10**6)
    run, other = prepared(tmp_path / "run"), prepared(tmp_path / "other")
    assert (run.config.model.remat, run.config.model.scan) == stored
    assert (other.config.model.remat, other.config.model.scan) != stored
    assert ("blocks" in run.experiment.state_shapes.params["image"]) == scan
    written = run_config.from_json(run_config.to_json(other.config)).model
    assert written.remat != "auto" and written.scan is not None
