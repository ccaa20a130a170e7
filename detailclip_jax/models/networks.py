"""The networks of a method in one Flax module, used for the student and for the teacher."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.data.native_aspect import Native
from detailclip_jax.models import batch_norm, decoder, heads, text_encoder, vit
from detailclip_jax.models.block import Gather
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.types import Array, Axis, Float, Int

NETWORKS = vit.NETWORKS | text_encoder.NETWORKS | decoder.NETWORKS | heads.NETWORKS | batch_norm.NETWORKS


class Table(Mapping[str, nn.Module]):
    """Networks by name, without parameters; constant and hashable, as fields of Flax modules must be."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        """Copies the mapping."""
        self._networks = dict(networks)

    def __getitem__(self, name: str) -> Any:
        """Returns the network `name`."""
        return self._networks[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._networks)

    def __len__(self) -> int:
        """Returns the number of networks."""
        return len(self._networks)

    def __hash__(self) -> int:
        """Hashes names and networks."""
        return hash(tuple(self._networks.items()))

    def __repr__(self) -> str:
        """Shows names and networks."""
        return f"Table({self._networks!r})"


class Networks(nn.Module):
    """The networks of a method, by name.

        networks.image                  # every network is an attribute
        networks.bind(variables).image  # with its parameters
        "decoder" in networks.table     # whether there is one

    There is no teacher class: the teacher is this module bound to the EMA parameters.
    """

    table: Table

    def setup(self) -> None:
        """Makes every network an attribute of its name."""
        for name, network in self.table.items():
            setattr(self, name, network)

    def __getattr__(self, name: str) -> Any:
        """Returns a network of the table, if this module is not bound to parameters."""
        table = self.__dict__.get("table", {})
        return table[name] if self.__dict__.get("scope") is None and name in table else super().__getattr__(name)

    def only(self, *names: str) -> "Networks":
        """Returns these networks alone."""
        return self.clone(table=Table({name: self.table[name] for name in names}))

    def replacing(self, **networks: nn.Module) -> "Networks":
        """Returns the same networks with some of them replaced."""
        return self.clone(table=Table({**self.table, **networks}))

    def unrolled(self) -> "Networks":
        """Returns the same networks without stacked blocks: `blocks_0`, `blocks_1`, ..."""
        return self._changed("scan", False)

    def gathering(self, gather: Gather | None) -> "Networks":
        """Returns the same networks for sharded parameters of stacked blocks; `gather` all-gathers them per layer."""
        return self._changed("gather", gather)

    def _changed(self, field: str, value: Any) -> "Networks":
        """Sets a field of the networks that have it."""
        having = {name: network for name, network in self.table.items() if hasattr(network, field)}
        return self.replacing(**{name: network.clone(**{field: value}) for name, network in having.items()})

    @property
    def gathers(self) -> bool:
        """Whether stacked blocks expect sharded parameters."""
        return any(getattr(network, "scan", False) and network.gather is not None for network in self.table.values())

    def embed_image(self, images: Float[Array, "B H W 3"] | Native) -> Float[Array, "B E"]:
        """Encodes images in the joint space; embeddings are not L2-normalised."""
        real = images.valid if isinstance(images, Native) else None
        return self.image_projection.embedding(self.image(images), real)

    def embed_text(self, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes captions in the joint space; embeddings are not L2-normalised."""
        return self.text_projection(self.text(tokens))


def build(
    model: ConfigDict,
    networks: Iterable[str] | Mapping[str, Network],
    axis: Axis | None = None,
    platform: str | None = None,
) -> Networks:
    """Builds networks for `config.model`: names of the table `NETWORKS`, or a mapping from names to `Network`.

    `axis` is the mesh axis over which BatchNorm averages its statistics, None if each device has the whole batch.
    `platform` is that of the devices that will compute, "cpu", "gpu" or "tpu"; None: of those
    for which a program is compiled.
    """
    chosen = networks if isinstance(networks, Mapping) else {name: NETWORKS[name] for name in networks}
    sizes.num_side_patches(model)
    build = Build(model, sizes.size_of(model), jnp.dtype(model.dtype), axis, platform)
    return Networks(Table({name: network.make(build) for name, network in chosen.items()}))
