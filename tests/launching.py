"""Runs of `main` as processes of their own, shared by the tests of several processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from detailclip_jax.runtime.metric_files import read_lines

ROOT = Path(__file__).parents[1]
SMALLEST = "--config=tests/configs/smallest.py"
# One device, and little compilation: the flags of conftest without its devices.
QUICK = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def environment(cache, **variables):
    """Little compilation, and that shared between the runs."""
    fast = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        **QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | fast | variables


def free_port():
    """A port that nobody uses, for process 0."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(arguments, environment):
    """A process that writes what it says into one pipe."""
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_lines(workdir, count, runs):
    """Until metrics.jsonl has so many lines, or one of the runs has ended."""
    file = workdir / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= count) and all(run.poll() is None for run in runs):
        time.sleep(0.02)


def stopped(arguments, workdir, cache, lines=4, **variables):
    """Starts a run, sends SIGTERM when it has logged some steps, returns (exit code, output)."""
    run = started([*arguments, f"--workdir={workdir}"], environment(cache, **variables))
    wait_for_lines(workdir, lines, [run])
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=300)
    return run.returncode, output


def losses(workdir):
    """Loss by step, as logged."""
    return {line["step"]: line["loss"] for line in read_lines(workdir / "metrics.jsonl")}
