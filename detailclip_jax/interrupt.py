"""SIGTERM and Ctrl-C: the run ends after a step, with a checkpoint, on every process at the same step."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns the two signals into an answer that the loop asks for after each step.

        with Interrupt() as interrupt:
            for step in ...:
                if interrupt.reached(step): ...

    A second signal acts as usual, at once.  With several processes, a signal to any of them is passed on by jax's
    preemption service, which also chooses the step at which all of them stop (a second one does nothing more).
    """

    def __init__(self):
        """No signal has come yet; entering the context takes the signals over."""
        self._previous: dict[int, Any] = {}
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
        self.received = signal.Signals(number)
        self.__exit__()
        # not print: the signal may have come while the same stream was being written to
        os.write(2, f"\n{self.received.name}: saving after this step (once more stops at once)\n".encode())

    def reached(self, step: int) -> bool:
        """True when the run is to end after `step`; several processes must ask at every step."""
        if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 if none came."""
        return 0 if self.received is None else 128 + self.received


def _pass_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
