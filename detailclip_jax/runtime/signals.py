"""Ctrl-C and SIGTERM: they end a command at once, with exit code 128 + the signal's number, or stop work to save it.

No exception is raised where a signal happens to arrive: that may be inside an import, a destructor or a callback of a
library, which lose an exception or crash.  The handler itself removes what is unfinished (`if_ended`), prints one line
and ends the process.  Inside `Saving` the first signal is only noted, and `pause_point` raises Stopped where the work
can stop; a second signal ends the process.

Imports only the standard library, and little of it: a command calls `handle` before all other imports.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # in this order: `interrupt` takes the first alone, `dense_loop` the second
TOGETHER = 0.1  # seconds within which two signals count as one: `timeout` sends its signal twice
_SAVING: list["Saving"] = []  # those whose context is entered
_CLEANING: list[Callable[[], str | None]] = []  # of `if_ended`
_ACTING = threading.RLock()
_RESTORE: list[Callable[[], None]] = []  # what `handle` returned
_last, _ending = -TOGETHER, False


class Stopped(KeyboardInterrupt):
    """Raised by `pause_point` after a signal; `except Exception` does not catch it."""

    def __init__(self, number: int):
        """Stores the exit code."""
        super().__init__()
        self.exit_code = 128 + number


def handle(numbers: Sequence[int] = SIGNALS) -> Callable[[], None]:
    """Handles the signals from now on; returns a function that restores what was before.  For the main thread.

    The system writes the number of a signal into a pipe as it arrives.  Python runs handlers in the main thread only,
    which may wait for a device, so a thread reads the pipe too; a lock lets one of the two act.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)

    def look(*_: object) -> bool:
        arrived = b"?"
        with _ACTING, contextlib.suppress(BlockingIOError):
            while arrived := os.read(reader, 1):
                _act(arrived[0])
        return bool(arrived)  # nothing once the writer is closed

    def watch() -> None:
        arriving = select.poll()
        arriving.register(reader, select.POLLIN)
        while arriving.poll() and look():
            pass
        os.close(reader)

    def restore() -> None:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        _RESTORE.remove(restore)

    handlers = {number: signal.signal(number, look) for number in numbers}
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    _RESTORE.append(restore)
    return restore


# A forked child has its parent's pipe, and would tell the parent of its own signals.
os.register_at_fork(after_in_child=lambda: [restore() for restore in reversed([*_RESTORE])])


def _act(number: int) -> None:
    global _last
    now = time.monotonic()
    if number not in SIGNALS or now - _last < TOGETHER:
        return
    _last = now
    if _SAVING and not _SAVING[-1].next_ends:
        _SAVING[-1].note(number)
    else:
        _end(number)


def _end(number: int) -> None:
    global _ending
    if not _ending:
        _ending, console = True, -1
        with contextlib.suppress(OSError):  # standard error may be closed
            console = os.dup(2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # other threads complain about files that are gone
        line = clean_up()
        with contextlib.suppress(OSError):
            os.write(console, f"\n{line}\n".encode())
    os._exit(128 + number)


def clean_up() -> str:
    """Calls the functions of `if_ended`, the innermost first; returns the line that a signal prints."""
    said = ["interrupted"]
    for clean in reversed([*_CLEANING]):
        with contextlib.suppress(Exception):
            said += filter(None, [clean()])
    return "; ".join(said[:2])


@contextlib.contextmanager
def if_ended(clean: Callable[[], str | None]) -> Iterator[None]:
    """Context in which a signal that ends the process calls `clean` first.

    `clean` removes what is unfinished, or returns what is printed behind "interrupted". Nested contexts are called from
    the inside; the first text is printed.
    """
    _CLEANING.append(clean)
    try:
        yield
    finally:
        _CLEANING.remove(clean)


class Saving:
    """Context of work that is saved: the first signal sets `received`, a second one ends the process.

        with Saving("stopping after this batch") as saving:
            for batch in batches:
                ...
                if saving.received: break

    Also outside of a command, such as in a notebook.
    """

    def __init__(self, doing: str, numbers: Sequence[int] = SIGNALS):
        """Stores what the first signal prints, and the signals to handle."""
        self.doing, self._numbers = doing, numbers
        self.received: signal.Signals | None = None

    def __enter__(self):
        """Handles the signals."""
        self._restore = handle(self._numbers)
        _SAVING.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Restores what handled them before."""
        _SAVING.remove(self)
        self._restore()

    @property
    def next_ends(self) -> bool:
        """Whether the next signal ends the process."""
        return self.received is not None

    def note(self, number: int) -> None:
        """Stores the first signal, and says what it does."""
        self.received = signal.Signals(number)
        with contextlib.suppress(OSError):  # no print: the signal may have interrupted one
            os.write(2, f"\n{self.received.name}: {self.doing} (repeat to stop at once)\n".encode())

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received


def pause_point() -> None:
    """Raises Stopped if the work of this process received a signal; does nothing outside of `Saving`.

    Long work, e.g. the search of a linear probe, calls it every second or so.
    """
    if _SAVING and _SAVING[-1].received is not None:
        raise Stopped(_SAVING[-1].received)
