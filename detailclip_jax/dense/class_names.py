"""The class names of a dense run, in its workdir: predictions need them and no data, and a run keeps its classes."""

import json
from collections.abc import Sequence
from pathlib import Path

from detailclip_jax.runtime.files import read_json, replace_text

FILE = "classes.json"


def read(workdir: str | Path) -> tuple[str, ...]:
    """The class names of a run, by label; () for a workdir without them.  Raises ValueError for a damaged file."""
    file = Path(workdir) / FILE
    if not file.exists():
        return ()
    try:
        names = read_json(file)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: {error}; delete it, and the data of the run are opened instead"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} is damaged: it is not a list of names; delete it, and the data of the run are opened")
    return tuple(names)


def write(workdir: str | Path, classes: Sequence[str]) -> None:
    """Writes the class names of a run."""
    replace_text(Path(workdir) / FILE, json.dumps(list(classes), indent=1) + "\n")


def check(known: Sequence[str], present: Sequence[str]) -> None:
    """Raises ValueError if a run has `known` class names and its data now have others; () is not checked."""
    if not known or tuple(known) == tuple(present):
        return
    if len(known) != len(present):
        raise ValueError(f"the run has {len(known)} classes, its data now {len(present)}; {WAY_OUT}")
    label = next(number for number, pair in enumerate(zip(known, present)) if pair[0] != pair[1])
    raise ValueError(
        f"class {label} of the run is {known[label]!r}, that of its data is now {present[label]!r}; {WAY_OUT}"
    )


WAY_OUT = "restore the names and their order, or choose another --workdir"
