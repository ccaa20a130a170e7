"""How commands start, and where they keep compiled programs."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from detailclip_jax.runtime import start

ROOT = pathlib.Path(__file__).parents[2]


def test_programs_are_kept_in_the_user_s_cache(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    start.keep_programs(environ)
    folder = pathlib.Path(environ[start.CACHE])
    assert folder.is_dir() and folder.parent == tmp_path / "detailclip_jax"
    assert environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.5"


def test_what_the_environment_says_stays(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path), start.CACHE: "elsewhere"}
    start.keep_programs(environ)
    assert environ[start.CACHE] == "elsewhere" and not any(tmp_path.iterdir())


def test_another_processor_has_another_folder(tmp_path, monkeypatch):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    here = start.programs_folder(environ)
    monkeypatch.setattr(start, "_instructions", lambda: "flags: sse2")
    assert start.programs_folder(environ) != here and start.programs_folder(environ).parent == here.parent


@pytest.mark.parametrize("blocked", ["file", "read only", "of another user"])
def test_without_a_folder_commands_compile_anew(tmp_path, blocked, monkeypatch):
    cache = tmp_path / "cache"
    if blocked == "file":
        cache.write_text("no folder")
    elif blocked == "read only":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: cache.parent.stat().st_uid + 1)
    environ = {"XDG_CACHE_HOME": str(cache)}
    start.keep_programs(environ)
    assert environ == {"XDG_CACHE_HOME": str(cache)}


def test_without_a_home_commands_compile_anew(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", fail)
    environ = {}
    start.keep_programs(environ)
    assert environ == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("python -m detailclip_jax", True),
        ("python -u -X dev -m detailclip_jax.main --workdir=a", True),
        ("python -um detailclip_jax.main", True),
        ("python -mdetailclip_jax.main", True),
        ("python -m host -m detailclip_jax", False),
        ("python -m pdb -m detailclip_jax.main", False),
        ("python -m detailclip_jax_plots", False),
        ("python script.py detailclip_jax", False),
        ("python", False),
    ],
)
def test_a_command_is_a_module_of_this_package(arguments, expected):
    assert start.is_command(arguments.split()) is expected


def run_module(folder, module):
    environ = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(folder / "cache")}
    environ.pop(start.CACHE, None)
    command = [sys.executable, "-m", module, "--version"]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def test_a_command_by_its_module_starts_up_and_another_program_that_imports_us_does_not(tmp_path):
    for name in ("host", "detailclip_host"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import detailclip_jax")
        (tmp_path / name / "__main__.py").write_text("import sys; print(sys.excepthook is sys.__excepthook__)")
        assert run_module(tmp_path, name) == "True\n"
    assert not (tmp_path / "cache").exists()
    assert run_module(tmp_path, "detailclip_jax").startswith("detailclip_jax ")
    assert (tmp_path / "cache").is_dir()


@pytest.mark.check
def test_a_command_finds_the_programs_of_the_one_before(tmp_path):
    """jax writes a file per program; the second command reads it and writes none."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    code = "from detailclip_jax.runtime import start; start.check(); import jax; jax.jit(lambda x: 2 * x)(1.0)"
    written = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environ, check=True, cwd=ROOT)
        written.append({path.name: path.stat()[stat.ST_MTIME] for path in tmp_path.rglob("*-cache")})
    assert written[0] and written[0] == written[1]
