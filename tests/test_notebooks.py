"""The notebooks run from top to bottom, on a run of one step's worth of state."""

from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from detailclip_jax.config import default
from detailclip_jax.config.run_config import to_json
from detailclip_jax.evaluation import report
from detailclip_jax.training import experiment
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.mesh import make_mesh

COLABS = Path(__file__).parent.parent / "colabs"


def demo_workdir(workdir):
    """What `make demo` leaves, before it has learned anything."""
    config = default()
    config.data.source, config.batch_size, config.total_steps = "stickers", 8, 1
    config.model.size, config.model.image_size, config.model.context_length = "tiny", 64, 16
    config.views.crops.large.size = 64
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, built.init(0), data={}, run={"config": to_json(config)})
    checkpoints.close()
    report.write(workdir, {"zero_shot/ema/top1": 0.5}, config, step=1)


@pytest.mark.check
def test_demo(tmp_path, monkeypatch):
    demo_workdir(tmp_path)
    monkeypatch.setenv("WORKDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(COLABS.parent))
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(COLABS / "demo.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(COLABS)}}).execute()
    table, figure, guesses = (cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code")
    assert "zero-shot top-1" in table[0]["data"]["text/markdown"]
    assert figure[0]["data"]["image/png"]
    assert len(guesses[0]["text"].strip().splitlines()) == 6
