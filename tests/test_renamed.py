"""Former names, which pages and scripts of users have, still work, and warn with the present name."""

import ast
import importlib
import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from detailclip_jax.renamed import PACKAGE, RENAMED
from detailclip_jax.version import __version__

ROOT = pathlib.Path(__file__).parents[1] / "detailclip_jax"
PRESENT = {PACKAGE + former: PACKAGE + present for former, (present, _) in RENAMED.items()}


def is_module(name):
    return ROOT.joinpath(*name.removeprefix(PACKAGE).split(".")).with_suffix(".py").is_file()


MODULES = [former for former, present in PRESENT.items() if is_module(present)]


@pytest.fixture(autouse=True)
def fresh():
    """A former module warns when it is first imported in a process."""
    for name in MODULES:
        sys.modules.pop(name, None)


def names_of(module):
    """The public functions and classes that a module defines."""
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    return [
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]


@pytest.mark.parametrize("former", MODULES)
def test_a_former_module_has_the_names_of_the_present_one(former):
    with pytest.warns(DeprecationWarning, match=f"{former} is now {PRESENT[former]}; version") as warned:
        found = importlib.import_module(former)
    assert len(warned) == 1
    present = importlib.import_module(PRESENT[former])
    assert all(getattr(found, name) is getattr(present, name) for name in names_of(present))
    with pytest.raises(AttributeError, match="nothing"):
        _ = found.nothing
    everything = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of functions that went elsewhere
        exec(f"from {former} import *", everything)
    assert {*names_of(present)} <= everything.keys() and {*names_of(present)} <= {*dir(found)}


@pytest.mark.filterwarnings("ignore:.* is now:DeprecationWarning")
@pytest.mark.parametrize("former", [former for former in PRESENT if former not in MODULES])
def test_a_former_function_is_the_present_one(former):
    (place, name), (there, present) = (each.rsplit(".", 1) for each in (former, PRESENT[former]))
    module = importlib.import_module(place)
    with pytest.warns(DeprecationWarning, match=f"{former} is now {PRESENT[former]}; version") as warned:
        found = getattr(module, name)
    assert warned[0].filename == __file__
    assert found is getattr(importlib.import_module(there), present)
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_a_script_reads_the_warning_at_its_own_line(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from detailclip_jax.losses import contrastive\n"
        "from detailclip_jax.methods.gram_anchor import gram_anchor\n"
        "from detailclip_jax.training.ema import update_center\n"
        "contrastive.byol_loss\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    places = [
        line.split(": ")[0].removeprefix(f"{script}:") for line in done.stderr.splitlines() if str(script) in line
    ]
    assert places == ["1", "2", "2", "3", "4"]


def test_a_former_name_goes_after_two_minor_versions():
    minor = lambda version: tuple(map(int, version.split(".")[:2]))
    assert all(minor(__version__) < minor(until) for _, until in RENAMED.values()), "remove the rows that have ended"
