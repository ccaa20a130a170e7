"""The best read-out of a checkpoint: kept in its workdir, taken by `load`, carried by our own format."""

import json

import numpy as np
import pytest
from evaluation_data import write_checkpoint

from detailclip_jax import export, import_torch
from detailclip_jax.inference import model as inference
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.readout_choice import Choice

SCLIP = Choice("sclip", ("stickers",), {"sclip": 0.2, "naclip": 0.1}, {"sclip": 0.0, "naclip": 0.5})
PLAIN = Choice("plain", ("voc20", "mine"), {"plain": 0.3, "naclip": 0.2}, {"plain": 0.1, "naclip": 0.1})


def stored(readout):
    return json.dumps({"0": {"student": {"readout": readout, "sets": [], "mean_iou": {}, "inverted": {}}}})


def test_a_choice_is_that_of_a_step_and_of_weights(tmp_path):
    assert readout_choice.read(tmp_path, 600, "ema") is None, "a workdir of before"
    readout_choice.write(tmp_path, 600, "ema", PLAIN)
    readout_choice.write(tmp_path, 600, "student", SCLIP)
    readout_choice.write(tmp_path, 600, "ema", SCLIP)
    readout_choice.write(tmp_path, 900, "ema", PLAIN)
    assert readout_choice.read(tmp_path, 600, "ema") == readout_choice.read(tmp_path, 600, "student") == SCLIP
    assert readout_choice.read(tmp_path, 900, "ema") == PLAIN and readout_choice.read(tmp_path, 900, "student") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "readouts.json: "),
        ("[1]", "readouts.json: "),
        ('{"0": {"student": 5}}', "no read-out is stored in '5'"),
        ('{"0": {"student": {"readout": "plain"}}}', "no read-out is stored in"),
        (stored("plan"), "unknown read-out 'plan'"),
        (stored(["plain"]), "no read-out is stored in"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, text, message):
    (tmp_path / readout_choice.FILE).write_text(text)
    with pytest.raises(ValueError) as raised:
        readout_choice.read(tmp_path, 0, "student")
    assert message in str(raised.value) and str(tmp_path) in str(raised.value)
    assert "remove the file" in str(raised.value) and "dense:SET:all" in str(raised.value)


def test_a_model_takes_the_choice_of_its_weights(tmp_path):
    workdir = write_checkpoint(tmp_path / "run")
    assert inference.load(workdir, "student").readout == "naclip"
    readout_choice.write(workdir, 0, "student", SCLIP)
    model, teacher = inference.load(workdir, "student"), inference.load(workdir, "ema")
    assert (model.readout, teacher.readout) == ("sclip", "naclip")
    assert model.preprocessed({"filter": "bicubic"}).readout == "sclip"
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(model.dense(image, ["a frog"]), model.dense(image, ["a frog"], "sclip"))
    assert not np.allclose(model.dense(image, ["a frog"]), model.dense(image, ["a frog"], "plain"))


def test_dinotxt_is_read_as_trained_where_nothing_was_chosen(tmp_path):
    workdir = write_checkpoint(tmp_path / "run", "dinotxt")
    assert inference.load(workdir).readout == "plain"
    readout_choice.write(workdir, 0, "student", SCLIP)
    assert inference.load(workdir).readout == "sclip"


def test_our_own_format_carries_the_choice(tmp_path):
    workdir, file = write_checkpoint(tmp_path / "run"), tmp_path / "own.safetensors"
    readout_choice.write(workdir, 0, "ema", PLAIN)
    command = [f"--checkpoint={workdir}", "--to=safetensors", f"--out={file}"]
    assert export.main([*command, "--weights=ema"]) == 0
    assert import_torch.main([str(file), f"--out={tmp_path / 'imported'}"]) == 0
    for weights in ("student", "ema"):
        assert readout_choice.read(tmp_path / "imported", 0, weights) == PLAIN
    assert inference.load(tmp_path / "imported").readout == "plain"
    assert export.main([*command, "--weights=student"]) == 0  # of these weights nothing was chosen
    assert import_torch.main([str(file), f"--out={tmp_path / 'other'}"]) == 0
    assert not (tmp_path / "other" / readout_choice.FILE).exists()


def test_the_file_is_readable(tmp_path):
    readout_choice.write(tmp_path, 600, "student", SCLIP)
    found = json.loads((tmp_path / readout_choice.FILE).read_text())
    assert found == {"600": {"student": {**SCLIP._asdict(), "sets": ["stickers"]}}}
