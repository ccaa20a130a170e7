"""SIGTERM and Ctrl-C in training: the run ends after a step, or between two batches of an evaluation, and is saved.

Several processes end at the same place.  `signals.prompt` is for what has nothing to save.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from detailclip_jax.runtime.signals import SIGNALS, Stopped


class Interrupt:
    """Turns the two signals into an answer that the loop asks for after each step.

        with Interrupt() as interrupt:
            for step in ...:
                if interrupt.reached(): ...

    A second signal ends the process at once: `at_once`, called before, removes what it was writing.  With several
    processes, a signal to any of them is passed on by jax's preemption service, which also chooses the place at which
    all of them stop (a second one does nothing more).
    """

    def __init__(self, at_once: Callable[[], None] = lambda: None):
        """No signal has come yet; entering the context takes the signals over."""
        self._previous: dict[int, Any] = {}
        self._at_once, self._asked = at_once, 0
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Interrupt":
        """Takes the signals over."""
        alone = dict.fromkeys(SIGNALS, self._note)
        together = {signal.SIGINT: _pass_on}  # SIGTERM belongs to jax's preemption service there
        handlers = together if jax.distributed.is_initialized() else alone
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # not print: the signal may have come while the same stream was being written to
        if self.received:
            os.write(2, f"\n{signal.Signals(number).name}: stopped at once, without saving\n".encode())
            self._at_once()
            os._exit(128 + number)
        self.received = signal.Signals(number)
        os.write(2, f"\n{self.received.name}: saving after this step (once more stops at once)\n".encode())

    def reached(self) -> bool:
        """True when the run is to end here; several processes must ask equally often, at the same places."""
        self._asked += 1
        if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received is not None

    def between(self, encode: Any) -> Any:
        """The same functions, each call of which raises Stopped instead where the run is to end: between batches."""
        return _Between(encode, self)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 if none came."""
        return 0 if self.received is None else 128 + self.received


def _pass_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class _Between:
    """An `Encode` whose functions ask an Interrupt first."""

    def __init__(self, encode: Any, interrupt: Interrupt):
        self._encode, self._interrupt = encode, interrupt

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._encode, name)

        def asking(*arguments: Any) -> Any:
            if self._interrupt.reached():
                raise Stopped(self._interrupt.received or signal.SIGTERM)
            return function(*arguments)

        return asking
