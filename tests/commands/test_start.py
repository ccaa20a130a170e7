"""How commands start, and where they keep compiled programs."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from detailclip_jax import __main__ as door
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


def test_the_package_does_nothing_when_it_is_imported():
    code = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT), {*sys.modules}; import detailclip_jax; "
        "assert signal.getsignal(signal.SIGINT) is before[0]; "
        "print(*sorted(name for name in {*sys.modules} - before[1] if name.startswith('detailclip')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["detailclip_jax", "detailclip_jax.renamed", "detailclip_jax.version"]


@pytest.mark.parametrize("module", [command.module for command in door.COMMANDS.values()])
def test_every_module_of_a_command_starts_up_before_its_other_imports(module):
    lines = (ROOT / f"detailclip_jax/{module}.py").read_text().split('"""\n')[1].splitlines()
    assert [line for line in lines if line][:2] == [
        "from detailclip_jax.runtime import start",
        'if __name__ == "__main__":',
    ]


def test_a_command_by_its_module_starts_up(tmp_path):
    environ = os.environ | {"PYTHONPATH": f"{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environ.pop(start.CACHE, None)
    command = [sys.executable, "-m", "detailclip_jax.demo", "--help"]
    subprocess.run(command, env=environ, check=True, capture_output=True)
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
