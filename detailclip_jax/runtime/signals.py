"""Signal handling of commands that have nothing to save: SIGTERM and Ctrl-C end them at once and are never lost."""

import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.2  # seconds between two checks for a lost interrupt


class Stopped(KeyboardInterrupt):
    """Raised by a signal to end the current work; `except Exception` does not catch it."""

    def __init__(self, number: int, forget: Callable[[], None] = lambda: None):
        """Stores the exit code, and the function after which the signal is not raised again."""
        super().__init__()
        self.exit_code, self.forget = 128 + number, forget


def taken(interrupt: KeyboardInterrupt) -> bool:
    """Returns whether the command may go on with what it has: True for Ctrl-C, which is then not raised again.

    Call it in the `except` of work that Ctrl-C shortens. False for SIGTERM, which ends the command: raise it again.
    """
    if isinstance(interrupt, Stopped):
        if interrupt.exit_code != 128 + signal.SIGINT:
            return False
        interrupt.forget()
    return True


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Context of a command: both signals raise Stopped inside it, repeatedly until one is not lost.

    Destructors, callbacks from C++ and libraries with a bare `except:` drop an exception that is raised in them, so an
    interrupt can get lost.  A dropped exception is garbage-collected; a weak reference detects that.  Nothing is
    printed about it.  An extension that is being imported raises an ImportError instead, so after a signal any error
    that leaves the context becomes Stopped.  Work that Ctrl-C only shortens says so with `taken`.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    raised: list[weakref.ref[Stopped]] = []
    asked = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signal.Signals(number)
        again()

    def again() -> None:
        error = Stopped(asked, forget)
        raised[:] = [weakref.ref(error)]
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        try:
            raise error
        finally:
            del error  # else this frame, which its traceback has, would keep it until the next garbage collection

    def forget() -> None:
        raised.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def look(number: int, frame: FrameType | None) -> None:
        if raised and raised[0]() is None:
            again()

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, Stopped):  # Python would print "Exception ignored in ..."
            show(unraisable)

    previous = {number: signal.signal(number, stop) for number in SIGNALS} | {
        signal.SIGALRM: signal.signal(signal.SIGALRM, look)
    }
    show, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        try:
            yield
        except Exception:
            if not raised:
                raise
        if raised:
            raise Stopped(asked)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = show
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Delays Ctrl-C until the end of the block; processes that are started inside the block never get it.

    A child process that is still starting has no signal handler yet and would print a traceback.
    """
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)
