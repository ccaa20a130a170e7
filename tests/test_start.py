"""How commands start: where they keep compiled programs, and large pages."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from detailclip_jax.runtime import start

ROOT = pathlib.Path(__file__).parents[1]


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


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """The calls that would replace this process, on a machine that offers large pages and has CPUs alone."""
    offered, calls = tmp_path / "enabled", []
    offered.write_text("always [madvise] never\n")
    monkeypatch.setattr(start, "OFFERED", offered)
    monkeypatch.setattr(start, "PLUGINS", ("no_such_plugin",))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.41")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def test_a_command_starts_again_once_with_large_pages(restarts, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "detailclip_jax.main", "--workdir=a b"])
    environ = {"HOME": "/home/x"}
    start.use_large_pages(environ)
    start.use_large_pages(environ)  # in the new process
    program, arguments, given = restarts.pop()
    assert not restarts and given == {"HOME": "/home/x", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert [program, *arguments] == [sys.executable] * 2 + ["-u", "-m", "detailclip_jax.main", "--workdir=a b"]


@pytest.mark.parametrize(
    ("environ", "system"),
    [
        ({"GLIBC_TUNABLES": ""}, "always [madvise] never"),
        ({"JAX_PLATFORMS": "cuda"}, "always [madvise] never"),
        ({}, "[always] madvise never"),  # has large pages already
        ({}, "always madvise [never]"),
    ],
)
def test_no_command_starts_again_where_large_pages_are_not_for_it(restarts, environ, system):
    start.OFFERED.write_text(system)
    start.use_large_pages(environ)
    assert not restarts


def test_an_accelerator_s_plugin_keeps_the_process(restarts, monkeypatch):
    monkeypatch.setattr(start, "PLUGINS", ("json",))
    start.use_large_pages({})
    assert not restarts
    start.use_large_pages({"JAX_PLATFORMS": "cpu"})
    assert restarts


def test_other_systems_keep_the_process(restarts, monkeypatch):
    monkeypatch.setattr(start, "OFFERED", pathlib.Path("/no/such/file"))
    start.use_large_pages({})
    assert not restarts


def test_a_command_has_large_pages_and_its_own_arguments():
    environ = {name: value for name, value in os.environ.items() if name != start.TUNABLES} | {"JAX_PLATFORMS": "cpu"}
    code = "import os, sys; print(sys.argv, os.environ.get('GLIBC_TUNABLES'))"
    code = f"import os; from detailclip_jax.runtime import start; start.use_large_pages(os.environ); {code}"
    command = [sys.executable, "-c", code, "--flag", "two words"]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True, cwd=ROOT)
    expected = start.LARGE_PAGES if start._large_pages_offered() else None
    assert done.stdout.strip() == f"['-c', '--flag', 'two words'] {expected}"


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
