"""Kills, stops and damaged checkpoints: a tiny run has to survive all of them, or to say what is wrong.

    python tests/survive.py --kills=100 --stops=100 --damaged=100 --signals=100 --seed=0

kills: SIGKILL at random moments, up to nine in a row, then the same command to the end: its numbers and its last
state equal those of a run that nothing disturbed.  stops: SIGTERM or SIGINT, once or twice, at random moments, also
in an evaluation, up to three in a row: each ends within 10 s with the signal's status, then as above; what a second
signal leaves of a checkpoint is gone at the end.  Status 0 is right only where the run was complete before the
signal.  damaged: one file of the newest checkpoint's folder is deleted, cut, emptied, flipped or renamed, or the
folder renamed: the restore names it and takes the one before, and `checkpoint.load` refuses it with a message.
signals: SIGTERM or SIGINT to evaluate, embed, transfer and prepare, from their first millisecond on, to the process
or to its group; see `Commands`.

No process may hold more than 1 GB beyond one that has imported the command and opened its data.  That, what `import
jax` alone takes, and the undisturbed run are measured first and printed: the tiny run's state is 61 MB, the rest are
imports, drawings, traced and compiled programs and copies of the state while it is saved or restored.  glibc gives each
thread an arena, and XLA has many threads, so processes run with one arena (MALLOC_ARENA_MAX=1); otherwise a fifth more
is held, which no live object needs.

Prints tried, refused, failed, slowest and most memory of each kind; exit status 1 where anything failed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
STEPS = 12
FIELDS = {
    "total_steps": STEPS,
    "checkpoint_every": 3,
    "evaluate_every": 5,
    "max_to_keep": 3,
    "evaluators": '{"kept_objects": {"num_scenes": 16}}',
}
MEASURED = ("images_per_second", "data_wait")  # times, which no two runs share
LIMIT = 10.0  # seconds from a signal to the end
MAX_BYTES = 10**9  # of a process, beyond its imports and data
OPENED = f"""from detailclip_jax import main
from detailclip_jax.config import run_config
from detailclip_jax import pretraining
pretraining.open_source(run_config.load("{ROOT}/tests/configs/smallest.py"))"""
IN_A_ROW = {"kills": 9, "stops": 3}
COMPLETE = "on classes:"  # begins the last line of a complete run
NOISE = ("Traceback", "Exception ignored", "Event loop is closed", "Fatal", "leaked")
PARTING = 3.0  # seconds until the workers of a process that has ended have noticed it


class Case(NamedTuple):
    """One trial: what was done, what was wrong about the answer ("" if nothing), whether it was refused, seconds."""

    what: str
    wrong: str
    refused: bool
    seconds: float


class Ended(NamedTuple):
    """How a process ended: exit status, what it printed, and the most memory that it held, in bytes."""

    code: int
    output: str
    num_bytes: int


def command(workdir: Path) -> list[str]:
    """The tiny run."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    config = f"--config={ROOT}/tests/configs/smallest.py"
    return [sys.executable, "-m", "detailclip_jax.main", config, f"--workdir={workdir}", *fields]


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, and programs that all runs share."""
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONUNBUFFERED": "1"}
    shared = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | quick | shared | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}


class Process:
    """A command whose output goes to a file, which can be read while it runs."""

    def __init__(self, words: list[str], environment: dict[str, str], log: Path):
        self.log = log
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process inherits what is ignored
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                words, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        signal.signal(signal.SIGINT, before)

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def ended_within(self, seconds: float) -> Ended | None:
        """Waits; None if it still runs."""
        end = time.monotonic() + seconds
        while True:
            number, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if number:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                unit = 1 if sys.platform == "darwin" else 1024
                return Ended(self.process.returncode, self.output, usage.ru_maxrss * unit)
            if time.monotonic() >= end:
                return None
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """Sends a signal; nothing if it ended already but was not waited for."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> bool:
        """Sends a signal to the process and its workers, as a terminal does; whether there was any of them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
            return True
        return False

    def left_behind(self) -> bool:
        """Whether a worker goes on after its process has ended; such workers are killed."""
        end = time.monotonic() + PARTING
        while self.signal_group(0) and time.monotonic() < end:
            time.sleep(0.02)
        return self.signal_group(signal.SIGKILL)


class Trial:
    """Runs of one workdir, against the undisturbed one."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng, self.environment = folder, rng, environment(folder / "cache")
        self.reference = folder / "reference"
        self.duration = 0.0
        self.jax, self.opened = 0, 0  # bytes of `import jax`, and of all imports with the data
        self.most = 0  # bytes beyond `opened`, of any process since it was set to 0

    def undisturbed(self) -> None:
        """Makes the reference, twice: the second one says how long a run takes whose programs are compiled."""
        self.jax, self.opened = (
            self.wait(Process([sys.executable, "-c", script], self.environment, self.folder / "log")).num_bytes
            for script in ("import jax", OPENED)
        )
        for name in ("warm", "reference"):
            began = time.monotonic()
            ended = self.finish(self.folder / name)
            self.duration = time.monotonic() - began
            if ended.code:
                raise SystemExit(f"the undisturbed run failed:\n{ended.output}")
        self.most = ended.num_bytes - self.opened

    def start(self, workdir: Path) -> Process:
        """The command, running."""
        return Process(command(workdir), self.environment, self.folder / "log")

    def wait(self, process: Process, seconds: float = 600) -> Ended:
        """The end of a process, whose memory counts; RuntimeError if it does not end."""
        ended = process.ended_within(seconds)
        if ended is None:
            process.signal(signal.SIGKILL)
            process.ended_within(60)
            raise RuntimeError(f"a run did not end within {seconds:.0f} s:\n{process.output[-2000:]}")
        self.most = max(self.most, ended.num_bytes - self.opened)
        return ended

    def finish(self, workdir: Path) -> Ended:
        """The command to its end."""
        return self.wait(self.start(workdir))

    def completed(self, workdir: Path) -> str:
        """Runs the command to its end; what is wrong about it, "" if it equals the undisturbed run."""
        ended = self.finish(workdir)
        if ended.code:
            return f"status {ended.code}: {ended.output[-300:]}"
        left = sorted(self.unfinished(workdir))
        return noise(ended.output) or self.differs(workdir) or (f"left {left}" if left else "")

    def differs(self, workdir: Path) -> str:
        """How the finished run differs from the undisturbed one, "" if it does not."""
        for name in ("metrics", "evaluations"):
            if lines(workdir / f"{name}.jsonl") != lines(self.reference / f"{name}.jsonl"):
                return f"{name}.jsonl differs"
        if sums(workdir) != sums(self.reference):
            return "the last state differs"
        return ""

    def kills(self, num: int) -> Iterator[Case]:
        """SIGKILL `num` times: up to nine in a row, each a case, then to the end."""
        while num > 0:
            workdir, began, done = self.folder / "killed", time.monotonic(), 0
            shutil.rmtree(workdir, ignore_errors=True)
            for _ in range(min(num, self.rng.randint(1, IN_A_ROW["kills"]))):
                process, moment = self.start(workdir), self.rng.uniform(0, self.duration)
                if process.ended_within(moment):  # complete
                    break
                process.signal(signal.SIGKILL)
                self.wait(process)
                done += 1
                yield Case(f"killed after {moment:.2f} s", "", False, time.monotonic() - began)
            num -= done
            wrong = self.completed(workdir)
            if wrong:
                yield Case(f"{done} kills in a row", wrong, False, time.monotonic() - began)

    def stops(self, num: int) -> Iterator[Case]:
        """A signal or two of them `num` times: up to three in a row, each a case, then to the end."""
        while num > 0:
            workdir, done = self.folder / "stopped", 0
            shutil.rmtree(workdir, ignore_errors=True)
            for _ in range(min(num, self.rng.randint(1, IN_A_ROW["stops"]))):
                case = self.stop(workdir)
                done += 1
                yield case
                if lines(workdir / "metrics.jsonl")[-1:] == lines(self.reference / "metrics.jsonl")[-1:]:
                    break  # complete
            num -= done
            wrong = self.completed(workdir)
            if wrong:
                yield Case(f"{done} stops in a row", wrong, False, 0.0)

    def stop(self, workdir: Path) -> Case:
        """One or two signals at a random moment."""
        number, twice = self.rng.choice([signal.SIGTERM, signal.SIGINT]), self.rng.random() < 0.5
        moment = self.rng.uniform(0, self.duration)
        what = f"{number.name}{' twice' if twice else ''} after {moment:.2f} s"
        before = self.unfinished(workdir)
        process = self.start(workdir)
        ended = process.ended_within(moment)
        if ended:
            return Case(f"{what}: complete before it", f"status {ended.code}" if ended.code else "", False, 0.0)
        complete, steps, began = COMPLETE in process.output, len(lines(workdir / "metrics.jsonl")), time.monotonic()
        for _ in range(1 + twice):
            process.signal(number)
            time.sleep(self.rng.uniform(0, 0.3))
        ended = self.wait(process)
        seconds = time.monotonic() - began
        wrong = noise(ended.output) or unexpected(number, ended, complete)
        wrong = wrong or (f"{seconds:.1f} s to the end" if seconds > LIMIT else "")
        more = len(lines(workdir / "metrics.jsonl")) - steps
        wrong = wrong or (f"{more} more steps after the signal" if more > 2 else "")  # one runs, one may be queued
        left = [] if twice else sorted(self.unfinished(workdir) - before)
        return Case(what, wrong or (f"left {left}" if left else ""), False, seconds)

    def unfinished(self, workdir: Path) -> set[tuple[str, int]]:
        """Half checkpoints, with the time of their last change: one signal leaves none, nor does a run that ended.

        A second signal may leave one, which is still there if the next process ends before it opens the checkpoints.
        """
        return {(entry.name, entry.stat().st_mtime_ns) for entry in (workdir / "checkpoints").glob("*tmp*")}


class Commands:
    """Commands that a signal ends at once, or after what they save: evaluate, embed, transfer and prepare.

    Up to three signals in a row, each at a random moment of the whole command.  Each ends it within LIMIT seconds with
    the status 128 + its number, without a traceback or a worker that goes on, and leaves no file that is not whole.
    Then the same command runs to the end, and its files equal those of a command that nothing disturbed.
    """

    def __init__(self, trial: Trial, names: Iterable[str] = ("evaluate", "embed", "transfer", "prepare")):
        """Makes the images, and what each command writes when nothing disturbs it."""
        self.trial, self.images = trial, trial.folder / "toys"
        write_images(self.images)
        self.durations: dict[str, float] = {}
        for name in names:
            began = time.monotonic()
            ended = trial.wait(self.start(name, self.whole(name)))
            self.durations[name] = time.monotonic() - began
            if ended.code:
                raise SystemExit(f"the undisturbed {name} failed:\n{ended.output}")

    def whole(self, name: str) -> Path:
        """The output of a command that nothing disturbed."""
        return self.trial.folder / f"{name}-whole"

    def start(self, name: str, out: Path) -> Process:
        """A command, running."""
        module, words = {
            "evaluate": ("evaluate", ["--tasks=zero_shot:toys;knn:toys", f"--data-dir={self.images.parent}"]),
            "embed": ("embed", [f"--images={self.images}", "--text=a frog"]),
            "prepare": ("prepare", ["imagefolder", f"{self.images}/train", "--shards=4", "--workers=2"]),
            "transfer": (
                "transfer",
                [
                    f"--config={ROOT}/configs/transfer/stickers_linear.py",
                    f"--config.init={self.trial.reference}",
                    *(f"--config.{field}" for field in ("total_steps=4", "checkpoint_every=2", "batch_size=2")),
                    *(f"--config.{field}" for field in ("log_every=1", "evaluate_every=2", "evaluate_at_end=False")),
                ],
            ),
        }[name]
        if name in ("evaluate", "embed"):
            words.append(f"--checkpoint={self.trial.reference}")
        to = {"transfer": f"--workdir={out}", "embed": f"--out={out}/rows.npz"}
        words.append(to.get(name, f"--out={out}"))
        words = [sys.executable, "-m", f"detailclip_jax.{module}", *words]
        return Process(words, self.trial.environment, self.trial.folder / "log")

    def signals(self, num: int) -> Iterator[Case]:
        """One signal `num` times: up to three in a row, each a case, then to the end."""
        while num > 0:
            name, done = self.trial.rng.choice([*self.durations]), 0
            out = self.trial.folder / f"{name}-stopped"
            shutil.rmtree(out, ignore_errors=True)
            for _ in range(min(num, self.trial.rng.randint(1, IN_A_ROW["stops"]))):
                done += 1
                yield self.stop(name, out)
            num -= done
            ended = self.trial.wait(self.start(name, out))
            wrong = f"status {ended.code}: {ended.output[-300:]}" if ended.code else noise(ended.output)
            wrong = wrong or self.unlike(name, out, complete=True)
            if wrong:
                yield Case(f"{name} after {done} signals", wrong, False, 0.0)

    def stop(self, name: str, out: Path) -> Case:
        """A signal at a random moment, to the process alone or to its group."""
        rng = self.trial.rng
        number, group, moment = (
            rng.choice([signal.SIGTERM, signal.SIGINT]),
            rng.random() < 0.5,
            rng.uniform(0, self.durations[name]),
        )
        what = f"{name}: {number.name}{' to the group' if group else ''} after {moment:.2f} s"
        process = self.start(name, out)
        if ended := process.ended_within(moment):
            return Case(f"{what}: complete before it", f"status {ended.code}" if ended.code else "", False, 0.0)
        began = time.monotonic()
        (process.signal_group if group else process.signal)(number)
        ended = self.trial.wait(process)
        seconds = time.monotonic() - began
        wrong = "" if of_python(ended, number) else noise(ended.output) or unlike_a_stop(ended, number)
        wrong = wrong or (f"{seconds:.1f} s to the end" if seconds > LIMIT else "")
        wrong = wrong or ("a worker goes on" if process.left_behind() else "")
        return Case(what, wrong or self.unlike(name, out, complete=ended.code == 0), False, seconds)

    def unlike(self, name: str, out: Path, complete: bool) -> str:
        """What is wrong with the files after a signal: those of the undisturbed command, or those it resumes from."""
        expected, found = contents(self.whole(name)), contents(out)
        for file, content in found.items():
            if is_unfinished(file):
                continue
            whole = expected.get(file, b"")
            if not (content == whole or (not complete and is_beginning(file, content, whole))):
                return f"left {file}, which is not whole"
        missing = [file for file in expected if file not in found]
        return f"lacks {missing}" if complete and missing else ""


def is_beginning(file: str, content: Any, whole: Any) -> bool:
    """Whether a file holds what a command writes until it is stopped: first lines, or a table of its finished tasks."""
    if file.endswith(".jsonl"):
        return content == whole[: len(content)]  # bytes, or the lines of a run's log
    rows, all_rows = ([re.sub(rb"[ -]+", b" ", row) for row in text.splitlines()] for text in (content, whole))
    return file.endswith((".csv", ".md")) and set(rows) <= set(all_rows)  # columns have the width of their rows


def write_images(folder: Path) -> None:
    """A training and a test split of two classes, six images of noise each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("frog", "bus"):
            (folder / split / label).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")


def contents(folder: Path) -> dict[str, Any]:
    """The files that a command writes for its user: bytes, or the lines of a log without what was measured in seconds.

    Of the workdir of a run: the logs alone, as `Trial` compares the rest.
    """
    is_run, found = (folder / "config.json").exists(), {}
    for file in folder.rglob("*"):
        if file.is_file() and (file.suffix == ".jsonl" if is_run else True):
            found[str(file.relative_to(folder))] = lines(file) if is_run else file.read_bytes()
    return found


def is_unfinished(file: str) -> bool:
    """Whether the name says that a file is not the result: what `prepare` and `embed` go on with."""
    return file.startswith(".prepare-") or file == "rows.partial.npz"


def of_python(ended: Ended, number: signal.Signals) -> bool:
    """Whether the signal came before the package, whose first lines handle it: Python's own handlers end it then."""
    raised = not ended.output or ("KeyboardInterrupt" in ended.output and f"{ROOT}/detailclip_jax" not in ended.output)
    return raised and ended.code in ((1, -number) if number == signal.SIGINT else (-number,))


def unlike_a_stop(ended: Ended, number: signal.Signals) -> str:
    """What is wrong about the exit status; 0, or the end by Python's own handlers, is right after the last line."""
    last = ended.output.strip().split("\n")[-1]
    complete = (
        last.startswith(("written to", "to compare runs")) or " is up to date; " in last or "nothing to do" in last
    )
    if ended.code == 128 + number or (complete and ended.code in (0, -number)):
        return ""
    return f"status {ended.code} after {number.name}: {ended.output[-300:]}"


def unexpected(number: signal.Signals, ended: Ended, complete: bool) -> str:
    """What is wrong about the exit status after a signal, "" if nothing is: a lost signal must not look like success.

    `complete`: whether the run had printed all before the signal.  -number is the status before the command's own
    handler is there, and after it is gone.
    """
    if ended.code in (128 + number, -number):
        return ""
    if ended.code == 0 and complete:
        return ""
    return f"status {ended.code} after {number.name}: {ended.output[-300:]}"


def lines(file: Path) -> list[dict]:
    """The objects of a log without what was measured in seconds."""
    whole = file.read_text().split("\n")[:-1] if file.exists() else []  # the last line may be half written
    found = [json.loads(line) for line in whole]
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
    from detailclip_jax.training import checkpoint_manifest

    shapes = state_shapes(run)
    steps = sorted(int(entry.name) for entry in (run / "checkpoints").iterdir())
    newest, before = steps[-1], steps[-2]
    files = (file for file in (run / f"checkpoints/{newest}").rglob("*") if file.is_file())
    last = checkpoint_manifest.LAST, "commit_success.txt"  # no run needs them
    names = sorted(str(file.relative_to(run)) for file in files if file.name not in last)
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


def report(kind: str, cases: Iterable[Case], most: Callable[[], int]) -> int:
    """Prints the failures of one kind as they come, then its numbers; how many failed.  `most`: bytes."""
    tried, failed, refused, slowest = 0, 0, 0, Case("", "", False, 0.0)
    for case in cases:
        tried, refused = tried + 1, refused + (case.refused and not case.wrong)
        slowest = max(slowest, case, key=lambda each: each.seconds)
        if case.wrong:
            failed += 1
            print(f"  FAILED {case.what}: {case.wrong}", flush=True)
        if tried % 10 == 0:
            print(f"  {kind}: {tried} so far, {failed} failed", flush=True)
    print(
        f"{kind}: {tried} tried, {refused} refused, {failed} failed; slowest {slowest.seconds:.1f} s "
        f"({slowest.what}); most memory {most() / 1e6:,.0f} MB beyond imports and data",
        flush=True,
    )
    if most() > MAX_BYTES:
        print(f"  FAILED a process held more than {MAX_BYTES / 1e6:,.0f} MB beyond its imports and data", flush=True)
        failed += 1
    return failed


def own_memory() -> int:
    """The most that this process held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv: list[str] | None = None) -> int:
    """The command: 0, or 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 100), ("stops", 100), ("damaged", 100), ("signals", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), random.Random(given.seed))
        trial.undisturbed()
        print(
            f"undisturbed: {trial.duration:.1f} s; `import jax` {trial.jax / 1e6:,.0f} MB, all imports and the data "
            f"{trial.opened / 1e6:,.0f} MB, the run {trial.most / 1e6:,.0f} MB more",
            flush=True,
        )
        if given.damaged:
            found = damaged(trial.reference, given.damaged, trial.rng)
            failed += report("damaged", found, lambda: own_memory() - trial.opened)
        for kind, cases in (("stops", trial.stops), ("kills", trial.kills)):
            trial.most = 0
            if number := getattr(given, kind):
                failed += report(kind, cases(number), lambda: trial.most)
        if given.signals:
            trial.most = 0
            failed += report("signals", Commands(trial).signals(given.signals), lambda: trial.most)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
