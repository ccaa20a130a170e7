"""Type aliases, the records that networks and methods exchange, and the letters of array shapes.

V views, B images, N patches, K kept patches, H hidden patches, T text tokens, D width, E joint width, C prototypes (of
texts: captions of each image), L layers, S image side in pixels, P values per patch. Images are NHWC; `hidden` is True
where a patch is removed; boxes are xyxy in pixels.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import UInt8 as UInt8  # for the modules that import this one
from jaxtyping import UInt32 as UInt32

PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
Batch: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = Float[Array, ""]
Leaf: TypeAlias = Any  # an array, or its shape or sharding in a tree of shapes or shardings

Axis: TypeAlias = str | tuple[str, ...]  # one mesh axis, or several

DATA, FSDP = "data", "fsdp"  # the mesh axes; parameters may be sharded over FSDP only
BATCH = (DATA, FSDP)  # batches are sharded over both axes


class Keys(NamedTuple):
    """Random keys of one step: `step` is shared by all devices, `image` holds one key per image.

    Values drawn per image use the image's key, so they do not depend on the number of devices.
    """

    step: Leaf
    image: Leaf  # [B]

    def of(self, name: str) -> Array:
        """Derives keys [B] for the pass `name`, so that two passes over one image draw different noise."""
        number = zlib.crc32(name.encode())
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(self.image)


class View(struct.PyTreeNode):
    """V crops of each image; `box` is the crop's place in the original image, xyxy in pixels, mirrored if x0 > x1."""

    image: Leaf  # [V, B, S, S, 3], or `data.native_aspect.Native` of V B images
    box: Float[Array, "V B 4"]


class Hidden(struct.PyTreeNode):
    """Which patches are hidden from the student: a mask, and the indices of kept and removed patches, ascending.

    If the number of hidden patches is random (iBOT, AttMask), `kept` is None and `removed` has the length of the
    largest possible number. Indices of patches that are not hidden fill its end; `mask` is False there.
    """

    mask: Bool[Array, "*batch N"]
    kept: Int[Array, "*batch K"] | None
    removed: Int[Array, "*batch H"]


class Tokens(struct.PyTreeNode):
    """Output of an image encoder, after its final norm.

    `extra` holds the class tokens after the first (TIPS), and is None if there is one.
    `mean` is the mean of the patches after the blocks of dinotxt, in float32, and None otherwise.
    `values` holds the patches of the value read-out, after the final norm: MaskCLIP's, where each attends in the last
    block to itself alone, or FG-CLIP 2's, where each is the query of an attention pool. It is None unless requested.
    `attention` holds for each layer the CLS token's attention to the patches: the softmax runs over all keys, CLS
    included, and is averaged over heads. It is None unless requested.
    """

    cls: Float[Array, "*batch D"]
    patches: Float[Array, "*batch K D"]
    attention: Float[Array, "*batch L N"] | None = None
    extra: Float[Array, "*batch R D"] | None = None
    values: Float[Array, "*batch K D"] | None = None
    mean: Float[Array, "*batch D"] | None = None


class Texts(struct.PyTreeNode):
    """The C encoded captions of each image: embeddings in the joint space, not L2-normalised.

    `tokens` are the features of all T words before the projection, and `valid` is True up to the end token. Both are
    None unless the method's text encoding returns them.
    """

    embedding: Float[Array, "C B E"]
    tokens: Float[Array, "C B T D"] | None = None
    valid: Bool[Array, "C B T"] | None = None
