"""Feeds made-up hostile inputs to the package, and counts what becomes of them.

    python tests/hostile.py --num=10000 --seed=0
    python tests/hostile.py --num=200 --seed=3 --kinds=tar,table
    python tests/hostile.py --seed=0 --only=1234          one input again, with its traceback

An input is refused with a message, or accepted; everything else is a fault: an exception of a type that no command
turns into a message ("failed"), a message that is empty ("silent"), more than 10 seconds, more than 1 GB beyond what
the worker held before, or a worker that dies.  Inputs depend on the seed and their number alone.  Exit status: 1 with
faults.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
MAX_SECONDS, MAX_BYTES = 10.0, 10**9
START_SECONDS = 300.0  # of a worker: its imports
POLL = 0.05
FAULTS = ("failed", "silent", "slow", "large", "died")


class Result(NamedTuple):
    """What became of an input."""

    kind: str
    number: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    num_bytes: int = 0


def resident(process: int | str = "self", field: str = "VmRSS") -> int:
    """Bytes that a process holds, or held at most ("VmHWM"); 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Starts the highest resident size anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def fed(seed: int, number: int, names: Sequence[str]) -> Result:
    """Makes an input, feeds it, and says what became of it."""
    import numpy as np
    from hostile_inputs import KINDS

    name = names[number % len(names)]
    kind, rng = KINDS[name], np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        kind.make(rng, Path(folder))
        reset_peak()
        before, began = resident(), time.perf_counter()
        try:
            outcome, detail = "accepted", repr(kind.feed(Path(folder)))[:80]
        except kind.refusals() as error:
            outcome, detail = ("refused" if str(error).strip() else "silent"), str(error)[:200]
        except Exception:
            outcome, detail = "failed", traceback.format_exc()
        detail = detail.encode(errors="backslashreplace").decode(errors="replace")  # not every text can be pickled
        seconds, num_bytes = time.perf_counter() - began, max(0, resident(field="VmHWM") - before)
    return judged(Result(name, number, outcome, detail, seconds, num_bytes))


def judged(result: Result) -> Result:
    """The result, as a fault where it cost too much."""
    if result.seconds > MAX_SECONDS:
        return result._replace(outcome="slow")
    return result._replace(outcome="large") if result.num_bytes > MAX_BYTES else result


def work(connection: Any, seed: int, names: Sequence[str]) -> None:
    """A worker: numbers come in, results go out; None ends it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.simplefilter("ignore")
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    warm_up(names)
    connection.send(None)
    while (number := connection.recv()) is not None:
        connection.send(fed(seed, number, names))


def warm_up(names: Sequence[str]) -> None:
    """Imports and caches, which are no input's cost."""
    for number in range(len(names)):
        with contextlib.suppress(Exception):
            fed(0, number, names)


class Worker:
    """A process that is fed, watched and started again where it dies."""

    def __init__(self, seed: int, names: Sequence[str]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, seed, names), daemon=True)
        self.process.start()
        theirs.close()
        self.names = names
        self.alive = self.answered(START_SECONDS, sys.maxsize) == ""
        if not self.alive:
            raise RuntimeError("a worker did not start")
        self.connection.recv()

    def answered(self, seconds: float, num_bytes: int) -> str:
        """Waits for an answer: "", or why there is none."""
        limit, end = resident(self.process.pid or 0) + num_bytes, time.perf_counter() + seconds
        while not self.connection.poll(POLL):
            if not self.process.is_alive():
                return "died"
            if resident(self.process.pid or 0) > limit:
                return "large"
            if time.perf_counter() > end:
                return "slow"
        return ""

    def feed(self, number: int) -> Result:
        """The result of an input; the worker is not alive behind one that had to be stopped."""
        began = time.perf_counter()
        self.connection.send(number)
        with contextlib.suppress(EOFError, OSError):
            fault = self.answered(2 * MAX_SECONDS, 2 * MAX_BYTES)
            if not fault:
                return self.connection.recv()
            self.stop()
            return Result(self.names[number % len(self.names)], number, fault, "", time.perf_counter() - began)
        self.stop()
        return Result(self.names[number % len(self.names)], number, "died", f"exit code {self.process.exitcode}")

    def stop(self) -> None:
        """Ends the process."""
        self.alive = False
        self.process.kill()
        self.process.join()


def results(num: int, seed: int, names: Sequence[str], num_workers: int) -> list[Result]:
    """The results of inputs 0 to num - 1."""
    numbers, found, lock = iter(range(num)), [], threading.Lock()

    def take() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    def serve() -> None:
        worker = Worker(seed, names)
        for number in take():
            worker = worker if worker.alive else Worker(seed, names)
            result = worker.feed(number)
            if result.outcome == "slow":  # other work on the machine is no fault: the faster of two
                worker = worker if worker.alive else Worker(seed, names)
                result = min(result, worker.feed(number), key=lambda each: each.seconds)
            found.append(result)
            if result.outcome in FAULTS:
                print(described(result), flush=True)
        worker.stop()

    threads = [threading.Thread(target=serve) for _ in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) != num:
        raise RuntimeError(f"{len(found)} of {num} inputs were fed")
    return sorted(found, key=lambda result: result.number)


def table(found: Sequence[Result], names: Sequence[str]) -> str:
    """One line per kind."""
    lines = [
        f"{'kind':<12}{'tried':>7}{'refused':>9}{'accepted':>10}{'failed':>8}{'silent':>8}"
        f"{'slowest s':>11}{'most MB':>9}"
    ]
    for name in [*names, "all"]:
        own = [result for result in found if name in (result.kind, "all")]
        count = {
            outcome: sum(result.outcome == outcome for result in own) for outcome in ("refused", "accepted", *FAULTS)
        }
        failed = sum(count[outcome] for outcome in FAULTS if outcome != "silent")
        slowest = max((result.seconds for result in own), default=0.0)
        most = max((result.num_bytes for result in own), default=0) / 1e6
        lines.append(
            f"{name:<12}{len(own):>7,}{count['refused']:>9,}{count['accepted']:>10,}{failed:>8,}{count['silent']:>8,}"
            f"{slowest:>11.2f}{most:>9.0f}"
        )
    return "\n".join(lines)


def described(result: Result) -> str:
    """A fault, with what is known about it."""
    cost = f"{result.seconds:.1f} s, {result.num_bytes / 1e6:.0f} MB"
    return f"{result.kind} {result.number}: {result.outcome}, {cost}\n{result.detail}\n"


def faults(found: Sequence[Result]) -> list[Result]:
    """The results that should not be."""
    return [result for result in found if result.outcome in FAULTS]


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--num", type=int, default=10_000, help="how many inputs (10,000)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--kinds", default=",".join(names), help=f"of {', '.join(names)}; all by default")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    made.add_argument("--only", type=int, help="the number of one input")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the faults."""
    from hostile_inputs import KINDS

    given = parser(list(KINDS)).parse_args(arguments)
    names = given.kinds.split(",")
    if unknown := set(names) - set(KINDS):
        print(f"error: unknown kinds {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}", file=sys.stderr)
        return 2
    if given.only is not None:
        print(fed(given.seed, given.only, names))
        return 0
    found = results(given.num, given.seed, names, given.workers)
    print(table(found, names))
    return int(bool(faults(found)))


if __name__ == "__main__":
    sys.exit(main())
