"""The benchmark of encoding: the same weights in open_clip, in turn; refusals."""

import json
import sys

import jax
import numpy as np
import pytest
from tiny import TWO_BLOCKS

from detailclip_jax import benchmark, config
from detailclip_jax.interop.timm_names import OPENAI_STYLE
from detailclip_jax.training import checkpoint, experiment

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of noise: CLIP in OpenAI's layout, with the whole vocabulary, which open_clip's tokenizer has."""
    made, folder = config.default(), tmp_path_factory.mktemp("clip")
    made.method, made.total_steps, made.steps_per_epoch = "clip", 1, 1
    made.model.size, made.model.custom, made.model.image_size = "custom", TWO_BLOCKS, 32
    made.model.image_style.update(OPENAI_STYLE._asdict())
    made.views.crops.large.size = 32
    rng, shapes = np.random.default_rng(0), experiment.weight_shapes(made)
    names = ("params", "ema_params", "batch_stats")
    noise = lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
    drawn = {name: jax.tree.map(noise, getattr(shapes, name)) for name in names}
    checkpoint.save_weights(folder, jax.device_put(drawn), made, "noise")
    return folder


@pytest.mark.check
def test_embeddings_beside_open_clip_s(workdir, tmp_path, capsys):
    file = tmp_path / "encode.json"
    arguments = ["encode", f"--checkpoint={workdir}", "--counts", "1", "3", "--rounds=2", f"--json={file}"]
    assert benchmark.main(arguments) == 0
    records = json.loads(file.read_text())
    assert [(found["kind"], found["count"]) for found in records] == [
        *(("images", 1), ("images", 3), ("texts", 1), ("texts", 3))
    ]
    for found in records:
        assert found["least_cosine"] == pytest.approx(1, abs=1e-3) and found["times_as_fast"][0] > 0
        assert found["detailclip_jax_per_second"][0] > 0 and found["open_clip_per_second"][0] > 0
    assert "encode, beside open_clip" in capsys.readouterr().out


def test_without_open_clip_the_message_says_what_to_install(workdir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert benchmark.main(["encode", f"--checkpoint={workdir}"]) == 2
    assert "pip install open_clip_torch" in capsys.readouterr().err
