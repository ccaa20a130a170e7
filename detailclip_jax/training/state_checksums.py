"""Checksums of the arrays of a state, which do not depend on the devices that hold them.

A checkpoint stores them: a state that is restored, on any number of devices, is compared with the one that was saved.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from detailclip_jax.runtime.metric_files import NonFiniteError
from detailclip_jax.types import PyTree

SMALL = 2**16  # values of an array whose checksum is computed on the host


def checksums(state: PyTree) -> dict[str, int]:
    """Computes path -> checksum of every array.

    A checksum is a sum over the bits and positions of all values, modulo 2^32; it is the same on any number of devices.
    Raises NonFiniteError that names the arrays with nan or infinite values.
    """
    sums, bad = {}, []
    # one after the other: hundreds of sums over devices in flight can block each other where devices share few threads
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if leaf.size > SMALL or not getattr(leaf, "is_fully_addressable", True):
            # one small program per shape: one for a whole state takes seconds to compile, as those of many shapes would
            total, finite = jax.device_get(_inspect(leaf))
        else:
            values = np.asarray(leaf).ravel()
            bits = values.view(f"uint{8 * values.itemsize}").astype(np.uint32)
            total = _mixed(bits ^ _mixed(np.arange(values.size, dtype=np.uint32))).sum(dtype=np.uint32)
            finite = np.isfinite(values).all()
        sums[name] = int(total)
        if not finite:
            bad.append(name)
    if bad:
        raise NonFiniteError(f"the state is not finite in {', '.join(bad[:5])} ({len(bad)} of {len(sums)} arrays)")
    return sums


@jax.jit
def _inspect(leaf: Array) -> tuple[UInt32[Array, ""], Bool[Array, ""]]:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    is_finite = jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)
    places = jnp.zeros(leaf.shape, jnp.uint32)  # the row-major index of each value, modulo 2^32
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        places += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mixed(bits ^ _mixed(places)), dtype=jnp.uint32), is_finite


def _mixed(x: UInt32[Array, "..."] | UInt32[np.ndarray, "..."]) -> Any:
    """The final mix of MurmurHash3 (Appleby, public domain): a bijection in which every bit depends on all others."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
