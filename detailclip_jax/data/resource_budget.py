"""A limit on the resources that all threads of a process hold at once: a semaphore with amounts."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Limits the sum of the amounts that threads hold to `total`; a request waits until enough is free.

        budget = Budget(100)
        with budget.taken(60): ...     # another thread that asks for 60 waits
        with budget.scope():           # amounts taken inside are released at the end of the scope
            with budget.taken(60): ...

    A request for more than `total` counts as `total`: it waits until nothing is held.  Requests are served in order, so
    small ones cannot delay a large one for ever.  A thread that already holds an amount does not wait for a second one:
    the other threads might wait for the amount that it holds, which would be a deadlock.
    """

    def __init__(self, total: int):
        self.total = total
        self._free = total
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._local = threading.local()

    @property
    def free(self) -> int:
        """The amount that is not held; negative if threads that already held some took more."""
        return self._free

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Holds `amount` during the body, or until the end of this thread's scope if it is in one."""
        with contextlib.ExitStack() as stack:
            keeper = getattr(self._local, "scope", None) or stack
            amount = min(amount, self.total)
            self._take(amount)
            keeper.callback(self._give_back, amount)
            yield

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Keeps all amounts taken inside until the end of the body, or of the outermost scope if scopes are nested."""
        if getattr(self._local, "scope", None):
            yield
            return
        with contextlib.ExitStack() as self._local.scope:
            try:
                yield
            finally:
                stack, self._local.scope = self._local.scope, None
                stack.close()

    def _take(self, amount: int) -> None:
        held = getattr(self._local, "held", 0)
        if held:
            with self._changed:
                self._free -= amount
        else:
            with self._turn, self._changed:
                self._changed.wait_for(lambda: self._free >= amount)
                self._free -= amount
        self._local.held = held + amount

    def _give_back(self, amount: int) -> None:
        self._local.held -= amount
        with self._changed:
            self._free += amount
            self._changed.notify_all()
