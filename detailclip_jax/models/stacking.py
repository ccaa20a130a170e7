"""Conversion between stacked blocks (parameters with a leading layer axis, as `nn.scan` uses them) and single blocks.

In the parameters of an encoder or decoder `blocks_N` is the single block N, and `blocks` with arrays [L, ...] holds
all other blocks in ascending order: {blocks, blocks_11} of a 12-block encoder are blocks 0 .. 10, stacked, and 11.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.types import Params

STACKED = "blocks"
_NUMBERED = re.compile(rf"{STACKED}_(\d+)")


def numbers(tower: Params) -> list[int]:
    """Returns the numbers of the stacked blocks in ascending order; empty if none is stacked."""
    if STACKED not in tower:
        return []
    apart = {int(match[1]) for name in tower if (match := _NUMBERED.fullmatch(name))}
    depth = jax.tree.leaves(tower[STACKED])[0].shape[0]
    return [number for number in range(depth + len(apart)) if number not in apart]


def unstack(params: Params) -> dict[str, Any]:
    """Converts all stacked blocks to single ones; parameters without stacked blocks keep their structure."""
    plain = {
        f"{STACKED}_{number}": jax.tree.map(lambda x, i=i: x[i], params[STACKED])
        for i, number in enumerate(numbers(params))
    }
    for name, value in params.items():
        if name != STACKED:
            plain[name] = unstack(value) if isinstance(value, Mapping) else value
    return plain


def like(params: Params, shape: Params) -> dict[str, Any]:
    """Stacks the blocks of `params` that are stacked in `shape`, a tree of arrays or of their shapes.

    Raises ValueError if `params` lacks some of these blocks.
    """
    return _stack(unstack(params), shape)


def _stack(plain: Params, shape: Params) -> dict[str, Any]:
    stacked = [f"{STACKED}_{number}" for number in numbers(shape)]
    unstacked = {
        name: _stack(value, shape.get(name, {})) if isinstance(value, Mapping) else value
        for name, value in plain.items()
        if name not in stacked
    }
    if missing := [name for name in stacked if name not in plain]:
        raise ValueError(f"parameters lack the blocks {', '.join(missing)}")
    if stacked:
        stack = lambda *x: (np if isinstance(x[0], np.ndarray) else jnp).stack(x)  # noqa: E731
        unstacked[STACKED] = jax.tree.map(stack, *(plain[name] for name in stacked))
    return unstacked
