"""The README's Python runs as printed."""

import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.config import run_config
from detailclip_jax.interop import store
from detailclip_jax.training import experiment
from detailclip_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what the README's commands leave in a checkout: noise for the demo's run."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    config = run_config.load(str(ROOT / "configs/stickers.py"))
    shapes, rng = experiment.build(config, make_mesh(jax.devices()[:1])).state_shapes, np.random.default_rng(0)
    names = ("params", "ema_params", "batch_stats")
    noise = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)
    store.save(folder / "runs/stickers", {n: jax.tree.map(noise, getattr(shapes, n)) for n in names}, config, "noise")
    return folder


def test_there_is_python_to_run():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_runs_as_printed(number, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    names: dict = {}
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), names)
    printed = [float(value) for value in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    assert printed and np.isfinite(printed).all()
    if "model" in names:
        assert names["images"].shape == (1, 64) and names["model"].attention("docs/attention.png").shape == (8, 8)
    else:
        assert len(printed) == 3 and int(names["state"].step) == 3


def written():
    """What the README's commands write: the values of --out and --workdir."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^    ((?:python|launch|sbatch|make) (?:.*\\\n)*.*)", text, re.MULTILINE)
    return [name for command in commands for name in re.findall(r"--(?:out|workdir)[= ](\S+)", command)]


def test_what_the_commands_write_in_a_checkout_is_ignored_by_git():
    names = {name for name in written() if not name.startswith("/")}
    assert len(names) >= 8
    git = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *names]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout")
    ignored = subprocess.run(git, capture_output=True, text=True, check=False).stdout.split()
    assert set(ignored) == names
