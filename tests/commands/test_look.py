"""The command look: what it prints and draws for one model and for two, and what it refuses."""

import numpy as np
import pytest
from PIL import Image
from test_inference import made

from detailclip_jax import look
from detailclip_jax.inference.model import load
from detailclip_jax.runtime import errors
from detailclip_jax.training import checkpoint

CAPTIONS = "a dog", "a red ball to the left of a dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two workdirs with noise for weights, one without texts, and a picture."""
    root = tmp_path_factory.mktemp("look")
    for method in ("detailclip", "clip", "mae"):
        _, variables, config = made(method)
        checkpoint.save_weights(root / method, variables, config, "noise")
    pixels = np.random.default_rng(0).integers(0, 256, (440, 660, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "park.png")
    return root


def test_captions_are_ranked_and_drawn_for_each_model(folder, capsys):
    models = [str(folder / "clip"), f"--against={folder / 'detailclip'}"]
    assert look.main([models[0], str(folder / "park.png"), *CAPTIONS, models[1], f"--out={folder / 'seen.png'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in (lines[0], lines[3])] == [str(folder / "clip"), str(folder / "detailclip")]
    model = load(folder / "clip")
    (cosines,) = model.encode_image([folder / "park.png"]) @ model.encode_text(CAPTIONS).T
    powers = np.exp(np.exp(float(np.ravel(model.params["logit_scale"]["value"])[0])) * cosines)
    for line, number in zip(lines[1:3], (-cosines).argsort()):
        share = powers[number] / powers.sum()
        assert line == f"  {share:6.1%}  cosine {cosines[number]:.3f}  {CAPTIONS[number]}"
    with Image.open(folder / "seen.png") as figure:
        assert figure.width > figure.height > 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clip", "none.png", "a dog"], "none.png"),
        (["mae", "park.png", "a dog"], "use a checkpoint of a method with captions"),
        (["clip", "park.png", "a dog", "--out=seen.gif"], "ends in .png or .svg"),
        (["clip", "park.png", "a dog", "--readout=neclip"], "did you mean 'naclip'"),
        (["clap", "park.png", "a dog"], "did you mean 'clip'"),
    ],
)
def test_mistakes_are_one_message(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    assert look.main(arguments) == errors.USAGE_ERROR
    assert words in capsys.readouterr().err
