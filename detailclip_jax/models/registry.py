"""What the library knows of a network: how it is built, and how its parameters are trained and stored.

Each file of networks has a table `NETWORKS` from names to `Network`, next to the modules; `networks.NETWORKS` joins
them. A method may also bring networks of its own, see `methods.method.uses`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from detailclip_jax.config.sizes import Size
from detailclip_jax.models.attention import Kernel, choose_kernel
from detailclip_jax.types import FSDP, Axis


class Build(NamedTuple):
    """What a network is built from."""

    model: ConfigDict  # config.model
    size: Size
    dtype: Any
    axis: Axis | None = None  # mesh axis over which BatchNorm averages; None if each device has the whole batch
    platform: str | None = None  # of the devices that will compute; None: that for which a program is compiled

    def kernel(self, width: int, num_heads: int) -> Kernel:
        """Returns the attention kernel for `num_heads` heads of a network of this width, which they must divide."""
        if width % num_heads:
            raise ValueError(f"a network of width {width} cannot have {num_heads} attention heads of equal width")
        return choose_kernel(self.model.attention, self.dtype, width // num_heads, self.platform)


class ParameterRule(NamedTuple):
    """How parameters are treated; the first rule applies whose pattern matches the path inside of the network."""

    pattern: str
    decayed: bool = False  # by AdamW's weight decay
    vector: bool = False  # a vector that the reference stores with more axes: decayed only with `optimizer.decay_1d`
    spec: P = P()  # sharding of the last axes; leading axes (the layers of stacked blocks) are not divided
    late: bool = False  # not updated in the first `optimizer.frozen_prototype_epochs`
    bounds: tuple[float, float] | None = None  # values are clipped to them after each update


COMMON = (  # rules for the end of a path, in all networks; a network's own rules come first
    ParameterRule("(bias|scale)"),
    ParameterRule("kernel", decayed=True, spec=P(FSDP, None)),
    ParameterRule("lora_a", decayed=True, spec=P(FSDP, None)),  # of an adapter, divided as its kernel
    ParameterRule("lora_b", decayed=True),
    ParameterRule("lora_scale"),
)


class Network(NamedTuple):
    """A network: its maker, the rules of parameters that are neither kernel, bias nor scale, and what is frozen.

    `frozen` maps a pattern of paths to the boolean field of `config.model` that freezes these parameters; "" always.

    The last fields say how a network is loaded from another checkpoint (`config.init`): `adopted` are the fields of
    `config.model` that it then keeps; it stays fresh unless both configs agree in the dotted fields `reload_if_equal`,
    and both methods have the same `kind` of network under this name.
    """

    make: Callable[[Build], nn.Module]
    rules: tuple[ParameterRule, ...] = ()
    frozen: Mapping[str, str] = {}
    batch_norm: bool = False  # whether it normalises over the batch, so that its outputs depend on all images
    adopted: tuple[str, ...] = ()
    reload_if_equal: tuple[str, ...] = ()
    kind: str = ""
    loaded_by_term: bool = False  # the term that brings it loads its weights, or draws them


def parameter_rules(networks: Mapping[str, Network]) -> dict[str, ParameterRule]:
    """Returns the rules of the networks' parameters by the pattern of the whole path.

    parameter_rules({"mask_token": token}) == {"mask_token/value": ParameterRule("value", decayed=True, vector=True)}
    """
    return {f"{name}/{rule.pattern}": rule for name, network in networks.items() for rule in network.rules}
