"""Several processes on this machine train one run, with the numbers of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detailclip_jax.metrics import read_lines

ROOT = Path(__file__).parents[1]
CONFIG = "--config=tests/configs/smallest.py:method=clip"


def environment(cache):
    """Little compilation, and that shared between the runs."""
    return os.environ | {
        "PYTHON": sys.executable,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def stopped(arguments, workdir, cache, **variables):
    """Starts a long run, sends SIGTERM when it has logged four steps, returns (exit code, output)."""
    flags = (CONFIG, "--config.total_steps=100000", f"--workdir={workdir}")
    run = subprocess.Popen(
        [*arguments, *flags],
        cwd=ROOT,
        env=environment(cache) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    file = workdir / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 4) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=300)
    return run.returncode, output


def first_losses(workdir):
    return [(line["step"], line["loss"]) for line in read_lines(workdir / "metrics.jsonl")[:4]]


def test_two_processes_equal_one_and_stop_together(tmp_path):
    """2 processes of 1 device = 1 process of 2 devices, to 1e-5; a signal stops both at one step, saved."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = [sys.executable, "-m", "detailclip_jax.main"]
    code, output = stopped(one, alone, tmp_path, JAX_NUM_CPU_DEVICES="2")
    assert code == 128 + signal.SIGTERM, output
    code, output = stopped(["launch/local.sh", "2"], together, tmp_path)
    assert code == 128 + signal.SIGTERM, output
    for process in (0, 1):
        assert f"--num_processes=2 --process_id={process}" in output
    (line,) = (line for line in output.splitlines() if "saved at step" in line)
    step = int(line.split("saved at step ")[1].split()[0])
    assert (together / f"checkpoints/{step}").is_dir()
    (steps, losses), (same_steps, expected) = (zip(*first_losses(workdir)) for workdir in (together, alone))
    assert steps == same_steps == (1, 2, 3, 4)
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arguments", [[], ["0"], ["two"], [CONFIG]])
def test_usage(arguments):
    result = subprocess.run(["launch/local.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, "usage: launch/local.sh N" in result.stderr) == (2, True)


def test_flags_of_several_processes_belong_together(tmp_path):
    command = [sys.executable, "-m", "detailclip_jax.main", CONFIG, "--num_processes=2"]
    result = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "error: --coordinator, --num_processes and --process_id belong together" in result.stderr
