"""SIGTERM and Ctrl-C in training: the run stops after a step, or within an evaluation, and is saved.

An evaluation stops between two batches and at every `pause_point`.

Several processes stop at the same step.  Commands that have nothing to save use `signals.prompt`.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from detailclip_jax.runtime.signals import SIGNALS, Stopped

TOGETHER = 0.1  # seconds within which two signals count as one: `timeout` sends its signal twice
LATE = 2.0  # seconds until the thread ends the process instead of the handler
_RUNNING: "list[Interrupt]" = []  # those whose context is entered


def pause_point() -> None:
    """Raises Stopped if the run of this process received a signal; does nothing outside of a run.

    Long work without batches, e.g. the search of a linear probe, calls it every second or so.  With several processes
    it does nothing: they must stop at the same place, and how often each comes here depends on rounding.
    """
    if _RUNNING and not jax.distributed.is_initialized():
        received = _RUNNING[-1].received
        if received is not None:
            raise Stopped(received)


class Interrupt:
    """Handles both signals; the loop calls `reached` after each step to learn whether it must stop.

        with Interrupt() as interrupt:
            for step in ...:
                if interrupt.reached(): ...

    A second signal, TOGETHER seconds or more after the first, ends the process at once, after a call of `at_once`,
    which removes unfinished files.  Python runs handlers in the main thread only, which may be compiling for minutes;
    so a thread sees the second signal too, and ends the process if the handler has not run within LATE seconds.

    With several processes, jax's preemption service passes a signal on to all of them and chooses the step at which
    they stop; a second signal then has no effect.
    """

    def __init__(self, at_once: Callable[[], None] = lambda: None):
        """Stores the callback; the signal handlers are installed when the context is entered."""
        self._previous: dict[int, Any] = {}
        self._at_once, self._asked = at_once, 0
        self._writer: socket.socket | None = None
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self.evaluating = False

    @contextlib.contextmanager
    def during_evaluation(self) -> Iterator[None]:
        """Marks an evaluation, before which its step is saved: what a signal prints says so."""
        self.evaluating = True
        try:
            yield
        finally:
            self.evaluating = False

    def __enter__(self) -> "Interrupt":
        """Installs the signal handlers."""
        alone = dict.fromkeys(SIGNALS, self._note)
        together = {signal.SIGINT: _pass_on}  # jax's preemption service handles SIGTERM there
        handlers = together if jax.distributed.is_initialized() else alone
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        if handlers is alone:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._reader,), daemon=True).start()
        _RUNNING.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the previous signal handlers."""
        _RUNNING.remove(self)
        if self._writer:
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()  # the thread reads an end and closes its own socket
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # os.write instead of print: the signal may interrupt another write to the same stream
        now = time.monotonic()
        if self.received and now - self._received_at >= TOGETHER:
            self._end(number)
        if self.received:
            return
        self.received, self._received_at = signal.Signals(number), now
        does = "saving after this step (repeat to stop at once, without saving)"
        if self.evaluating:
            does = "stopping between two batches of the evaluation, with its step saved (repeat to stop at once)"
        os.write(2, f"\n{self.received.name}: {does}\n".encode())

    def _end(self, number: int) -> None:
        os.write(2, f"\n{signal.Signals(number).name}: stopped at once, without saving\n".encode())
        self._at_once()
        os._exit(128 + number)

    def _watch(self, reader: socket.socket) -> None:
        first = None
        with reader:
            while received := reader.recv(1):  # the number of a signal, as it arrives
                if received[0] not in SIGNALS:
                    continue
                now = time.monotonic()
                first = first or now
                if now - first >= TOGETHER:
                    time.sleep(LATE)
                    if self in _RUNNING:
                        self._end(received[0])

    def reached(self) -> bool:
        """Whether the run must stop here; several processes must call it equally often, at the same places."""
        self._asked += 1
        if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received is not None

    def between(self, encode: Any) -> Any:
        """Wraps the functions of `encode` so that a call raises Stopped if the run must stop: between two batches."""
        return _Between(encode, self)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received


def _pass_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class _Between:
    """An `Encode` whose functions check an Interrupt before each call."""

    def __init__(self, encode: Any, interrupt: Interrupt):
        self._encode, self._interrupt = encode, interrupt

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._encode, name)
        if not callable(function):  # such as `text_lengths`
            return function

        def asking(*arguments: Any) -> Any:
            if self._interrupt.reached():
                raise Stopped(self._interrupt.received or signal.SIGTERM)
            return function(*arguments)

        return asking
