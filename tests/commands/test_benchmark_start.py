"""The benchmark of the start: parts out of their ends, what the command is given, refusals, and two real commands."""

import json
import pathlib
import sys
import threading

import launching
import pytest

from detailclip_jax import benchmark
from detailclip_jax.benchmarks import start_time as measured
from detailclip_jax.runtime import errors, signals, start

SMALLEST = f"--config={launching.ROOT / 'tests/configs/smallest.py'}"
PARTS = ["imports", "data and shapes", "initial state", "compiled step", "first step", "all"]


def test_seconds_of_parts_lie_between_their_ends():
    ends = {"imports": (102.0, 1.5), "initial state": (105.0, 3.0)}
    assert measured.parts_of(ends, began=100.0) == {
        "imports": (2.0, 1.5),
        "initial state": (3.0, 1.5),
        "all": (5.0, 3.0),
    }


def test_the_first_end_of_a_part_counts(tmp_path, monkeypatch):
    file = tmp_path / "times.jsonl"
    start.part_ended("imports")  # no file is named
    monkeypatch.setenv(start.TIMES, str(file))
    for part in ("imports", "first step", "first step"):
        start.part_ended(part)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert start.times_in(file) == {line["part"]: (line["time"], line["cpu"]) for line in lines[:2]}


def test_the_command_uses_a_cache_of_its_own():
    user = {start.CACHE: "/home/me/programs", "JAX_ENABLE_COMPILATION_CACHE": "false", "HOME": "/home/me"}
    given = measured.environment(user, pathlib.Path("there"), pathlib.Path("there/cold.jsonl"))
    own = {start.CACHE: "there/programs", start.TIMES: "there/cold.jsonl", "HOME": "/home/me"}
    assert given == start.DEFAULTS | own


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Makes a shell script the interpreter of the measured command."""

    def script(text):
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(file))

    return script


@pytest.mark.parametrize(("end", "exit_code"), [("exit 2", 2), ("exit 1", 1), ("kill -KILL $$", 1)])
def test_a_command_that_fails_says_why(end, exit_code, interpreter, capsys):
    interpreter(f"echo error: model.sise is unknown >&2\n{end}")
    assert benchmark.main(["start", SMALLEST, "--rounds=1"]) == exit_code
    assert "model.sise is unknown" in capsys.readouterr().err


def test_a_signal_ends_the_measured_command_and_removes_its_folder(interpreter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    interpreter("exec sleep 60")
    threading.Timer(0.5, signals.clean_up).start()
    assert benchmark.main(["start", SMALLEST, "--rounds=1"]) == errors.RUN_ERROR
    assert "ended with -9" in capsys.readouterr().err and [file.name for file in tmp_path.iterdir()] == ["python"]


@pytest.mark.slow
def test_cold_and_cached_starts_leave_nothing_behind(tmp_path, monkeypatch, capsys):
    """The second command reads the programs of the first one; neither touches the user's cache or workdir."""
    variables = launching.QUICK | {"PYTHONPATH": str(launching.ROOT), "XDG_CACHE_HOME": str(tmp_path / "user")}
    variables |= {"TMPDIR": str(tmp_path / "temporary"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)  # where TMPDIR says
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(["start", SMALLEST, "--rounds=1", "--json=found.json"]) == 0
    found = json.loads(pathlib.Path("found.json").read_text())
    assert [each["part"] for each in found] == 2 * PARTS
    assert all(each["seconds"] >= 0 and each["cpu_seconds"] >= 0 and each["kept_programs"] for each in found)
    cold, cached = (
        {each["part"]: each["cpu_seconds"] for each in found if each["state"] == s} for s in measured.STATES
    )
    assert sum(cold.values()) == pytest.approx(2 * cold["all"])
    assert cached["compiled step"] < cold["compiled step"]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["found.json"]
    assert "cached, CPU" in capsys.readouterr().out
