"""A limit for what all threads of a process hold at once: a semaphore whose takers count by their size."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Gives out parts of `total`; who asks for more than is free waits until others have given theirs back.

        budget = Budget(100)
        with budget.taken(60): ...     # another thread that asks for 60 waits
        with budget.scope():           # what this thread takes in here is given back at the end of it
            with budget.taken(60): ...

    More than `total` counts as `total`: it waits until nobody holds anything.  Takers are served in their order, so
    that small ones do not keep a large one waiting for ever.  A thread that holds a part already does not wait for
    another one, since the others might wait for the part that it holds.
    """

    def __init__(self, total: int):
        self.total = total
        self._free = total
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._own = threading.local()

    @property
    def free(self) -> int:
        """What nobody holds; below 0 where threads that held some took more."""
        return self._free

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Holds a part for the body, or until the end of the scope that this thread is in."""
        with contextlib.ExitStack() as stack:
            keeper = getattr(self._own, "scope", None) or stack
            amount = min(amount, self.total)
            self._take(amount)
            keeper.callback(self._give_back, amount)
            yield

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Around the use of what is taken inside; of nested scopes the outer one counts."""
        if getattr(self._own, "scope", None):
            yield
            return
        with contextlib.ExitStack() as self._own.scope:
            try:
                yield
            finally:
                stack, self._own.scope = self._own.scope, None
                stack.close()

    def _take(self, amount: int) -> None:
        held = getattr(self._own, "held", 0)
        if held:
            with self._changed:
                self._free -= amount
        else:
            with self._turn, self._changed:
                self._changed.wait_for(lambda: self._free >= amount)
                self._free -= amount
        self._own.held = held + amount

    def _give_back(self, amount: int) -> None:
        self._own.held -= amount
        with self._changed:
            self._free += amount
            self._changed.notify_all()
