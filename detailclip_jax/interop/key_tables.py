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
    """The conversion of a tensor of a state dict to a parameter (`into`), and its inverse (`out`)."""

    into: Callable[[np.ndarray], np.ndarray]
    out: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """One tensor: the path of the parameter, the key in the state dict, and the conversion.

    `share` (index, of): the tensor is one of `of` equal slices of the parameter along the last axis, for models that
    store query, key and value apart.
    """

    path: str
    key: str
    transform: Transform
    share: tuple[int, int] = (0, 1)


class Table(NamedTuple):
    """A layout at one size.

    `copies` maps keys to the key whose tensor they repeat, `echoes` the same for tensors that are written but not read.
    `fixed` are our parameters, by path, for which the other model has no tensor and assumes this value. `constants` are
    tensors determined by the sizes alone. `counters` are tensors that the other model requires and this one does not
    use. A key may be both in `params` and in `ema_params`: it is then read into both and written from `params`.
    """

    params: Sequence[Entry]
    ema_params: Sequence[Entry] = ()
    batch_stats: Sequence[Entry] = ()
    copies: Mapping[str, str] = {}
    echoes: Mapping[str, str] = {}
    fixed: Mapping[str, Float[np.ndarray, "..."]] = {}
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
VALUE = Transform(lambda x: x.reshape(()), lambda x: x.reshape(1))  # (1,) <-> ()
COLUMN = Transform(lambda x: x[:, 0], lambda x: x[:, None])  # (C, 1) <-> (C,)


def read(entries: Iterable[Entry], state_dict: StateDict) -> Params:
    """Converts a state dict to nested parameters; raises ValueError that lists missing keys."""
    entries = list(entries)
    if missing := [entry.key for entry in entries if entry.key not in state_dict]:
        raise ValueError(f"the state dict lacks {len(missing)} tensors: {missing}")
    shares: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # the shares of one tensor are in order
        shares.setdefault(entry.path, []).append(entry.transform.into(np.asarray(state_dict[entry.key])))
    return unflatten(
        {path: slices[0] if len(slices) == 1 else np.concatenate(slices, -1) for path, slices in shares.items()}
    )


def write(entries: Iterable[Entry], params: Params) -> dict[str, np.ndarray]:
    """Converts nested parameters to a state dict: the inverse of `read`."""
    flat = flatten(params)
    return {entry.key: entry.transform.out(_share(np.asarray(flat[entry.path]), entry)) for entry in entries}


def _share(array: np.ndarray, entry: Entry) -> np.ndarray:
    index, of = entry.share
    width = array.shape[-1] // of if of > 1 else 0
    return array[..., index * width : (index + 1) * width] if of > 1 else array


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters as a flat dictionary: "image/norm/scale" -> array."""
    return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def unflatten(flat: Mapping[str, Any]) -> Params:
    """A flat dictionary as nested parameters: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def shapes(entries: Iterable[Entry], flat: Mapping[str, Shape]) -> dict[str, Shape]:
    """Computes the shapes of the state dict from those of the parameters, by path."""
    blank = np.zeros((), np.float32)
    return {e.key: e.transform.out(_share(np.broadcast_to(blank, flat[e.path]), e)).shape for e in entries}


def linear(path: str, key: str, share: tuple[int, int] = (0, 1)) -> list[Entry]:
    """A linear layer with its bias."""
    return [
        Entry(f"{path}/kernel", f"{key}.weight", LINEAR, share),
        Entry(f"{path}/bias", f"{key}.bias", SAME, share),
    ]


def norm(path: str, key: str) -> list[Entry]:
    """A layer norm."""
    return [Entry(f"{path}/scale", f"{key}.weight", SAME), Entry(f"{path}/bias", f"{key}.bias", SAME)]


def cross_pool(path: str, key: str, norms: str = "qk") -> list[Entry]:
    """A pool of COSMOS's or FLAIR's code: norms of query and key (and, with `norms` "qkv", value), then attention."""
    named = {"q": "norm_query", "k": "norm_key", "v": "norm_value"}
    return [
        *(entry for name in norms for entry in norm(f"{path}/{named[name]}", f"{key}.ln_{name}")),
        Entry(f"{path}/qkv/kernel", f"{key}.attn.in_proj_weight", LINEAR),
        Entry(f"{path}/qkv/bias", f"{key}.attn.in_proj_bias", SAME),
        *linear(f"{path}/proj", f"{key}.attn.out_proj"),
    ]


def concatenated(path: str, keys: Sequence[str]) -> list[Entry]:
    """One linear layer of ours whose outputs the other model stores as several: query, key and value."""
    return [entry for index, key in enumerate(keys) for entry in linear(path, key, (index, len(keys)))]


def within(part: str, entries: Iterable[Entry]) -> list[Entry]:
    """The same entries in a checkpoint with several state dicts: the keys begin with the name of theirs."""
    return [entry._replace(key=f"{part}.{entry.key}") for entry in entries]


def numbered(depth: int, block: Callable[[str, str], list[Entry]], path: str, key: str) -> list[Entry]:
    """The entries of `depth` blocks: path/blocks_0 and key.0, and so on."""
    return [entry for i in range(depth) for entry in block(f"{path}/blocks_{i}", f"{key}.{i}")]
