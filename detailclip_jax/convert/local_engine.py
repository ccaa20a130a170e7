"""Converts the shards on this machine with several processes; shows progress and can be interrupted and resumed."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from detailclip_jax.convert import job as jobs
from detailclip_jax.convert import output_shard as shards
from detailclip_jax.convert.job import PER_SHARD, Job, Request
from detailclip_jax.convert.planning import remove_partial
from detailclip_jax.convert.remote_files import RemoteError
from detailclip_jax.runtime import signals
from detailclip_jax.runtime.progress import Console, duration
from detailclip_jax.runtime.terminal import counted

EVERY = 1.0  # seconds between progress lines on a terminal
EVERY_PLAIN = 10.0  # the same where every line is kept, as in a log
BATCH = 32  # examples between two reports of a worker
MAX_UNREAD, SHOWN = 16, 3  # input files that cannot be read before the run ends, and those that its message names


def run(job: Job, workers: int, console: Console) -> None:
    """Converts the unconverted shards, and once more those that repeat keys of earlier ones.

    Raises Stopped after a signal once the workers have ended, RemoteError once all other shards are converted if input
    files of other machines could not be read; finished shards are kept.
    """
    _convert(job, workers, console)
    while shards.exclude_repeated(job):
        _convert(job, workers, console)


def _convert(job: Job, workers: int, console: Console) -> None:
    todo = shards.unconverted(job)
    progress = Progress([sum(shard.weight for shard in job.inputs(n)) for n in range(job.num_shards)], todo, console)
    unread = Unread()
    with signals.Saving("stopping after the current examples") as signal_during:
        if workers == 1 or len(todo) <= 1:
            _in_turn(job, todo, progress, unread)
        else:
            _in_processes(job, todo, progress, unread, min(workers, len(todo)))
    progress.end()
    if signal_during.received is not None:
        raise signals.Stopped(signal_during.received)
    unread.check()


class Unread:
    """Collects the errors of input files that cannot be read now, so that the other shards are converted."""

    def __init__(self):
        self._errors: list[str] = []

    def add(self, error: RemoteError) -> None:
        """Keeps an error; raises it with the others if there are MAX_UNREAD."""
        self._errors.append(str(error))
        if len(self._errors) == MAX_UNREAD:
            self.check()

    def check(self) -> None:
        """Raises RemoteError that names the first files, and each reason once, if there was any."""
        if self._errors:
            number, files = counted(len(self._errors), "shard"), collections.defaultdict(list)
            for error in self._errors[:SHOWN]:
                file, _, reason = error.partition(": ")
                files[reason].append(file)
            shown = [": ".join(filter(None, [", ".join(names), reason])) for reason, names in files.items()]
            raise RemoteError(
                f"{number} not finished: {' | '.join(shown)}{' | ...' * (len(self._errors) > SHOWN)}.  "
                "Finished shards are kept; the same command continues with the rest"
            )


def _in_turn(job: Job, todo: Sequence[int], progress: "Progress", unread: Unread) -> None:
    def tell(*counts: int) -> None:
        signals.pause_point()
        progress.add(*counts)
        progress.show()

    for number in todo:
        try:
            shards.convert(job, number, tell)
            progress.done(number)
        except RemoteError as error:
            unread.add(error)


def _in_processes(job: Job, todo: Sequence[int], progress: "Progress", unread: Unread, workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # fork is unsafe with threads
    counts, others = [context.Value("q", 0) for _ in range(3)], multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _init_worker, (counts, os.getpid()))

    def kill() -> None:
        for worker in {*multiprocessing.active_children()}.difference(others):
            worker.kill()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the workers inherit it, and never get Ctrl-C
    try:
        with signals.if_ended(kill):
            tasks = {pool.submit(_task, str(job.request.work), number): number for number in todo}
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # each `submit` starts a worker: all have started
            _wait(tasks, progress, unread, counts)
    except BaseException:
        kill()  # what is kept are finished shards
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pool.shutdown(cancel_futures=True)
        remove_partial(job.request)


def _wait(tasks: dict[Any, int], progress: "Progress", unread: Unread, counts: "list[Synchronized[int]]") -> None:
    left = set(tasks)
    while left:
        finished, left = concurrent.futures.wait(left, EVERY, concurrent.futures.FIRST_COMPLETED)
        signals.pause_point()
        for task in finished:
            try:
                task.result()
                progress.done(tasks[task])
            except RemoteError as error:
                unread.add(error)
        progress.set(*(count.value for count in counts))
        progress.show()


_worker: dict[str, Any] = {}


def _init_worker(counts: "list[Synchronized[int]]", parent: int) -> None:
    """Lets a worker exit by itself if the main process is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker.update(counts=counts)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _task(work: str, number: int) -> None:
    """Converts one shard in a worker."""
    report = Report(_worker["counts"])
    shards.convert(jobs.load(work), number, report)
    report.flush()


class Report:
    """Sums up a worker's counts and sends them to the main process regularly."""

    def __init__(self, counts: "list[Synchronized[int]]"):
        self._counts, self._new = counts, [0, 0, 0]

    def __call__(self, num: int, num_bytes: int, num_rejected: int) -> None:
        """Adds the counts since the last call."""
        self._new = [old + new for old, new in zip(self._new, (num, num_bytes, num_rejected))]
        if self._new[0] >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Sends the counts to the main process."""
        for count, new in zip(self._counts, self._new):
            with count.get_lock():
                count.value += new
        self._new = [0, 0, 0]


class Progress:
    """Progress of the conversion, shown as one line."""

    def __init__(self, weights: Sequence[int], todo: Sequence[int], console: Console):
        self._weights, self._console = weights, console
        self._start = self._shown = time.monotonic()
        self._shards = len(weights) - len(todo)
        self._todo = max(1, sum(weights[number] for number in todo))
        self._finished = 0
        self.counts = [0, 0, 0]

    def add(self, *more: int) -> None:
        """Adds examples, bytes and rejects since the last call."""
        self.counts = [old + new for old, new in zip(self.counts, more)]

    def set(self, *counts: int) -> None:
        """Sets examples, bytes and rejects since the start."""
        self.counts = list(counts)

    def done(self, number: int) -> None:
        """Counts a finished shard."""
        self._shards += 1
        self._finished += self._weights[number]

    def show(self) -> None:
        """Shows the line if enough time has passed since the last one."""
        now = time.monotonic()
        if now - self._shown >= seconds_between_lines(self._console):
            self._shown = now
            self._console.live(self.line(now - self._start))

    def end(self) -> None:
        """Shows the last line, which stays; nothing if no shard was processed."""
        if self._finished:
            self._console.live(self.line(time.monotonic() - self._start))
            self._console.end_live()

    def line(self, seconds: float) -> str:
        """Returns "12/331 shards | 120,000 examples | 812 images/s | 33.1 MB/s | eta 0:12 | 17 rejected"."""
        num, num_bytes, rejected = self.counts
        seconds = max(seconds, 1e-9)
        left = self._todo - self._finished
        eta = duration(seconds * left / self._finished) if self._finished else "?"
        return (
            f"{self._shards}/{len(self._weights)} shards | {num:,} examples | "
            f"{num / seconds:,.0f} images/s | {num_bytes / seconds / 1e6:.1f} MB/s | eta {eta} | {rejected:,} rejected"
        )


def seconds_between_lines(console: Console) -> float:
    """Returns the time between lines of progress: longer where no line replaces the one before."""
    return EVERY_PLAIN if console.width is None else EVERY


def at_times(console: Console) -> Callable[[str], None]:
    """Returns a function that shows a line if enough time has passed since the last one."""
    shown = time.monotonic()

    def show(line: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= seconds_between_lines(console):
            shown = time.monotonic()
            console.live(line)

    return show


@contextlib.contextmanager
def planning(request: Request, console: Console) -> Iterator[None]:
    """Shows the progress of planning, which takes minutes for a table of millions of rows."""
    stop, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not stop.wait(seconds_between_lines(console)):
            num_rows = PER_SHARD * len(list(request.work.glob("rows-*")))
            console.live(f"plan {num_rows:,} examples | {duration(time.monotonic() - start)}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        console.end_live()


def peak_memory() -> float:
    """Returns the largest resident size of this process or one of its workers, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * unit / 2**20
