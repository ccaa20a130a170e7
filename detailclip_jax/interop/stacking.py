"""Blocks stacked along a leading axis, as a scan over layers keeps them, and blocks by number."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.types import Params

STACKED = "blocks"


def unstack(params: Params) -> dict[str, Any]:
    """`blocks` with arrays [L, ...] as blocks_0, blocks_1, ...; parameters without any are returned as they are."""
    plain: dict[str, Any] = {}
    for name, value in params.items():
        if name == STACKED:
            depth = jax.tree.leaves(value)[0].shape[0]
            plain |= {f"{STACKED}_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(depth)}
        else:
            plain[name] = unstack(value) if isinstance(value, Mapping) else value
    return plain


def stack(params: Params) -> dict[str, Any]:
    """The inverse: blocks_0, blocks_1, ... of every tower as one `blocks` with a leading axis."""
    numbered = {name: value for name, value in params.items() if re.fullmatch(rf"{STACKED}_\d+", name)}
    rest = {name: stack(v) if isinstance(v, Mapping) else v for name, v in params.items() if name not in numbered}
    if not numbered:
        return rest
    blocks = [numbered[f"{STACKED}_{i}"] for i in range(len(numbered))]
    return {**rest, STACKED: jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
