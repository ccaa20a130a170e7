"""SIGTERM and Ctrl-C in training: the run stops after a step, or within an evaluation or its figures, and is saved.

An evaluation stops between two batches and at every `pause_point`.  Several processes stop at the same step.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from detailclip_jax.runtime.signals import SIGNALS, Saving, Stopped

Functions = TypeVar("Functions", bound=Any)


class Interrupt(Saving):
    """Handles both signals; the loop calls `reached` after each step to learn whether it must stop.

        with Interrupt() as interrupt:
            for step in ...:
                if interrupt.reached(): ...

    With several processes, jax's preemption service passes a signal on to all of them and chooses the step at which
    they stop; a second signal then has no effect, and `pause_point` does nothing: how often each process comes there
    depends on rounding.
    """

    def __init__(self):
        """Prepares; the signal handlers are installed when the context is entered."""
        self._several = jax.distributed.is_initialized()
        super().__init__("saving after this step", SIGNALS[:1] if self._several else SIGNALS)
        self._num_checks = 0

    @contextlib.contextmanager
    def once_saved(self, doing: str) -> Iterator[None]:
        """Marks work on a step that is saved: what a signal prints says so, after what it is `doing`."""
        before, self.doing = self.doing, f"{doing}, with its step saved"
        try:
            yield
        finally:
            self.doing = before

    @property
    def next_ends(self) -> bool:
        """Whether the next signal ends the process; with several processes, none does: they save together."""
        return not self._several and super().next_ends

    def note(self, number: int) -> None:
        """Stores the first signal; with several processes, passes Ctrl-C on to jax, which handles SIGTERM there."""
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            super().note(number)

    def reached(self) -> bool:
        """Whether the run must stop here; several processes must call it equally often, at the same places."""
        self._num_checks += 1
        if self._several and multihost_utils.reached_preemption_sync_point(self._num_checks):
            self.received = signal.SIGTERM
        return self.received is not None

    def between(self, encode: Functions) -> Functions:
        """Returns the NamedTuple `encode` with functions that raise Stopped, between batches, if the run must stop.

        A function that one of them returns, such as what `Encode.jit` compiles, does so too.
        """

        def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if self.reached():
                    raise Stopped(self.received or signal.SIGTERM)
                output = function(*arguments)
                return interruptible(output) if callable(output) else output

            return call

        return encode._replace(
            **{name: interruptible(field) for name, field in encode._asdict().items() if callable(field)}
        )
