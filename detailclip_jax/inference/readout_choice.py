"""The read-out that `evaluate` found best for the weights of a checkpoint, in a small file of its workdir.

    readouts.json: {"600": {"student": {"readout": "naclip", "sets": ["stickers"], "mean_iou": {"naclip": 0.087, ...},
                                        "inverted": {"naclip": 0.01, ...}}}}

The keys are the step and the name of the weights. A workdir without the file, or a step that it lacks, has no choice.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.inference.readout_maps import check_readout
from detailclip_jax.runtime.files import read_json, replace_text

FILE = "readouts.json"  # in a workdir


class Choice(NamedTuple):
    """The best read-out; of each that was compared the mean IoU and the share of inverted words, means over `sets`."""

    readout: str
    sets: tuple[str, ...]
    mean_iou: Mapping[str, float]
    inverted: Mapping[str, float]


def read(workdir: str | Path, step: int, weights: str) -> Choice | None:
    """The choice for these weights of a step; None if there is none.

    Raises ValueError that names the file if it is damaged or names an unknown read-out.
    """
    if not (file := Path(workdir) / FILE).exists():
        return None
    try:
        choice = read_json(file).get(str(step), {}).get(weights)
        return None if choice is None else parsed(choice)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: {error}; remove the file, and compare the read-outs again with evaluate --tasks=dense:SET:all"
        ) from error


def parsed(stored: Any) -> Choice:
    """The choice of a JSON object. Raises ValueError for another object and for an unknown read-out."""
    try:
        choice = Choice(stored["readout"], tuple(stored["sets"]), dict(stored["mean_iou"]), dict(stored["inverted"]))
        check_readout(choice.readout)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no read-out is stored in {str(stored)[:100]!r}") from error
    return choice


def write(workdir: str | Path, step: int, weights: str, choice: Choice) -> None:
    """Adds the choice to the file of the workdir, in the place of an earlier one for the same step and weights."""
    file = Path(workdir) / FILE
    every = read_json(file) if file.exists() else {}
    every.setdefault(str(step), {})[weights] = choice._asdict()
    replace_text(file, json.dumps(every, indent=1) + "\n")
