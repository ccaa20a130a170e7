"""The end of a command's process."""

import contextlib
import os
import sys
from typing import NoReturn


class Interrupted(int):
    """The exit code of a command that a signal ended in the middle of its work."""


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code of its command, after all `finally` blocks.

    After an interrupt, what libraries do at exit is left out: the signal may have ended the wait for a compilation, but
    XLA's threads go on with it, and crash once the libraries have released their memory.

    if __name__ == "__main__":
        leave(main())
    """
    if not isinstance(code, Interrupted):
        sys.exit(code)
    try:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a closed pipe
                stream.flush()
    finally:  # also if another signal arrives
        os._exit(code)
