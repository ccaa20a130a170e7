"""Array aliases and the letters that shapes are written in.

V views, B images, N patches, K kept patches, H hidden patches, T words, D width, E joint width, C prototypes,
L layers, S image side in pixels, P values of one patch.  Images are NHWC; `hidden` is True where a patch is removed;
boxes are xyxy in pixels.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
Batch: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = Float[Array, ""]
Leaf: TypeAlias = Any  # an array, or what stands for one in a tree of shapes or of shardings


@struct.dataclass
class View:
    """V crops of each image and where they were cut: `box` is xyxy in pixels of the picture itself."""

    image: Float[Array, "V B S S 3"]
    box: Float[Array, "V B 4"]


@struct.dataclass
class Hidden:
    """Which patches are removed: the mask, and its two index lists in ascending order."""

    mask: Bool[Array, "*batch N"]
    kept: Int[Array, "*batch K"]
    removed: Int[Array, "*batch H"]


@struct.dataclass
class Tokens:
    """What an image encoder returns, after its final norm.

    `attention` holds per layer the softmax of the CLS row over all keys, patches only, averaged over heads;
    it is None unless asked for.
    """

    cls: Float[Array, "*batch D"]
    patches: Float[Array, "*batch K D"]
    attention: Float[Array, "*batch L N"] | None = None


__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Float",
    "Hidden",
    "Int",
    "Leaf",
    "Params",
    "PyTree",
    "Scalar",
    "Tokens",
    "UInt8",
    "View",
]
