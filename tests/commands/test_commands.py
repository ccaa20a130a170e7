"""The command `detailclip` and the modules behind it."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from detailclip_jax import __main__ as door
from detailclip_jax import __version__, transfer
from detailclip_jax import main as training
from detailclip_jax.runtime import errors

ROOT = Path(__file__).parents[2]


def test_the_list_names_every_command(capsys):
    assert door.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in door.COMMANDS)


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_has_a_module(name):
    assert importlib.util.find_spec(f"detailclip_jax.{door.COMMANDS[name].module}")


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    assert door.main(["trian"]) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert "'trian'" in error and "train" in error


def test_the_version(capsys):
    assert door.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name, flag", [("train", "--workdir"), ("import", "--from"), ("transfer", "--score S")])
def test_a_command_has_its_own_help(name, flag):
    """Started as the console script starts it: then `__main__` is a file that defines no flags."""
    code = f"import sys; sys.argv[1:] = [{name!r}, '--help']; import detailclip_jax.__main__ as door; door.main()"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and flag in done.stdout


def test_the_fields_of_transfer_are_those_of_its_own_configs(capsys):
    with pytest.raises(SystemExit) as end:
        training.parse_flags(["transfer", "--help-config"], transfer.usage())
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("fields of segmentation") and "transfer/coco_cascade" in said
    assert "head.name = 'upernet'" in said and "masking.ratio" not in said


def test_the_console_script_outside_of_the_environment_names_the_way_in():
    """-S hides the installed packages; the list of commands needs none of them."""
    code = "import sys; import detailclip_jax.__main__ as door; sys.exit(door.main(sys.argv[1:]))"
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    run = lambda *given: subprocess.run([sys.executable, "-S", "-c", code, *given], **options)
    assert run().returncode == 0
    done = run("doctor")
    assert done.returncode == 2 and "does not have jax, grain, absl" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_folder(tmp_path):
    """Built from an sdist, so that both hold the configs, and installed into an environment without packages.

    That environment finds the dependencies in the one of the tests, as a path behind its own packages.
    """
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("configs/baselines/slip.py") for name in archive.getnames())
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XLA_FLAGS": ""}
    bin, site = environment_of(tmp_path / "environment", wheel, variables)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = {"cwd": empty, "env": variables, "capture_output": True, "text": True, "timeout": 1800}
    where = subprocess.run([bin / "python", "-c", "import detailclip_jax; print(detailclip_jax.__file__)"], **run)
    assert Path(where.stdout.strip()) == site / "detailclip_jax/__init__.py", where.stderr
    assert {file.name for file in (site / "detailclip_jax/page/assets").iterdir()} == {
        "page.html",
        "page.css",
        "page.js",
    }
    done = subprocess.run([bin / "detailclip", "train", "--config=stickers", "--config.total_steps=2"], **run)
    assert done.returncode == 0, done.stderr
    assert (empty / "runs/stickers/checkpoints/2").is_dir() and (empty / "runs/stickers/report.md").exists()


def environment_of(folder, wheel, variables):
    """A virtual environment with the wheel alone, and the tests' packages on its path; its programs and packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    bin = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", bin / "python", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True, env=variables, timeout=300)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([bin / "python", "-c", code], env=variables, text=True).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin, site


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_constraints_are_exact_versions_that_setup_allows(python):
    """Other versions of Python ignore them; none contradicts setup.py."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if f"== '{python}'" in line]
    pinned = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    assert pinned and all(str(r.specifier)[:2] == "==" for r in pinned.values())
    wanted = [Requirement(text) for text in importlib.metadata.requires("detailclip_jax") or ()]
    for requirement in wanted:
        if pin := pinned.get(canonicalize_name(requirement.name)):
            (version,) = (part.version for part in pin.specifier)
            assert requirement.specifier.contains(version, prereleases=True), requirement
