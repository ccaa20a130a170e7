"""Array aliases and the letters that shapes are written in.

V views, B images, N patches, K kept patches, H hidden patches, T words, D width, E joint width, C prototypes,
L layers, S image side in pixels, P values of one patch.  Images are NHWC; `hidden` is True where a patch is removed;
boxes are xyxy in pixels.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
Batch: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = Float[Array, ""]
Leaf: TypeAlias = Any  # an array, or what stands for one in a tree of shapes or of shardings

Axis: TypeAlias = str | tuple[str, ...]  # of the mesh

DATA, FSDP = "data", "fsdp"  # the mesh's axes; parameters are divided over the second, if at all
BATCH = (DATA, FSDP)  # batches are spread over both


class Keys(NamedTuple):
    """Randomness of a step: one key that all devices share, and one of its own for every image of the batch.

    What is drawn per image comes from the image's key, so the number of devices changes no number.
    """

    step: Leaf
    image: Leaf  # [B]

    def of(self, name: str) -> Array:
        """The images' keys for the pass of that name: two passes over one image draw different noise."""
        number = zlib.crc32(name.encode())
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(self.image)


class View(struct.PyTreeNode):
    """V crops of each image and where they were cut: `box` is xyxy in pixels of the picture itself."""

    image: Float[Array, "V B S S 3"]
    box: Float[Array, "V B 4"]


class Hidden(struct.PyTreeNode):
    """Which patches are hidden from the student: the mask, and its two index lists in ascending order.

    Where the number of hidden patches is drawn (iBOT, AttMask) `kept` is None, and `removed` has room for the most
    that there can be: patches that are not hidden fill it up, and `mask` tells them apart.
    """

    mask: Bool[Array, "*batch N"]
    kept: Int[Array, "*batch K"] | None
    removed: Int[Array, "*batch H"]


class Tokens(struct.PyTreeNode):
    """What an image encoder returns, after its final norm.

    `attention` holds per layer the softmax of the CLS row over all keys, patches only, averaged over heads;
    it is None unless asked for.
    """

    cls: Float[Array, "*batch D"]
    patches: Float[Array, "*batch K D"]
    attention: Float[Array, "*batch L N"] | None = None


__all__ = [
    "BATCH",
    "DATA",
    "FSDP",
    "Array",
    "Axis",
    "Batch",
    "Bool",
    "Float",
    "Hidden",
    "Int",
    "Keys",
    "Leaf",
    "Params",
    "PyTree",
    "Scalar",
    "Tokens",
    "UInt8",
    "View",
]
