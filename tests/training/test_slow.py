"""The paper's model in its real size, on this CPU: `make slow`."""

import csv
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from detailclip_jax import config as config_lib
from detailclip_jax.interop import key_tables, reference_names
from detailclip_jax.training import experiment, mesh

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


def test_the_paper_s_run_trains_a_step_at_224_pixels_and_saves(tmp_path):
    overrides = ("data.source=stickers", "batch_size=2", "total_steps=1", "evaluate_at_end=False")
    command = [
        *(sys.executable, "-m", "detailclip_jax.main"),
        *("--config=configs/vitb16_yfcc.py", f"--workdir={tmp_path}"),
        *(f"--config.{override}" for override in overrides),
    ]
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 1 and np.isfinite(line["loss"])
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_initial_values_are_distributed_as_the_reference_s():
    """Mean and standard deviation of every tensor of a fresh ViT-B/16, against those of a fresh reference model."""
    config = config_lib.default()
    config.batch_size, config.total_steps, config.model.scan = 8, 10, False  # a CPU would stack the blocks
    state = experiment.build(config, mesh.make_mesh(jax.devices()[:1])).init(0)  # eight copies would need 20 GB
    ours = key_tables.write(reference_names.student(12, 12, 1), state.params)
    with open(ROOT / "tests/golden/vitb16_keys.tsv") as file:
        theirs = {row["key"]: row for row in csv.DictReader(file, delimiter="\t")}
    for name, values in ours.items():
        mean, std = float(theirs[name]["mean_at_init"]), float(theirs[name]["std_at_init"])
        noise = 6 * std / np.sqrt(max(values.size, 2)) + 1e-6
        rounding = 1e-3 * abs(mean)  # the file has four digits
        assert abs(values.mean() - mean) < 1.5 * noise + rounding, (name, values.mean(), mean)
        assert abs(values.std() - std) < noise + 1e-3 * std, (name, values.std(), std)
