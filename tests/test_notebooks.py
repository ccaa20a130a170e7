"""The notebooks: they are what their sources say, their outputs are small, and they run from top to bottom."""

import contextlib
import importlib.util
import json
import re
import sys
from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
import nbformat
import pytest
from launching import QUICK
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from tiny import noise_state, on_one_device

from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.training import failures
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.session import run_record

COLABS = Path(__file__).parent.parent / "colabs"
NAMES = [path.stem for path in sorted(COLABS.glob("[0-9]*.py"))]
LARGEST = 400 * 2**10  # bytes of a notebook
STEPS = 1  # of every training of the notebooks, here
WORKING_DIRECTORY = Path(__file__).parent  # its configs/stickers.py has fewer images and blocks
NEXT = "import gc\ngc.freeze()\n%reset -f"  # forgets the names of a notebook, without a search among all objects
KERNEL = """
c.IPKernelApp.exec_lines = ["import gc; gc.set_threshold(50_000)"]
c.InlineBackend.print_figure_kwargs = {"bbox_inches": None, "dpi": 40}
"""


@pytest.fixture(scope="module")
def build():
    """The script colabs/build.py, as a module."""
    spec = importlib.util.spec_from_file_location("build_notebooks", COLABS / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_draws_in_its_page_whatever_ran_before(build, name):
    """One kernel runs all of them in the tests: the setting of one would serve the others."""
    cells = build.notebook_of(COLABS / f"{name}.py").cells
    assert any("%matplotlib inline" in cell.source for cell in cells)


def test_there_is_a_notebook_per_source():
    assert len(NAMES) == 5
    assert sorted(path.stem for path in COLABS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_the_cells_of_its_source(build, name):
    made, stored = build.notebook_of(COLABS / f"{name}.py"), nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
    nbformat.validate(stored)
    cells = [(cell.cell_type, cell.source) for cell in made.cells]
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == cells, "python colabs/build.py writes it"
    assert f"blob/main/colabs/{name}.ipynb" in stored.cells[0].source


def test_one_constant_names_the_repository_and_a_new_name_keeps_the_outputs(build, monkeypatch):
    """The sources have none; with another constant the stored notebook keeps every output."""
    for name in NAMES:
        source, file = COLABS / f"{name}.py", COLABS / f"{name}.ipynb"
        assert re.findall(r"github(?:\.com)?/([\w./-]+?)(?=/blob|\")", source.read_text()) == ["REPOSITORY"] * 2
        stored = nbformat.read(file, as_version=4)
        monkeypatch.setattr(build, "REPOSITORY", "somebody/a.fork")
        renamed = build.with_old_outputs(build.notebook_of(source), file)
        monkeypatch.undo()
        text = "".join(cell.source for cell in renamed.cells)
        assert text.count("github.com/somebody/a.fork") == 1 and "/github/somebody/a.fork/blob/" in text
        assert "OWNER" not in text
        assert [cell.get("outputs") for cell in renamed.cells] == [cell.get("outputs") for cell in stored.cells]


def test_notebooks_that_share_a_run_train_it_for_the_same_steps_and_continue_it():
    sources = [path.read_text() for path in COLABS.glob("0[1-4]_*.py")]
    assert len({re.search(r'"STEPS", (\d+)', text)[1] for text in sources}) == 1
    assert not any(".exists()" in text.partition("training.train")[0] for text in sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_complete_and_small(name):
    file = COLABS / f"{name}.ipynb"
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert file.stat().st_size < LARGEST
    assert cells[0].outputs and cells[-1].outputs and "on 1 x" in printed  # the device
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work)/", printed)


def sections(name):
    """(texts, code, images) of each section of a notebook; `images` counts the stored outputs that are pictures."""
    cells = nbformat.read(COLABS / f"{name}.ipynb", as_version=4).cells
    starts = [number for number, cell in enumerate(cells) if cell.source.startswith("## ")]
    for start, end in zip(starts, [*starts[1:], len(cells)]):
        of = lambda kind, cells=cells[start:end]: [cell for cell in cells if cell.cell_type == kind]
        outputs = [output for cell in of("code") for output in cell.outputs]
        texts, code = ("\n".join(cell.source for cell in of(kind)) for kind in ("markdown", "code"))
        yield texts, code, sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_equation_of_the_paper_has_the_function_that_computes_it_and_a_figure():
    tags = []
    for text, code, images in sections("02_inside_detailclip"):
        tags += [int(number) for tag in re.findall(r"\\tag\{([\d, ]+)\}", text) for number in tag.split(",")]
        named = re.findall(r"`(?:losses|models|methods|training)\.\w+\.(\w+)`", text)
        assert not [name for name in named if not re.search(rf"\b{name}(?:_of)?\(", code)], text
        assert "$$" not in text or (named and images), text
    assert tags == list(range(1, 11))


@pytest.fixture(scope="module")
def outputs(build, tmp_path_factory):
    """The outputs of every notebook by name: one kernel runs all of them, and forgets its names in between.

    The last notebook trains; the model of the others is stored.  After an error the kernel goes on with the next cell.
    """
    runs, profile = (tmp_path_factory.mktemp(name) for name in ("runs", "ipython"))
    store("detailclip", runs / "quickstart")
    store("clip", runs / "quickstart_clip")
    (profile / "profile_default").mkdir()
    (profile / "profile_default/ipython_kernel_config.py").write_text(KERNEL)
    small = {"STEPS": str(STEPS), "HEAD_STEPS": str(STEPS), "RUNS": str(runs), "PYTHONPATH": str(COLABS.parent)}
    small["HF_HUB_OFFLINE"] = "1"  # the first notebook takes its own model
    small |= {"IPYTHONDIR": str(profile), **QUICK}
    parts = {name: build.notebook_of(COLABS / f"{name}.py").cells for name in NAMES}
    together = build.notebook_of(COLABS / f"{NAMES[0]}.py")
    together.cells = []
    for cells in parts.values():
        together.cells += [nbformat.v4.new_code_cell(NEXT), *cells]
    for number, cell in enumerate(together.cells):
        cell["id"], cell.metadata["tags"] = f"cell-{number}", ["raises-exception"]
    with pytest.MonkeyPatch.context() as patched:
        for variable, value in small.items():
            patched.setenv(variable, value)
        patched.setattr(build, "FOLDER", WORKING_DIRECTORY)
        patched.delenv("MODEL", raising=False)
        with contextlib.suppress(
            CellTimeoutError, DeadKernelError
        ):  # the notebook has no outputs, and so have later ones
            build.run(together)
    return {name: [output for cell in cells for output in cell.get("outputs", [])] for name, cells in parts.items()}


def store(method, workdir):
    """The run that a notebook would train first: its last checkpoint, of noise, and losses."""
    config = run_config.load(f"{WORKING_DIRECTORY}/configs/stickers.py:method={method}")
    config.total_steps, config.log_every, config.evaluate_at_end = STEPS, 1, False
    with on_one_device():
        run = pretraining.prepare(config, workdir)
    failures.claim(run)
    with closing(Checkpoints(workdir)) as checkpoints:
        state = noise_state(run.experiment).replace(step=jnp.int32(STEPS))
        checkpoints.save(STEPS, state, {"examples": STEPS * config.batch_size}, run_record(run))
    line = {"step": STEPS, "loss": 1.0, **dict.fromkeys(run.experiment.method.terms, 1.0)}
    (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.check
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(outputs, name):
    if name == "03_to_pytorch":
        for library in ("torch", "timm", "open_clip", "transformers"):
            if not importlib.util.find_spec(library):
                pytest.skip(f"{library} is not installed")
    assert outputs[name], "a cell took too long, or the kernel died, in this notebook or an earlier one"
    errors = ["\n".join(output.traceback) for output in outputs[name] if output.output_type == "error"]
    assert not errors, errors[0]
    images = [output for output in outputs[name] if "image/png" in output.get("data", {})]
    assert "x cpu" in outputs[name][0].text
    assert len(images) >= {"01_quickstart": 4, "02_inside_detailclip": 12, "03_to_pytorch": 0}.get(name, 1)
