"""What XLA's compiler writes on standard error."""

import contextlib
import os
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # of XLA's log; jax sets it to USUAL when it is imported
USUAL, FATAL = 1, 3


@contextlib.contextmanager
def without_alarm() -> Iterator[None]:
    """Context of work that may compile for minutes: XLA does not print "Very slow compile? If you want to file a bug".

    XLA logs this alarm as an error, after two minutes, and has no flag for it.  So its log shows fatal errors alone
    inside the context; an error of the work itself is an exception.  Does nothing if the user has set another LEVEL.
    """
    from jaxlib import utils  # pyright: ignore[reportAttributeAccessIssue]

    if os.environ.get(LEVEL) != str(USUAL):
        yield
        return
    utils.absl_set_min_log_level(FATAL)
    try:
        yield
    finally:
        utils.absl_set_min_log_level(USUAL)
