"""LoRA: low-rank adapters beside the kernels W of an encoder's blocks (arXiv 2106.09685).

    x W + (alpha / r) x A B          A [in, r] is drawn, B [r, out] starts at zero, W is frozen

The parameters of an adapted layer are {kernel, bias, lora_a, lora_b, lora_scale}: W, its bias, A, B and alpha / r. In
stacked blocks each has a leading layer axis. `layers.Weights` reads them, so networks compute with adapters wherever
the parameters have them. `optimizer.rules` trains A and B alone.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import traverse_util
from flax.core import meta

from detailclip_jax.config.settings import split_list
from detailclip_jax.kernels.products import EXACT
from detailclip_jax.models.initial_values import ZEROS, Declared, constant, uniform_fan_in
from detailclip_jax.types import Array, Float, Params

A, B, SCALE = NAMES = "lora_a", "lora_b", "lora_scale"
TARGETS = {"attention": "attn/(qkv|proj)", "mlp": "mlp/fc[12]"}  # the linear layers of a block


class Adapter(NamedTuple):
    """The adapters of a network."""

    rank: int
    alpha: int


def parse(text: str) -> dict[str, Adapter]:
    """Returns the adapters by network, of `optimizer.lora`: parse("text:8:16") == {"text": Adapter(8, 16)}.

    Alpha is the rank unless it is given. Raises ValueError for another form, and for a network that stands twice.
    """
    adapters: dict[str, Adapter] = {}
    for entry in split_list(text):
        match = re.fullmatch(r"(\w+):([1-9]\d*)(?::([1-9]\d*))?", entry)
        if match is None or match[1] in adapters:
            raise ValueError(
                f"optimizer.lora {text!r}: {entry!r} must be NETWORK:RANK or NETWORK:RANK:ALPHA with positive whole "
                "numbers, once for each network, for example image:8,text:8"
            )
        adapters[match[1]] = Adapter(int(match[2]), int(match[3] or match[2]))
    return adapters


def init(params: Params, adapters: Mapping[str, Adapter], targets: str, key: Array) -> dict[str, Any]:
    """Returns the parameters of networks with fresh adapters: A is Kaiming-uniform as in PEFT, U(+-1/sqrt(in)).

    `targets` names layers of TARGETS. The parameters may be boxes of `initial_values.Start`; then the adapters are.
    Raises ValueError for a network that is not there, or has no such layers.
    """
    made = dict(params)
    for name, adapter in adapters.items():
        layers = "|".join(TARGETS[target] for target in split_list(targets))
        flat = traverse_util.flatten_dict(dict(params.get(name, {})), sep="/")
        kernels = {path: leaf for path, leaf in flat.items() if re.fullmatch(rf"blocks(_\d+)?/({layers})/kernel", path)}
        if not kernels:
            raise ValueError(f"optimizer.lora: the network {name!r} of this method has no blocks; leave it out")
        for path, kernel in kernels.items():
            *stack, fan_in, fan_out = meta.unbox(kernel).shape
            fresh = {
                A: uniform_fan_in(fan_in)(key, (*stack, fan_in, adapter.rank)),
                B: ZEROS(key, (*stack, adapter.rank, fan_out)),
                SCALE: constant(adapter.alpha / adapter.rank)(key, tuple(stack)),
            }
            for each, leaf in fresh.items():
                leaf = leaf.replace(is_stacked=kernel.is_stacked) if isinstance(kernel, Declared) else leaf
                flat[path.removesuffix("kernel") + each] = leaf
        made[name] = traverse_util.unflatten_dict(flat, sep="/")
    return made


def adapted(
    kernel: Float[Array, "*L D M"], a: Float[Array, "*L D R"], b: Float[Array, "*L R M"], scale: Float[Array, "*L"]
) -> Float[Array, "*L D M"]:
    """Computes W + (alpha / r) A B in float32."""
    return kernel + scale[..., None, None] * jnp.matmul(a, b, precision=EXACT)


def merge(params: Params) -> dict[str, Any]:
    """Returns parameters without adapters that compute the same; without adapters the parameters themselves."""
    merged: dict[str, Any] = {
        name: merge(value) if isinstance(value, Mapping) else value for name, value in params.items()
    }
    if A in merged:
        merged["kernel"] = adapted(merged["kernel"], *(merged.pop(name) for name in NAMES))
    return merged


def base(params: Params) -> dict[str, Any]:
    """Returns the parameters, or a tree of their shapes, without the adapters; kernels are not changed."""
    return {
        name: base(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in NAMES
    }


def with_adapters(params: Params, adapted: Params) -> dict[str, Any]:
    """Returns the parameters, which have no adapters, with those of `adapted`, a tree of the same networks."""
    theirs = {name: adapted[name] for name in NAMES if name in adapted}
    return theirs | {
        name: with_adapters(value, adapted[name]) if isinstance(value, Mapping) else value
        for name, value in params.items()
    }
