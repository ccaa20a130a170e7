"""What checks the annotations of the package while its tests run."""

from typing import Any

from beartype import beartype


def annotated(function):
    """`beartype` for functions with annotations; jaxtyping gives `Any` to parameters without one.

    A nested function is decorated whenever the one around it runs, which is most of the work of these checks.
    """
    return beartype(function) if any(hint is not Any for hint in function.__annotations__.values()) else function
