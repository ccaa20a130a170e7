"""What checks the annotations of the package while its tests run."""

import functools
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray


def annotated(function):
    """`beartype` for functions in whose signature an array has its shape; pyright checks the other annotations."""
    return at_first_call(function) if any(map(has_shape, function.__annotations__.values())) else function


def has_shape(hint):
    """Whether an annotation is that of an array with a shape, or contains one."""
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(has_shape, get_args(hint)))


def at_first_call(function):
    """`function`, decorated by `beartype` at its first call: a test process calls few of the package's functions.

    An annotation that beartype cannot read is an error at that call.
    """
    decorated = functools.cache(lambda: beartype(function))
    return functools.wraps(function)(lambda *args, **kwargs: decorated()(*args, **kwargs))
