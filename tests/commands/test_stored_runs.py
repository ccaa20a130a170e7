"""Workdirs and files of earlier commits, also after fields were added: tests/stored/README.md says what they are."""

import json
import sys
import tarfile

import numpy as np
import pytest

import detailclip_jax
from detailclip_jax import interop
from detailclip_jax.config import run_config
from tests.launching import ROOT, environment, started

STORED = ROOT / "tests/stored"
COMMITS = sorted(file.name.partition(".")[0] for file in STORED.glob("*.tar.xz"))
NEWER = """
from detailclip_jax.config import fields, segmentation_fields
from detailclip_jax.config.declarations import Field
new = Field(3, "a field of a later version", "test", neutral=0)
for table in (fields.RUN, fields.LOGGING, fields.MODEL, fields.CROP, segmentation_fields.ENCODER):
    table["new"] = new
from detailclip_jax.__main__ import command
command()
"""


@pytest.fixture(scope="module", params=COMMITS)
def stored(request, tmp_path_factory):
    """The folder of the workdirs of a commit."""
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(STORED / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder, request.param


@pytest.mark.parametrize("name", ["run", "import"])
def test_a_stored_model_gives_the_embeddings_of_its_commit(stored, name):
    folder, commit = stored
    image = np.full((32, 32, 3), 128, np.uint8)
    image[8:24, 8:24] = 200, 40, 90
    golden = json.loads((STORED / f"{commit}.json").read_text())[name]
    model = detailclip_jax.load(folder / name)
    np.testing.assert_allclose(model.encode_image([image])[0], golden["image"], atol=2e-6)
    np.testing.assert_allclose(model.encode_text(["a dog"])[0], golden["text"], atol=2e-6)


def test_a_stored_file_of_weights_is_read(stored):
    folder, _ = stored
    _, variables, config = interop.load(folder / "import.safetensors")
    assert config.model.size == "custom" and set(variables["params"]) >= {"image", "text"}
    assert run_config.read(folder / "dense/config.json").head.name == "linear"


def finished(script, *arguments, cache):
    """The output of a command that ran without an error."""
    process = started([sys.executable, "-c", script, *map(str, arguments)], environment(cache))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.check
def test_stored_runs_go_on_after_fields_were_added(stored, tmp_path):
    """Resume, evaluation and export, of pretraining, of a dense task and of an import."""
    folder, _ = stored
    run = f"--workdir={folder / 'run'}", "--config.new=5", "--config.total_steps=3"
    arguments = "train", f"--config={STORED / 'smallest_pair.py'}", *run
    with pytest.raises(AssertionError, match=r"new: 0 in the workdir, 5 now"):
        finished(NEWER, *arguments, cache=tmp_path)
    said = finished(NEWER, *(each for each in arguments if each != "--config.new=5"), cache=tmp_path)
    assert "resuming from the checkpoint of step 2" in said and "step 3/3" in said
    assert said.count("model.new = 0") == 1, said

    dense = "--config=configs/transfer/stickers_linear.py", f"--workdir={folder / 'dense'}", "--config.batch_size=2"
    init = run_config.read(folder / "dense/config.json").init  # need not exist any more
    more = f"--config.init={init}", "--config.total_steps=3", "--config.data.num_val=4"
    said = finished(NEWER, "transfer", *dense, *more, cache=tmp_path)
    assert "resuming from the checkpoint of step 2" in said and "step 3/3" in said

    for name in ("run", "import"):
        few = "--tasks=retrieval:stickers", "--num-examples=8", f"--out={tmp_path / name}"
        assert "R@1" in finished(NEWER, "evaluate", f"--checkpoint={folder / name}", *few, cache=tmp_path)
        to = "--to=safetensors", f"--out={tmp_path / name}.safetensors"
        finished(NEWER, "export", f"--checkpoint={folder / name}", *to, cache=tmp_path)
        assert (tmp_path / f"{name}.safetensors").stat().st_size > 10**5
