"""Start-up of every command, before its other imports: signals, needed packages, folder of compiled programs.

    from detailclip_jax.runtime import start

    if __name__ == "__main__":
        start.begin()  # before the other imports

The console script `detailclip` does the same in `__main__.py`.
A training command notes when each part of its start has ended, for `python -m detailclip_jax.benchmark start`.

Imports only the standard library.
"""

import hashlib
import io
import json
import os
import platform
import sys
import time
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

from detailclip_jax.runtime import caches, signals

NEEDED = ("jax", "grain", "absl")
OUTSIDE = """error: {python} does not have {missing}, which detailclip_jax needs. In the checkout, make the
environment with make env and take its Python: . .venv/bin/activate (or .venv/bin/python -m ...). Without make:
pip install -e '.[demo]' there, in an environment of your own"""
USAGE_ERROR = 2
CACHE = "JAX_COMPILATION_CACHE_DIR"  # jax reads it when it is imported
TIMES = "DETAILCLIP_START_TIMES"  # names the file of the times; without it nothing is written
DEFAULTS = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}  # jax's default leaves out most of a tiny model


def begin() -> None:
    """Starts a command: from here on a signal ends it with its exit code, without a traceback.  Exits as `check`."""
    signals.handle()
    check()


def check() -> None:
    """Exits with a message if a required package is missing, and names jax's folder of compiled programs.

    Standard output is written line by line from here on, as a signal ends the process without a flush.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(OUTSIDE.format(python=sys.executable, missing=", ".join(missing)), file=sys.stderr)
        sys.exit(USAGE_ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    keep_programs(os.environ)


def keep_programs(environ: MutableMapping[str, str]) -> None:
    """Lets jax keep compiled programs between commands, unless the environment names a folder or none.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off.  Where the
    folder cannot be created or belongs to another user, every command compiles anew.
    """
    if CACHE in environ:
        return
    try:
        folder = programs_folder(environ)
        folder.mkdir(0o700, parents=True, exist_ok=True)
        is_trusted = folder.stat().st_uid == os.getuid()  # jax runs what it reads there
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if is_trusted and os.access(folder, os.W_OK):
        environ[CACHE] = str(folder)
        for name, value in DEFAULTS.items():
            environ.setdefault(name, value)


def programs_folder(environ: MutableMapping[str, str]) -> Path:
    """The folder of this machine's compiled programs: a program for a CPU runs on CPUs with the same instructions."""
    return caches.folder(environ) / f"programs-{hashlib.sha256(_instructions().encode()).hexdigest()[:12]}"


def _instructions() -> str:
    """The CPU's instruction sets as Linux lists them; elsewhere the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def part_ended(part: str) -> None:
    """Appends a line to the file of TIMES: the part, the time of its end, and this process's CPU seconds until then."""
    if file := os.environ.get(TIMES):
        with Path(file).open("a") as lines:
            lines.write(json.dumps({"part": part, "time": time.time(), "cpu": time.process_time()}) + "\n")


def times_in(file: Path) -> dict[str, tuple[float, float]]:
    """Returns the time and the CPU seconds at the first end of every part, in order of time."""
    ends: dict[str, tuple[float, float]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        ends.setdefault(line["part"], (line["time"], line["cpu"]))
    return ends
