"""The error for data or weights that cannot be measured, as opposed to a failure of one machine."""


class Unmeasurable(ValueError):
    """The data, or the weights on these data, cannot be measured; the message says why.

    Raise it only for a property of values that are equal on all processes (gathered features and labels, captions,
    prompts). Then all processes raise it at the same place and continue with the next task together. Any other
    exception in a task may concern one process alone (a disk, a damaged file, a connection); some of these are
    ValueErrors too.
    """
