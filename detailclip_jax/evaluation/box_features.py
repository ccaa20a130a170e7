"""Features of boxes: the patches of the whole image, pooled in the box (RoIAlign), as FG-CLIP evaluates.

The image is squashed to a square.  Its patches are those of the value read-out, through the image projection; their
mean in a box is L2-normalised.  An attention pool pools the image once for each patch as the query, as in FG-CLIP 2.
Features of boxes that are cut out of the image are another measurement.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.labelled.boxes import BoxSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import Picked
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluator import Measured
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.methods.maps_at_crops import box_weights
from detailclip_jax.models.image_blocks import has_blocks
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.vit import Style
from detailclip_jax.runtime.errors import NotApplicable
from detailclip_jax.types import Array, Params

AT_ONCE = 16  # boxes of an image that are pooled from one pass over it; one with more takes several


def box_features(networks: Networks, batch: Any, boxes: Float[Array, "M R 4"]) -> Float[Array, "B R E"]:
    """Computes the features of the R boxes of each image of a batch; "index" says which of the M rows are its own."""
    maps = networks.image_projection(networks.image(batch["image"], values=True).values)
    weights = box_weights(jnp.clip(boxes[batch["index"]], 0, 1), round(maps.shape[1] ** 0.5))
    return l2_normalise(jnp.einsum("brn,bne->bre", weights, maps, precision="highest"))


def check_pooling(config: ConfigDict | None) -> None:
    """Raises NotApplicable for a model whose value read-out has no place in the joint space."""
    needs = "boxes are pooled from patches of the value read-out, each projected on its own"
    if config is None:
        raise NotApplicable(f"{needs}, which a model of another library does not give; import it")
    if has_blocks(methods.build(config).networks):
        raise NotApplicable(f"{needs}; {config.method} has blocks over all tokens in place of the projection")


def with_remark(measured: Measured, config: ConfigDict | None) -> Measured:
    """The metrics; those of a model with an attention pool say which pool gave the features."""
    pool = config is not None and Style(**config.model.image_style).has_pool
    for name, value in measured:
        if pool:
            value.remark = "by the pool of whole images; FG-CLIP 2 has a trained copy of it, which an import leaves out"
        yield name, value


def pooled_boxes(
    embedder: Embedder, params: Params, found: BoxSet, transform: Transform
) -> tuple[Float[np.ndarray, "m E"], Int[np.ndarray, " m"]]:
    """Returns the features of all boxes of readable images, and their indices; an image is squashed to a square."""
    order = np.argsort(found.images, kind="stable")
    starts = np.searchsorted(found.images[order], np.arange(len(found.data.source) + 1))
    rows = [
        order[first : min(first + AT_ONCE, end)]
        for start, end in itertools.pairwise(starts)
        for first in range(start, end, AT_ONCE)
    ]
    table = np.zeros((len(rows), AT_ONCE, 4), np.float32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = found.boxes[row]
    images = [int(found.images[row[0]]) for row in rows]
    part = found.data._replace(
        source=Picked(found.data.source, images), fingerprint=f"{found.data.fingerprint}+{AT_ONCE}", expected=None
    )
    squashed = transform._replace(resize="squash", shorter_side=transform.size, patch_size=0, max_patches=0)
    embedded = embedder.computed(params, part, squashed, box_features, table)
    kept = [(place, slot) for place, row in enumerate(embedded.index) for slot in range(len(rows[row]))]
    index = np.concatenate([rows[row] for row in embedded.index])
    places, slots = np.array(kept).T
    return embedded.features[places, slots], index
