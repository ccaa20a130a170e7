"""What is wrong with a set as such, which is not the failure of one machine."""


class Unmeasurable(ValueError):
    """These data, or these weights on them, cannot be measured so; the message says why.

    For what is found in that which all processes hold alike (gathered features and labels, captions, prompts): then
    all of them find it at the same place and go on to the next task together.  Whatever else is raised in a task may
    have come to one process alone: a disk, a damaged file, a connection, each in an error of its own, some of them
    ValueErrors.
    """
