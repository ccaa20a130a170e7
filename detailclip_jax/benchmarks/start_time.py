"""Seconds from the start of the command `main` to the end of its first step: without and with kept programs.

Every round has a new folder, in which the first command finds no compiled program and the second one those of
the first.  Both are new processes, each with a workdir in that folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.benchmarks import cost_table, timing
from detailclip_jax.runtime import errors, signals, start
from detailclip_jax.runtime.progress import Console

FIELDS = ("total_steps=1", "log_every=1", "evaluate_every=0", "evaluate_at_end=False", "logging.wandb=")
STATES = ("cold", "cached")
ALL = "all"
Seconds = dict[str, tuple[float, float]]  # wall and CPU seconds of every part, and of ALL


class Kept(NamedTuple):
    """The compiled programs in a folder."""

    count: int
    num_bytes: int


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts both commands of every round; prints the table and returns the records for JSON."""
    console = Console(stream=arguments.progress)
    rounds: list[dict[str, Seconds]] = []
    kept = Kept(0, 0)
    for number in range(arguments.rounds):
        made = tempfile.TemporaryDirectory(prefix="detailclip-start-")
        with made as folder, signals.if_ended(made.cleanup):
            times = {}
            for state in STATES:
                console.live(f"round {number + 1}/{arguments.rounds}: {state}")
                times[state] = once(arguments.config, arguments.set, Path(folder), state)
            sizes = [file.stat().st_size for file in Path(folder).glob("programs/*-cache")]  # no files of access times
            kept = Kept(len(sizes), sum(sizes))
        rounds.append(times)
    console.end_live()
    print(text(arguments.config, rounds, kept))
    return records(arguments.config, rounds, kept)


def once(config: str, settings: Sequence[str], folder: Path, name: str) -> Seconds:
    """Runs one step of a config; programs are kept in `folder`, the workdir is `name` in it.

    Raises ValueError for what the command refuses, and RunError if it fails.
    """
    file = folder / f"{name}.jsonl"
    fields = [f"--config.{setting}" for setting in (*settings, *FIELDS)]
    words = [sys.executable, "-m", "detailclip_jax.main", f"--config={config}", f"--workdir={folder / name}", *fields]
    began = time.time()
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(words, env=environment(os.environ, folder, file), **pipes) as process,
        signals.if_ended(process.kill),
    ):
        said = process.communicate()[1].strip()
    if process.returncode == errors.USAGE_ERROR:
        raise ValueError(said.removeprefix("error: "))
    if process.returncode:
        raise errors.RunError(f"{' '.join(words[1:])} ended with {process.returncode}:\n{said[-2000:]}")
    return parts_of(start.times_in(file), began)


def environment(variables: Mapping[str, str], folder: Path, file: Path) -> dict[str, str]:
    """The variables of the command: the folder of its compiled programs, which is used, and the file of the times."""
    usual = {name: value for name, value in variables.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    return start.DEFAULTS | usual | {start.CACHE: str(folder / "programs"), start.TIMES: str(file)}


def parts_of(ends: Mapping[str, tuple[float, float]], began: float) -> Seconds:
    """Seconds between the ends of the parts, and of all; `began` is the time of the start, with no CPU second used."""
    seconds, before = {}, (began, 0.0)
    for part, end in ends.items():
        seconds[part] = end[0] - before[0], end[1] - before[1]
        before = end
    return seconds | {ALL: (before[0] - began, before[1])}


def medians(rounds: Sequence[Mapping[str, Seconds]], state: str, part: str) -> list[timing.MedianRange]:
    """Wall and CPU seconds of a part over all rounds."""
    return [timing.median_range(values) for values in zip(*(times[state][part] for times in rounds))]


def text(config: str, rounds: Sequence[Mapping[str, Seconds]], kept: Kept) -> str:
    """The table: one row per part."""
    header = ["", *(f"{state}, {clock}" for state in STATES for clock in ("wall", "CPU"))]
    rows = []
    for part in rounds[0][STATES[0]]:
        values = [value for state in STATES for value in medians(rounds, state, part)]
        rows.append([part, *(str(value) if len(rounds) > 1 else f"{value.median:.3g}" for value in values)])
    lines = [
        f"seconds from the start of main --config={config} to the end of its first step, {len(rounds)} "
        f"round{'s' * (len(rounds) != 1)}" + (": median (range)" if len(rounds) > 1 else ""),
        cost_table.table([header, *rows]),
        f"cold: no compiled program is kept; cached: the {kept.count} that the cold command kept "
        f"({cost_table.bytes_text(kept.num_bytes)})",
    ]
    return "\n\n".join(lines)


def records(config: str, rounds: Sequence[Mapping[str, Seconds]], kept: Kept) -> list[dict[str, Any]]:
    """One JSON record for each state and part: medians of the rounds."""
    made = []
    for state in STATES:
        for part in rounds[0][state]:
            wall, cpu = medians(rounds, state, part)
            made.append(
                {
                    "command": "start",
                    "config": config,
                    "state": state,
                    "part": part,
                    "seconds": wall.median,
                    "cpu_seconds": cpu.median,
                    "rounds": len(rounds),
                    "kept_programs": kept.count,
                    "kept_bytes": kept.num_bytes,
                }
            )
    return made
