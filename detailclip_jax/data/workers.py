"""Prefetches items in order by threads or processes, and ends both cleanly."""

import contextlib
import math
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.errors import RunError

LAST_STEPS = 60.0  # seconds that a worker goes on after SIGTERM
KILLED = re.compile(r"Worker process was terminated unexpectedly with exit code -(\d+)")  # grain's words


def usable_workers(most: int) -> int:
    """Returns at most one worker per core, minus one core for this process; 0 (threads) with at most two cores."""
    cores = usable_cores()
    return min(most, cores - 1) if cores > 2 else 0


class Prefetched:
    """Iterator over the items of a random-access object (nested dicts of arrays), prepared from now on and in order.

    num_workers: processes, each of which makes every n-th item; they need shared memory (/dev/shm) for `prefetch` items
        and one more each.  0: threads of this process.
    prefetch: number of items kept ready; 0 makes each item on request.

    `close` ends threads and workers.  If it was not called, the end of the interpreter does; workers also end a second
    after their parent.
    `next` raises RunError if a worker was killed, and else what the object raises.
    """

    def __init__(self, items: Any, num_workers: int = 0, prefetch: int = 2):
        self._in_shared_memory = num_workers > 0
        cv2.setNumThreads(0)  # items are already processed in parallel
        dataset = grain.MapDataset.source(items)
        if num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads a flag for its workers, and a notebook never parses flags
            in_turn = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            each = max(1, math.ceil(prefetch / num_workers))
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=each)
            prefetched = in_turn.mp_prefetch(options, worker_init_fn=_init_worker)
        else:
            num_threads = min(prefetch, usable_cores())
            reading = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
            prefetched = dataset.to_iter_dataset(reading)
        self._held: list[Any] = [iter(prefetched)]
        self._held[0].start_prefetch()
        self._finalizer = weakref.finalize(self, _close, self._held)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._held

    def __iter__(self) -> "Prefetched":
        return self

    def __next__(self) -> Any:
        with name_killed_workers():
            item = next(self._held[0])
        return _copied(item) if self._in_shared_memory else item

    def close(self) -> None:
        """Ends threads and workers; may be called twice."""
        self._finalizer()


@contextlib.contextmanager
def name_killed_workers() -> Iterator[None]:
    """Turns grain's error about a worker that a signal ended into RunError; all other errors stay as they are."""
    try:
        yield
    except RuntimeError as error:
        if not (killed := KILLED.match(str(error))):
            raise
        raise RunError(
            f"a data worker was killed (signal {killed[1]}), perhaps for its memory; the same command continues from "
            "the last checkpoint; try fewer --config.data.num_workers or a smaller --config.data.prefetch"
        ) from error


def _close(held: list[Any]) -> None:
    """Closes and releases grain's iterator; grain reports an error if it lives until the interpreter ends."""
    while held:
        held.pop().close()


def _init_worker(index: int, count: int) -> None:
    """Leaves signals to the main process, which closes its workers; a worker exits by itself if that was killed.

    `timeout` and systemd send SIGTERM to workers too, while the main process still needs items for its last steps.
    """
    del index, count
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _exit_later(number: int, frame: object) -> None:
    """Ends a worker that nobody has closed by then: the end of an interpreter waits for those it has terminated."""
    del number, frame
    timer = threading.Timer(LAST_STEPS, os._exit, (1,))
    timer.daemon = True  # a closed worker does not wait for it
    timer.start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _copied(item: Any) -> Any:
    """Copies an item out of shared memory, which is then freed at once.

    Arrays that are still held (by a notebook or an accelerator's runtime) when the interpreter ends would otherwise be
    reported as leaked.
    """
    if isinstance(item, dict):
        return {name: _copied(value) for name, value in item.items()}
    return np.array(item) if isinstance(item, np.ndarray) else item
