"""Which cores a process may use, and what XLA's compiler writes on standard error."""

import os
import subprocess
import sys
from contextlib import closing

import pytest
from absl import flags

from detailclip_jax.data import workers
from detailclip_jax.runtime import devices

ALARM = """
import contextlib, os, signal, subprocess, sys, time
import jax, jax.numpy as jnp
from detailclip_jax.runtime.devices import without_alarm

def deep(x):
    for _ in range(3000):
        x = jnp.sin(x @ x)
    return x

lowered = jax.jit(deep).lower(jnp.ones((8, 8)))
pause = f"sleep 1; kill -STOP {os.getpid()}; sleep 125; kill -CONT {os.getpid()}"
with (without_alarm if sys.argv[1] == "quiet" else contextlib.nullcontext)(), subprocess.Popen(["sh", "-c", pause]):
    lowered.compile()
"""


@pytest.fixture
def levels(monkeypatch):
    """The levels that XLA's log is set to."""
    from jaxlib import utils

    found = []
    monkeypatch.setattr(utils, "absl_set_min_log_level", found.append)
    return found


def test_xla_s_log_is_quiet_in_the_context_and_as_before_after_an_error(levels, monkeypatch):
    monkeypatch.setenv(devices.LEVEL, str(devices.USUAL))
    with pytest.raises(KeyError), devices.without_alarm():
        assert levels == [devices.FATAL]
        raise KeyError
    assert levels == [devices.FATAL, devices.USUAL]


def test_a_level_that_the_user_has_set_stays(levels, monkeypatch):
    monkeypatch.setenv(devices.LEVEL, "0")
    with devices.without_alarm():
        pass
    assert levels == []


@pytest.mark.slow
@pytest.mark.parametrize("state", ["quiet", "usual"])
def test_a_compilation_of_minutes_prints_no_alarm(state):
    """The process sleeps through the two minutes after which XLA raises it."""
    command = [sys.executable, "-c", ALARM, state]
    environ = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert ("Very slow compile" in done.stderr) == (state == "usual"), done.stderr


def test_the_affinity_counts_where_there_is_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert devices.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert devices.usable_cores() == 12


@pytest.mark.parametrize("asked, cores, used", [(8, 64, 8), (8, 4, 3), (8, 2, 0), (0, 64, 0)])
def test_no_more_workers_than_cores(monkeypatch, asked, cores, used):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert workers.usable_workers(asked) == used


def test_threads_do_not_mark_the_flags_of_the_process_as_parsed():
    parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.unparse_flags()
    try:
        with closing(workers.Prefetched([1, 2])) as items:
            assert list(items) == [1, 2]
        assert not flags.FLAGS.is_parsed()
    finally:
        if parsed:
            flags.FLAGS.mark_as_parsed()
