"""Ctrl-C and SIGTERM: what ends at once, what is saved, forked children; what is said outside of the environment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from detailclip_jax.runtime import devices, signals
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.training import mesh

ROOT = Path(__file__).parents[2]


NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
CHECKED = pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.check), signal.SIGTERM])
HANDLED = """
import ctypes, os, signal, sys, threading, time
from detailclip_jax.runtime import signals
signals.handle()
def deaf():  # as a library that waits for a device: a mutex that is locked twice, which handlers do not interrupt
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)
"""


def ended(words, **options):
    """The exit code of a process and what it printed on standard error."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process inherits what is ignored
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    return done.returncode, done.stderr


def run_script(text):
    """Of a script in which both signals are handled."""
    return ended([sys.executable, "-c", HANDLED + text], cwd=ROOT)


@CHECKED
def test_a_signal_ends_the_process_where_an_exception_would_be_lost(number):
    """In a destructor, within a bare `except:`."""
    script = f"""
class Dropping:
    def __del__(self):
        try:
            os.kill(os.getpid(), {int(number)})
            time.sleep(5)
        except:
            pass
Dropping()
"""
    assert run_script(script) == (128 + number, "\ninterrupted\n")


@NUMBERS
@pytest.mark.parametrize(
    "words", [["-m", "detailclip_jax.evaluate"], pytest.param(["detailclip", "evaluate"], marks=pytest.mark.check)]
)
def test_a_signal_during_an_import_ends_a_command(tmp_path, words, number):
    """Before `errors.run` too.  Extensions turn an exception that is raised then into their own error, or crash."""
    (tmp_path / "detailclip").write_text("from detailclip_jax.__main__ import command\ncommand()\n")
    (tmp_path / "absl.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(5)\n"
        "except BaseException:\n    raise ImportError('while initializing the extension') from None\n"
    )
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = [sys.executable, *words, "--checkpoint=none"]
    assert ended(words, env=environ, cwd=tmp_path) == (128 + number, "\ninterrupted\n")


@pytest.mark.parametrize(
    "words", [["-m", "detailclip_jax.evaluate"], pytest.param(["detailclip", "evaluate"], marks=pytest.mark.check)]
)
def test_ctrl_c_ends_a_command_from_the_first_line_of_the_package(tmp_path, words):
    (tmp_path / "detailclip").write_text("from detailclip_jax.__main__ import command\ncommand()\n")
    (tmp_path / "typing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    assert ended([sys.executable, *words, "--checkpoint=none"], env=environ, cwd=tmp_path) == (130, "")


def test_ctrl_c_stays_that_of_a_program_that_imports_the_package(tmp_path):
    """Also of one that Python is still locating, as in `python -m tool`."""
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/__init__.py").write_text("import detailclip_jax\n")
    (tmp_path / "tool/__main__.py").write_text(
        "import signal\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    assert ended([sys.executable, "-m", "tool"], env=environ, cwd=tmp_path) == (0, "")


def test_a_signal_calls_what_cleans_up_and_prints_what_the_innermost_says():
    script = """
def fail():
    os.write(2, b"complains")
    raise OSError
def say(text):
    os.write(1, text.encode())
    return text
with signals.if_ended(lambda: say("outer")), signals.if_ended(fail), signals.if_ended(lambda: say("inner")):
    with signals.if_ended(lambda: say("over")):
        pass
    signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", HANDLED + script], capture_output=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, b"innerouter", b"\ninterrupted; inner\n")


@pytest.mark.check
@pytest.mark.parametrize("stream", [1, 2])
def test_a_signal_ends_a_process_whose_output_nobody_reads(stream):
    script = f"""
os.close({stream})
signal.raise_signal(signal.SIGTERM)
"""
    assert run_script(script)[0] == 143


@CHECKED
def test_a_signal_ends_a_process_whose_main_thread_hears_nothing(number):
    script = f"""
threading.Timer(0.3, os.kill, (os.getpid(), {int(number)})).start()
deaf()
"""
    assert run_script(script) == (128 + number, "\ninterrupted\n")


def test_a_signal_is_heard_in_a_process_with_many_open_files():
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [open(os.devnull) for _ in range(1100)]
signals.handle()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
deaf()
"""
    assert run_script(script) == (143, "\ninterrupted\n")


def test_no_signal_ends_one_of_several_processes_that_save_together(monkeypatch):
    passed_on, ended = [], []
    monkeypatch.setattr(signals, "_end", ended.append)
    with Interrupt() as asked:
        asked._several = True
        monkeypatch.setattr(os, "kill", lambda process, number: passed_on.append(number))
        for _ in range(2):
            time.sleep(signals.TOGETHER)
            signal.raise_signal(signal.SIGINT)
            asked.received = signal.SIGTERM  # as `reached` says once all processes agree
    assert passed_on == [signal.SIGTERM] * 2 and not ended


@CHECKED
def test_a_second_signal_ends_work_that_is_saved_and_two_at_once_are_one(number):
    """`timeout` sends its signal to its child and then to the group of both."""
    script = f"""
def kill(pause):
    for _ in range(3):
        time.sleep(pause)
        os.kill(os.getpid(), {int(number)})
with signals.Saving("saving") as asked:
    kill(0)
    assert asked.received == {int(number)} == asked.exit_code - 128
    os.write(2, b"goes on")
    threading.Thread(target=kill, args=(0.15,)).start()
    deaf()
"""
    said = f"\n{number.name}: saving (repeat to stop at once)\ngoes on\ninterrupted\n"
    assert run_script(script) == (128 + number, said)


def test_work_that_is_saved_stops_at_its_pause_points():
    signals.pause_point()
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with signals.Saving("saving") as asked:
        signals.pause_point()
        time.sleep(signals.TOGETHER)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(signals.Stopped) as stopped:
            signals.pause_point()
    signals.pause_point()
    assert stopped.value.exit_code == asked.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(before[1])) == before


def test_signals_after_the_work_are_for_those_who_handled_them_before():
    script = """
signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"heard "))
for _ in range(3):
    with signals.Saving("saving") as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked.received == signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)
    time.sleep(signals.TOGETHER)
"""
    code, said = run_script(script)
    assert code == 0 and said.count("heard ") == 3 and said.count("repeat") == 3


def test_a_signal_of_a_forked_child_is_its_own():
    """As in the pools of a library."""
    script = """
reader, writer = os.pipe()
if not (child := os.fork()):
    os.write(writer, b"here")
    time.sleep(60)
    os._exit(1)
os.read(reader, 4)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
time.sleep(0.1)
os.write(2, b"goes on")
"""
    assert run_script("import warnings\nwarnings.simplefilter('ignore')" + script) == (0, "goes on")


def test_results_are_printed_line_by_line():
    """A signal ends the process without a flush."""
    script = """
from detailclip_jax.runtime import start
start.check()
print("a result")
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", HANDLED + script], capture_output=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (143, b"a result\n")


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


@pytest.mark.check
@CHECKED
def test_a_signal_during_a_compilation_ends_the_command_with_its_code(number):
    """XLA's threads go on compiling while the process ends, and crash it if it takes its time."""
    script = f"""
import jax, jax.numpy as jnp
from detailclip_jax.runtime import errors
def deep(x):
    for number in range(400):
        x = jnp.sort(jnp.sin(x @ x + number), axis=number % 2)
    return x
lowered = jax.jit(deep).lower(jnp.ones((64, 64)))
def work():
    threading.Timer(0.3, os.kill, (os.getpid(), {int(number)})).start()
    lowered.compile()
sys.exit(errors.run(work, kept="nothing is kept"))
"""
    assert run_script(script) == (128 + number, "\ninterrupted; nothing is kept\n")
