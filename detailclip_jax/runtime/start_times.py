"""Times at which a training command has ended the parts of its start, in the file that the environment names.

`python -m detailclip_jax.benchmark start` names the file and reads it; without a name nothing is written.
"""

import json
import os
import time
from pathlib import Path

FILE = "DETAILCLIP_START_TIMES"  # variable of the environment


def ended(part: str) -> None:
    """Appends a line: the part, the time of its end, and the CPU seconds of this process until then."""
    if file := os.environ.get(FILE):
        with Path(file).open("a") as lines:
            lines.write(json.dumps({"part": part, "time": time.time(), "cpu": time.process_time()}) + "\n")


def read(file: Path) -> dict[str, tuple[float, float]]:
    """Returns the time and the CPU seconds at the first end of every part, in order of time."""
    found: dict[str, tuple[float, float]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found.setdefault(line["part"], (line["time"], line["cpu"]))
    return found
