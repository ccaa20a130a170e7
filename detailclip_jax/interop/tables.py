"""Tables between our parameter paths and a PyTorch state dict's keys.

One `Entry` per tensor and one list of entries per layout: reading and writing go through the same rows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from detailclip_jax.types import Params


class Transform(NamedTuple):
    """How a tensor changes on the way in; `out` undoes it, given the shape that the other side wants."""

    into: Callable[[np.ndarray], np.ndarray]
    out: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """One tensor: our path, their key, and the change between them."""

    ours: str
    theirs: str
    transform: Transform


def _conv_out(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(np.transpose, np.transpose)  # (out, in) <-> (in, out)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _conv_out)  # (D, 3, p, p) <-> (p p 3, D)
TOKEN = Transform(lambda x: x.reshape(-1), lambda x: x[None, None])  # (1, 1, D) <-> (D,)
TABLE = Transform(lambda x: x[0], lambda x: x[None])  # (1, N, D) <-> (N, D)
COLUMN = Transform(lambda x: x[:, 0], lambda x: x[:, None])  # (C, 1) <-> (C,)


def read(entries: Iterable[Entry], state_dict: Mapping[str, np.ndarray]) -> Params:
    """Our nested parameters from their state dict; ValueError lists the keys that it lacks."""
    entries = list(entries)
    if missing := [entry.theirs for entry in entries if entry.theirs not in state_dict]:
        raise ValueError(f"the state dict lacks {len(missing)} tensors: {missing}")
    flat = {entry.ours: entry.transform.into(np.asarray(state_dict[entry.theirs])) for entry in entries}
    return traverse_util.unflatten_dict(flat, sep="/")


def write(entries: Iterable[Entry], params: Params) -> dict[str, np.ndarray]:
    """Their state dict from our nested parameters, the inverse of `read`."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {entry.theirs: entry.transform.out(np.asarray(flat[entry.ours])) for entry in entries}


def linear(ours: str, theirs: str) -> list[Entry]:
    """A linear layer with its bias."""
    return [
        Entry(f"{ours}/kernel", f"{theirs}.weight", LINEAR),
        Entry(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def norm(ours: str, theirs: str) -> list[Entry]:
    """A layer norm."""
    return [Entry(f"{ours}/scale", f"{theirs}.weight", SAME), Entry(f"{ours}/bias", f"{theirs}.bias", SAME)]
