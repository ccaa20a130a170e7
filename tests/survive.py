"""Kills, stops and damaged checkpoints: a tiny run has to survive all of them, or to say what is wrong.

    python tests/survive.py --kills=100 --stops=30 --damaged=100 --seed=0

kills: SIGKILL at a random moment, some in a row, then the same command to the end: its numbers and its last state equal
those of a run that nothing disturbed.  stops: SIGTERM or SIGINT, once or twice, at a random moment, also in an
evaluation: ended within 10 s with the signal's status, then as above.  damaged: one file of the newest checkpoint's
folder is deleted, cut, emptied, flipped or renamed, or the folder renamed: the restore names it and takes the one
before, and `checkpoint.load` refuses it with a message.  Prints tried, refused, failed, slowest and most memory; exit
status 1 where anything failed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
STEPS = 16
FIELDS = {
    "total_steps": STEPS,
    "checkpoint_every": 3,
    "evaluate_every": 5,
    "max_to_keep": 3,
    "evaluators": '{"kept_objects": {"num_scenes": 16}}',
}
MEASURED = ("images_per_second", "data_wait")  # times, which no two runs share
LIMIT = 10.0  # seconds from a signal to the end
NOISE = ("Traceback", "Exception ignored", "Event loop is closed")


class Case(NamedTuple):
    """One trial: what was done, what was wrong about the answer ("" if nothing), whether it was refused, seconds."""

    what: str
    wrong: str
    refused: bool
    seconds: float


def command(workdir: Path) -> list[str]:
    """The tiny run."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    config = f"--config={ROOT}/tests/configs/smallest.py"
    return [sys.executable, "-m", "detailclip_jax.main", config, f"--workdir={workdir}", *fields]


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, and programs that all runs share."""
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONUNBUFFERED": "1"}
    shared = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | quick | shared | {"PYTHONPATH": str(ROOT)}


class Trial:
    """Runs of one workdir, against the undisturbed one."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng, self.environment = folder, rng, environment(folder / "cache")
        self.reference = folder / "reference"
        self.duration = 0.0

    def undisturbed(self) -> None:
        """Makes the reference, twice: the second one says how long a run takes whose programs are compiled."""
        for name in ("warm", "reference"):
            began = time.monotonic()
            code, output = self.finish(self.folder / name)
            self.duration = time.monotonic() - began
            if code:
                raise SystemExit(f"the undisturbed run failed:\n{output}")

    def start(self, workdir: Path) -> "subprocess.Popen[str]":
        """The command, running."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command(workdir), env=self.environment, cwd=ROOT, **pipes)

    def finish(self, workdir: Path) -> tuple[int, str]:
        """The command to its end: exit status and output."""
        process = self.start(workdir)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def differs(self, workdir: Path) -> str:
        """How the finished run differs from the undisturbed one, "" if it does not."""
        for name in ("metrics", "evaluations"):
            if lines(workdir / f"{name}.jsonl") != lines(self.reference / f"{name}.jsonl"):
                return f"{name}.jsonl differs"
        if sums(workdir) != sums(self.reference):
            return "the last state differs"
        return ""

    def kill(self) -> Case:
        """SIGKILL, up to three times in a row, then to the end."""
        workdir, began = self.folder / "killed", time.monotonic()
        shutil.rmtree(workdir, ignore_errors=True)
        moments = [self.rng.uniform(0, self.duration) for _ in range(self.rng.randint(1, 3))]
        for moment in moments:
            process = self.start(workdir)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=moment)
            process.kill()
            process.communicate()
        code, output = self.finish(workdir)
        wrong = f"status {code}: {output[-300:]}" if code else noise(output) or self.differs(workdir)
        return Case(f"killed after {', '.join(f'{m:.2f} s' for m in moments)}", wrong, False, time.monotonic() - began)

    def stop(self) -> Case:
        """One or two signals, then to the end."""
        workdir = self.folder / "stopped"
        shutil.rmtree(workdir, ignore_errors=True)
        number, twice = self.rng.choice([signal.SIGTERM, signal.SIGINT]), self.rng.random() < 0.5
        moment = self.rng.uniform(0, self.duration)
        process = self.start(workdir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moment)
        began = time.monotonic()
        for _ in range(1 + twice):
            process.send_signal(number)
            time.sleep(self.rng.uniform(0, 0.3))
        output, _ = process.communicate(timeout=600)
        seconds = time.monotonic() - began
        what = f"{number.name}{' twice' if twice else ''} after {moment:.2f} s"
        expected = (0, 128 + number, -number)  # the last before the command's own handler
        wrong = noise(output) or (f"status {process.returncode}" if process.returncode not in expected else "")
        wrong = wrong or (f"{seconds:.1f} s to the end" if seconds > LIMIT else "")
        wrong = wrong or self.unfinished(workdir)
        code, output = self.finish(workdir)
        wrong = wrong or (f"status {code}: {output[-300:]}" if code else noise(output) or self.differs(workdir))
        return Case(what, wrong, False, seconds)

    def unfinished(self, workdir: Path) -> str:
        """Half checkpoints, which a signal leaves none of."""
        left = [entry.name for entry in (workdir / "checkpoints").glob("*tmp*")]
        return f"left {left}" if left else ""


def lines(file: Path) -> list[dict]:
    """The objects of a log without what was measured in seconds."""
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


def sums(workdir: Path) -> dict:
    """The checksums of all arrays of the last state."""
    run = json.loads((workdir / f"checkpoints/{STEPS}/run/metadata").read_text())
    return run["checksums"]


def noise(output: str) -> str:
    """A traceback in what was printed."""
    return next((f"prints {word!r}: {output[-600:]}" for word in NOISE if word in output), "")


# Damage: each takes a file and does one thing to it.


def delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(max(file.stat().st_size, 1))])


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def flip(file: Path, rng: random.Random) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    file.write_bytes(damaged)


def rename(file: Path, rng: random.Random) -> None:
    file.rename(file.with_name(f"{file.name}-{rng.randrange(100)}"))


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (delete, truncate, empty, flip, rename)


def damaged(run: Path, num: int, rng: random.Random) -> Iterator[Case]:
    """Damages the newest checkpoint of a run in `num` ways; each file comes before one comes again."""
    shapes = state_shapes(run)
    steps = sorted(int(entry.name) for entry in (run / "checkpoints").iterdir())
    newest, before = steps[-1], steps[-2]
    names = sorted(str(f.relative_to(run)) for f in (run / f"checkpoints/{newest}").rglob("*") if f.is_file())
    rng.shuffle(names)
    for number in range(num):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            shutil.copytree(run, copy)
            began = time.monotonic()
            if number % 10 == 9:
                what, newest_now = "the folder renamed", newest + 1 + rng.randrange(50)
                (copy / f"checkpoints/{newest}").rename(copy / f"checkpoints/{newest_now}")
            else:
                damage, newest_now = DAMAGES[number % len(DAMAGES)], newest
                name = names[(number // len(DAMAGES) + number) % len(names)]
                what = f"{damage.__name__} {name}"
                damage(copy / name, rng)
            wrong = restored_wrongly(copy, newest_now, before, shapes)
            yield Case(what, wrong, True, time.monotonic() - began)


def state_shapes(run: Path) -> Any:
    """What a run restores."""
    import jax

    from detailclip_jax.config import run_config
    from detailclip_jax.training import experiment
    from detailclip_jax.training.mesh import make_mesh

    return experiment.build(run_config.read(run / "config.json"), make_mesh(jax.devices()[:1])).state_shapes


def restored_wrongly(run: Path, newest: int, before: int, shapes: Any) -> str:
    """What is wrong about the answer to a damaged newest checkpoint, "" if nothing is."""
    from detailclip_jax.training import checkpoint

    said, printed = [], io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            checkpoint.load(run)
            return "load took the damaged checkpoint"
        except checkpoint.CheckpointError as error:
            refusal = str(error)
        with contextlib.closing(checkpoint.Checkpoints(run, 3, warn=said.append)) as checkpoints:
            restored = checkpoints.restore(shapes)
    if f"step {newest} " not in refusal or "\n" in refusal:
        return f"load says: {refusal}"
    if restored is None or restored.step != before:
        return f"restored {restored and restored.step} in place of {before}"
    if len(said) != 2 or f"checkpoint {newest} in " not in said[0]:
        return f"the restore says: {said}"
    return noise(printed.getvalue())


def report(kind: str, cases: list[Case]) -> int:
    """Prints the numbers of one kind and its failures; how many failed."""
    failed = [case for case in cases if case.wrong]
    slowest = max(cases, key=lambda case: case.seconds)
    refused = sum(case.refused and not case.wrong for case in cases)
    print(
        f"{kind}: {len(cases)} tried, {refused} refused, {len(failed)} failed; slowest {slowest.seconds:.1f} s "
        f"({slowest.what}); most memory {memory():,.0f} MiB",
        flush=True,
    )
    for case in failed:
        print(f"  FAILED {case.what}: {case.wrong}", flush=True)
    return len(failed)


def memory() -> float:
    """The most that this process or one of its children held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        * unit
        / 2**20
    )


def main(argv: list[str] | None = None) -> int:
    """The command: 0, or 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 100), ("stops", 30), ("damaged", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), random.Random(given.seed))
        trial.undisturbed()
        print(f"undisturbed: {trial.duration:.1f} s", flush=True)
        kinds = {
            "kills": lambda: [trial.kill() for _ in range(given.kills)],
            "stops": lambda: [trial.stop() for _ in range(given.stops)],
            "damaged": lambda: list(damaged(trial.reference, given.damaged, trial.rng)),
        }
        for kind, run in kinds.items():
            if getattr(given, kind):
                failed += report(kind, run())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
