"""How the processes of a run find each other, and what is said when one is lost."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from launching import environment, free_port, started

from detailclip_jax.runtime import processes
from detailclip_jax.runtime.processes import check_joined, join, launched_as_several, leaving_at_once, named_processes


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
    ],
)
def test_launchers_are_recognised(variables, several):
    assert launched_as_several(variables) is several


@pytest.mark.parametrize(
    ("index", "variables", "first"),
    [
        (None, {}, True),
        (0, {"SLURM_PROCID": "3"}, True),
        (1, {}, False),
        (None, {"SLURM_PROCID": "3"}, False),
        (None, {"JAX_PROCESS_ID": "0", "TPU_WORKER_ID": "0"}, True),
        (None, {"TPU_WORKER_ID": "1"}, False),
    ],
)
def test_the_first_process_is_known_before_jax(index, variables, first):
    assert processes.is_first(index, variables) is first


def test_devices_of_several_processes_need_them_to_have_met():
    check_joined(1, joined=False)
    check_joined(16, joined=True)
    with pytest.raises(ValueError, match="16 processes, which are not connected; give --distributed"):
        check_joined(16, joined=False)


def test_nothing_is_waited_for_longer_than_it_is_said(monkeypatch):
    met = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **times: met.update(times, given=given))
    join("host:1", 2, 1, environment={})
    expected = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 120}
    assert met == {"given": ("host:1", 2, 1), **expected}


def test_processes_are_named_by_flags_before_the_environment():
    variables = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    assert named_processes(None, None, None, {}) is None
    assert named_processes(None, None, None, variables) == ("host:1", 4, 0)
    assert named_processes("host:2", 2, 1, variables) == ("host:2", 2, 1)
    with pytest.raises(ValueError, match="must be given together; give all three"):
        named_processes("host:2", 2, None, {})


@pytest.mark.parametrize(
    "given, message",
    [
        (("host:1", 2, 2), "--process-id 2 of --num-processes 2: processes are numbered from 0"),
        (("host", 2, 0), "--coordinator 'host' must be HOST:PORT"),
        ((":80", 2, 0), "--coordinator ':80' must be HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be_meant(given, message):
    with pytest.raises(ValueError, match=message):
        named_processes(*given, {})


ENDS = {"well": "pass", "by an error": "raise SystemExit(3)", "by an abort": "os.abort()", "by a kill": "os.kill(0, 9)"}


@pytest.mark.parametrize("how", ENDS)
def test_last_words_are_said_where_a_process_cannot(how):
    end = ENDS[how].replace("kill(0", "kill(os.getpid()")
    code = (
        f"import os\nfrom detailclip_jax.runtime.processes import last_words\nwith last_words('farewell \"$0\"'): {end}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60)
    expected = {"well": 0, "by an error": 3, "by an abort": -signal.SIGABRT, "by a kill": -signal.SIGKILL}[how]
    assert run.returncode == expected
    assert ('farewell "$0"' in run.stderr) == (how in ("by an abort", "by a kill"))


BEGIN = """
import sys
from detailclip_jax.runtime import processes

def make():
    if sys.argv[2] == "1" and sys.argv[3] == "fails":
        raise FileNotFoundError("there is no folder")
    return "made"

processes.join(sys.argv[1], 2, int(sys.argv[2]))
try:
    print(processes.agreed(make))
except (ValueError, FileNotFoundError) as error:
    print("error:", error)
"""


def test_a_launcher_that_jax_does_not_know_is_answered_with_the_flags(monkeypatch):
    def initialize(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="give --coordinator, --num-processes and --process-id"):
        join(environment={"OMPI_COMM_WORLD_SIZE": "2"})


def test_numbers_of_more_than_31_bits_are_gathered_whole(monkeypatch):
    """jax makes an int64 array an int32 one; a confusion matrix counts all pixels of an evaluation set."""
    cut = lambda mine: np.stack([np.asarray(mine).astype(np.int32)] * 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", cut)
    numbers = np.array([[3_000_000_000, -1], [2**62, 0]])
    np.testing.assert_array_equal(processes.gathered(numbers), [numbers, numbers])
    np.testing.assert_array_equal(processes.gathered(np.array(7)), [7, 7])


@pytest.mark.check
@pytest.mark.parametrize("how", [pytest.param("works", marks=pytest.mark.slow), "fails"])
def test_where_one_process_cannot_begin_none_does(tmp_path, how):
    address, variables = f"127.0.0.1:{free_port()}", environment(tmp_path)
    runs = [started([sys.executable, "-c", BEGIN, address, index, how], variables) for index in ("0", "1")]
    first, second = (run.communicate(timeout=60)[0] for run in runs)  # else they wait for each other for five minutes
    if how == "works":
        assert "made" in first and "made" in second
    else:
        assert "error: process 1 cannot start" in first
        assert "error: there is no folder" in second


FAIL = """
import sys
from detailclip_jax.runtime import processes

processes.HEARTBEAT = 4
processes.join(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
with processes.leaving_at_once(), processes.together():
    multihost_utils.process_allgather(1)
    if sys.argv[2] == "1":
        raise {error}
    multihost_utils.process_allgather(1)
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit(), 0, ""),
        (SystemExit(None), 0, ""),
        (SystemExit(0), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("no room left"), 1, "no room left\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_one_that_leaves_says_what_python_would(monkeypatch, capsys, error, code, said):
    """The statuses of sys.exit, and no traceback for Ctrl-C."""
    ended = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", ended.append)
    with leaving_at_once():
        raise error
    assert ended == [code] and capsys.readouterr().err == said


def test_alone_the_error_goes_on():
    with pytest.raises(SystemExit, match="text"), leaving_at_once(lambda error: pytest.fail("nobody waits")):
        raise SystemExit("text")


@pytest.mark.check
@pytest.mark.parametrize(
    ("error", "code"), [pytest.param("SystemExit(3)", 3, marks=pytest.mark.slow), ("ZeroDivisionError", 1)]
)
def test_one_that_fails_leaves_at_once_and_the_other_says_so(tmp_path, error, code):
    address, variables = f"127.0.0.1:{free_port()}", environment(tmp_path)
    script = FAIL.format(error=error)
    first, second = (started([sys.executable, "-c", script, address, index], variables) for index in ("0", "1"))
    output, _ = second.communicate(timeout=60)  # else it waits for the other for two minutes
    assert second.returncode == code and ("ZeroDivisionError" in output) == (code == 1)
    output, _ = first.communicate(timeout=60)
    assert first.returncode not in (0, None)
    assert "error: process 0 of 2 ended before the run was complete" in output
