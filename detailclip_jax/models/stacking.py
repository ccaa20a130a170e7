"""Blocks stacked along a leading axis, as a loop over layers keeps them, and blocks by number.

A tower's numbered blocks keep their numbers; `blocks` with arrays [L, ...] holds those whose numbers are missing:
{blocks, blocks_11} are 0 .. 10 stacked, and 11.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.types import Params

STACKED = "blocks"
_NUMBERED = re.compile(rf"{STACKED}_(\d+)")


def numbers(tower: Params) -> list[int]:
    """Numbers of the blocks that are stacked, in their order; empty without any."""
    if STACKED not in tower:
        return []
    apart = {int(match[1]) for name in tower if (match := _NUMBERED.fullmatch(name))}
    depth = jax.tree.leaves(tower[STACKED])[0].shape[0]
    return [number for number in range(depth + len(apart)) if number not in apart]


def unstack(params: Params) -> dict[str, Any]:
    """Every stacked block under its own number; parameters without any are returned as they are."""
    plain = {
        f"{STACKED}_{number}": jax.tree.map(lambda x, i=i: x[i], params[STACKED])
        for i, number in enumerate(numbers(params))
    }
    for name, value in params.items():
        if name != STACKED:
            plain[name] = unstack(value) if isinstance(value, Mapping) else value
    return plain


def like(params: Params, shape: Params) -> dict[str, Any]:
    """Parameters with their blocks stacked where those of `shape` are; arrays or their shapes."""
    return _stack(unstack(params), shape)


def _stack(plain: Params, shape: Params) -> dict[str, Any]:
    stacked = [f"{STACKED}_{number}" for number in numbers(shape)]
    made = {
        name: _stack(value, shape.get(name, {})) if isinstance(value, Mapping) else value
        for name, value in plain.items()
        if name not in stacked
    }
    if missing := [name for name in stacked if name not in plain]:
        raise ValueError(f"parameters lack the blocks {', '.join(missing)}")
    return (
        {**made, STACKED: jax.tree.map(lambda *x: jnp.stack(x), *(plain[name] for name in stacked))}
        if stacked
        else made
    )
