"""Ctrl-C and SIGTERM of commands: never lost, one message; and what is said outside of the environment."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from detailclip_jax import benchmark, compare
from detailclip_jax.run import compare as runs
from detailclip_jax.runtime import devices
from detailclip_jax.runtime.signals import Stopped, held_back, prompt, taken
from detailclip_jax.training import mesh

ROOT = Path(__file__).parents[1]


def swallow(number):
    """As a library with a bare `except:` does."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except BaseException:
        return


class Dropping:
    """As a destructor does, whose exceptions Python prints and forgets."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_at_once(number, code):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stopped, prompt():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert isinstance(stopped.value, Stopped) and stopped.value.exit_code == code
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("lose", [swallow, Dropping], ids=["bare except", "destructor"])
def test_a_signal_that_is_dropped_comes_again_within_the_block(monkeypatch, lose, number, code):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest's keeps the exception
    gc.disable()
    try:
        with pytest.raises(Stopped) as stopped, prompt():
            lose(number)
            for _ in range(100):
                time.sleep(0.05)
            pytest.fail("the block came to its end")
    finally:
        gc.enable()
    assert stopped.value.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_destructor_or_a_garbage_collection_prints_nothing(number):
    script = f"""
import gc, os, sys, time
from detailclip_jax.runtime.signals import Stopped, prompt
class Loud:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.01)
class Other:
    def __del__(self):
        raise ValueError("another")
try:
    with prompt():
        Other()
        Loud()
        time.sleep(20)
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number
    assert "Stopped" not in done.stderr and "Loud" not in done.stderr and "ValueError: another" in done.stderr


def test_a_signal_that_an_import_turns_into_its_own_error_is_a_stop():
    """An extension that a signal interrupts while it is imported raises an ImportError."""
    with pytest.raises(Stopped) as stop, prompt():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            raise ImportError("Encountered an error while initializing the extension.") from None
    assert stop.value.exit_code == 143


def test_what_handles_an_interrupt_is_not_interrupted_again():
    """Cleaning up takes longer than the look whether the interrupt was lost."""
    steps = []
    with pytest.raises(KeyboardInterrupt, match="half written"), prompt():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            for step in range(10):
                time.sleep(0.05)
                steps.append(step)
            raise KeyboardInterrupt("half written") from None
    assert len(steps) == 10


def test_ctrl_c_that_work_takes_as_its_end_is_not_raised_again_and_the_next_is():
    with pytest.raises(Stopped), prompt():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            assert taken(interrupt)
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was lost")
    with prompt():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            assert taken(interrupt)


def test_sigterm_ends_the_command_whatever_work_takes():
    with pytest.raises(Stopped) as stopped, prompt():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            assert not taken(interrupt)
        time.sleep(5)
    assert stopped.value.exit_code == 143


def test_ctrl_c_waits_while_workers_start_and_never_reaches_them():
    child = [sys.executable, "-c", "import time; time.sleep(1); print('whole')"]
    with pytest.raises(Stopped), prompt():
        with held_back():
            worker = subprocess.Popen(child, stdout=subprocess.PIPE, text=True)
            os.kill(os.getpid(), signal.SIGINT)
            worker.send_signal(signal.SIGINT)
            started = worker.communicate()[0]
        time.sleep(5)
    assert started == "whole\n"


def test_outside_of_the_environment_the_way_in_is_named():
    command = [sys.executable, "-S", "-m", "detailclip_jax.main", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {sys.executable} does not have jax, grain, absl")
    assert (
        "make env" in result.stderr
        and "install detailclip_jax" not in result.stderr
        and "Traceback" not in result.stderr
    )


def test_make_tells_a_python_that_is_not_there_from_an_older_one(tmp_path):
    command = ["make", "test", "PYTHON=/not/there", f"VENV={tmp_path}/venv"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "there is no /not/there here" in result.stdout and "older" not in result.stdout


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend cuda\nmore")])
def test_a_platform_that_is_not_here_is_no_damaged_checkpoint(monkeypatch, error):
    def none():
        raise error

    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match=r"^JAX_PLATFORMS=cuda: jax finds no such device.*unset JAX_PLATFORMS"):
        devices.first_device()
    with pytest.raises(devices.NoDevice):
        mesh.make_mesh()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "command, place, work",
    [(compare, runs, "train"), (benchmark, benchmark, "measure")],
    ids=["compare", "benchmark"],
)
def test_commands_that_measure_hear_a_signal_that_was_dropped(monkeypatch, capsys, command, place, work, number, code):
    def busy(*arguments):
        swallow(number)
        time.sleep(5)
        pytest.fail("the signal was lost")

    monkeypatch.setattr(place, work, busy)
    monkeypatch.setattr(runs, "check", lambda *arguments: None)
    assert command.main(["--methods=clip"] if command is compare else ["data"]) == code
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_compilation_ends_the_command_with_its_code(number, code):
    """XLA's threads go on compiling while the process ends; without `leave` they crashed it."""
    script = f"""
import os, threading
import jax, jax.numpy as jnp
from detailclip_jax.runtime import errors, exit
def deep(x):
    for number in range(400):
        x = jnp.sort(jnp.sin(x @ x + number), axis=number % 2)
    return x
lowered = jax.jit(deep).lower(jnp.ones((64, 64)))
def work():
    threading.Timer(1, os.kill, (os.getpid(), {int(number)})).start()
    lowered.compile()
    return 0
exit.leave(errors.run(work))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip() == "interrupted"


@pytest.mark.check
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_second_signal_ends_a_run_whose_main_thread_hears_nothing(tmp_path, number):
    """As while XLA compiles: a call that handlers do not interrupt, here of a mutex that is locked twice."""
    script = f"""
import ctypes
from detailclip_jax.runtime.interrupt import Interrupt
with Interrupt(at_once=lambda: open({str(tmp_path / "removed")!r}, "w").close()):
    print("ready", flush=True)
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)  # for ever
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 128 + number and time.monotonic() - began < 10
    assert "stopped at once" in said and (tmp_path / "removed").exists()


@pytest.mark.check
def test_two_signals_at_once_are_one():
    """`timeout` sends its signal to its child and then to the group of both."""
    script = """
import os, signal, time
from detailclip_jax.runtime.interrupt import Interrupt
with Interrupt() as interrupt:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2.5)
    assert interrupt.received == signal.SIGTERM
print("here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "here\n", done.stderr


@pytest.mark.check
def test_one_signal_or_two_after_the_run_end_nothing():
    script = """
import os, signal, time
from detailclip_jax.runtime.interrupt import Interrupt
signal.signal(signal.SIGTERM, lambda *_: None)
for _ in range(3):
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert interrupt.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(2.5)
print("here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "here\n", done.stderr
