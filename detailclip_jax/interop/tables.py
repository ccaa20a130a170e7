"""Tables that map our parameter paths to the keys of a PyTorch state dict.

There is one `Entry` per tensor and one `Table` per layout and size. Reading, writing and the check of shapes all use
the same entries.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int

from detailclip_jax.types import Params

Shape = tuple[int, ...]
StateDict = Mapping[str, np.ndarray]


class Transform(NamedTuple):
    """The conversion of a tensor from theirs to ours (`into`), and its inverse (`out`)."""

    into: Callable[[np.ndarray], np.ndarray]
    out: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """One tensor: our path, their key, and the conversion.

    `share` (index, of): their tensor is one of `of` equal slices of ours along the last axis. It is used where only one
    side packs query, key and value into one tensor.
    """

    ours: str
    theirs: str
    transform: Transform
    share: tuple[int, int] = (0, 1)


class Table(NamedTuple):
    """A layout at one size.

    `copies` maps keys to the key whose tensor they repeat. `constants` are tensors determined by the sizes alone.
    `counters` are tensors that the other model requires but ours does not use. A key may be both in `params` and in
    `ema_params`: it is then read into both and written from `params`.
    """

    params: Sequence[Entry]
    ema_params: Sequence[Entry] = ()
    batch_stats: Sequence[Entry] = ()
    copies: Mapping[str, str] = {}
    constants: Mapping[str, Float[np.ndarray, "..."]] = {}
    counters: Mapping[str, Int[np.ndarray, ""]] = {}

    def trees(self) -> dict[str, Sequence[Entry]]:
        """The entries by the variables into which they are read; the first of them that has a key writes it."""
        return {"params": self.params, "ema_params": self.ema_params, "batch_stats": self.batch_stats}


def _conv_out(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(np.transpose, np.transpose)  # (out, in) <-> (in, out)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _conv_out)  # (D, 3, p, p) <-> (p p 3, D)
TOKEN = Transform(lambda x: x.reshape(-1), lambda x: x[None, None])  # (1, 1, D) <-> (D,)
TABLE = Transform(lambda x: x[0], lambda x: x[None])  # (1, N, D) <-> (N, D)
COLUMN = Transform(lambda x: x[:, 0], lambda x: x[:, None])  # (C, 1) <-> (C,)


def read(entries: Iterable[Entry], state_dict: StateDict) -> Params:
    """Our nested parameters from their state dict; raises ValueError that lists missing keys."""
    entries = list(entries)
    if missing := [entry.theirs for entry in entries if entry.theirs not in state_dict]:
        raise ValueError(f"the state dict lacks {len(missing)} tensors: {missing}")
    shares: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # the shares of one tensor are in order
        shares.setdefault(entry.ours, []).append(entry.transform.into(np.asarray(state_dict[entry.theirs])))
    flat = {ours: slices[0] if len(slices) == 1 else np.concatenate(slices, -1) for ours, slices in shares.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def write(entries: Iterable[Entry], params: Params) -> dict[str, np.ndarray]:
    """Their state dict from our nested parameters: the inverse of `read`."""
    flat = flatten(params)
    return {entry.theirs: entry.transform.out(_share(np.asarray(flat[entry.ours]), entry)) for entry in entries}


def _share(ours: np.ndarray, entry: Entry) -> np.ndarray:
    index, of = entry.share
    width = ours.shape[-1] // of if of > 1 else 0
    return ours[..., index * width : (index + 1) * width] if of > 1 else ours


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters as a flat dictionary: "image/norm/scale" -> array."""
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def shapes(entries: Iterable[Entry], ours: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of their tensors, computed from the shapes of ours."""
    blank = np.zeros((), np.float32)
    return {e.theirs: e.transform.out(_share(np.broadcast_to(blank, ours[e.ours]), e)).shape for e in entries}


def linear(ours: str, theirs: str, share: tuple[int, int] = (0, 1)) -> list[Entry]:
    """A linear layer with its bias."""
    return [
        Entry(f"{ours}/kernel", f"{theirs}.weight", LINEAR, share),
        Entry(f"{ours}/bias", f"{theirs}.bias", SAME, share),
    ]


def norm(ours: str, theirs: str) -> list[Entry]:
    """A layer norm."""
    return [Entry(f"{ours}/scale", f"{theirs}.weight", SAME), Entry(f"{ours}/bias", f"{theirs}.bias", SAME)]


def separate_qkv(ours: str, names: tuple[str, ...]) -> list[Entry]:
    """Query, key and value that the other side stores as three linear layers."""
    return [entry for index, theirs in enumerate(names) for entry in linear(ours, theirs, (index, 3))]


def numbered(depth: int, block: Callable[[str, str], list[Entry]], ours: str, theirs: str) -> list[Entry]:
    """`depth` blocks: ours/blocks_0 and theirs.0, and so on."""
    return [entry for i in range(depth) for entry in block(f"{ours}/blocks_{i}", f"{theirs}.{i}")]
