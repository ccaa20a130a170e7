"""What checks the annotations of the package while its tests run."""

import functools
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def annotated(function):
    """`beartype` for functions with annotations; jaxtyping gives `Any` to parameters without one.

    A nested function is decorated whenever the one around it runs, which takes a third of the time of all decorations.
    So it is checked only if an array has its shape there; pyright checks the other annotations.
    """
    hints = function.__annotations__.values()
    if "<locals>" in function.__qualname__:
        checked = any(isinstance(hint, type) and issubclass(hint, AbstractArray) for hint in hints)
    else:
        checked = any(hint is not Any for hint in hints)
    return at_first_call(function) if checked else function


def at_first_call(function):
    """`function`, decorated by `beartype` at its first call: a test process calls few of the package's functions.

    An annotation that beartype cannot read is an error at that call.
    """
    decorated = functools.cache(lambda: beartype(function))
    return functools.wraps(function)(lambda *args, **kwargs: decorated()(*args, **kwargs))
