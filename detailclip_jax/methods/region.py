"""Crop to region distillation as a term of other methods: `losses.weights.region` (after CLIPSelf, arXiv 2310.01403).

The student encodes a large crop, and the teacher the small crops "local". Where a small crop lies in the large one, the
student's patches are pooled in its box (RoIAlign), and the loss brings the result near the teacher's embedding of the
small crop. So each patch learns what the class token of a crop around it says. Equation: `losses.region`. The patches
are those of the value read-out (in the last block each attends to itself alone), through the projection of the class
token, L2-normalised before they are pooled.

A box counts if the large crop has 90 % of its area, and if it spans 1.5 patches in both directions; it is cut to the
large crop. Crops of the kind "inside" always lie in the first large one. If the student drops patches, the visible ones
are pooled by their own weights, and a box without any does not count.

Differences from the published codes: the teacher is a moving average, while CLIPSelf's is the frozen start (momentum
1) and FineCLIP's the student itself, with gradient; boxes are random crops, not a grid or proposals. FineCLIP's
contrast of regions with captions also counts the rows that pad a batch; here only boxes that count are in the mean.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.data.regions import usable
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.region import region_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.maps_at_crops import box_weights, boxes_in
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, WholeBatch, fold, uses
from detailclip_jax.models.networks import Networks
from detailclip_jax.types import Array, Bool, Float, Scalar

CROPS = "local"  # the teacher's crops
AVERAGED = ("image", "image_projection")  # networks of the teacher of a method without one


def region(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the first of the method's passes whose class tokens captions are compared with.

    A method without a teacher gets one, which averages the image encoder and its projection; the student is evaluated.
    A teacher that runs the student's encoder (`tipsv2`) keeps it. Raises ValueError for a method without captions or
    whose pass replaces patches, and for a config without the crops "local".
    """
    name, passes = components.with_values(method, "region")
    if CROPS not in config.views.crops:
        raise ValueError(
            f"losses.weights.region needs crops for the teacher, but views.crops has no {CROPS!r}: it has only "
            f"{', '.join(config.views.crops)}; configs/beyond/continue_region.py and configs/stickers.py:method="
            f"{method.name},region=1 have them, or set losses.weights.region to 0"
        )
    averaged = AVERAGED if not method.ema or "image" in method.ema else ()
    return method.plus(
        (region_head(name, passes[name].view, config),),
        Loss("region", MADE, region_term, over="batch"),
        passes=passes,
        targets={**method.targets, CROPS: CROPS},
        ema=(*method.ema, *(network for network in averaged if network not in method.ema)),
        weights=method.weights if method.ema else "student",
    )


def region_head(name: str, view: str, config: ConfigDict) -> Head:
    """Head of the regions of the student's pass `name` over `view`: those of the V crops in each of its G views.

    R = G V; the crops of the first view come first.
    """
    side = config.views.crops[view].size // sizes.size_of(config.model).patch_size

    @uses("image_projection")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        maps = l2_normalise(fold(student.image_projection, record.tokens[name].values))
        boxes = boxes_in(record.views[CROPS].box, record.views[view].box[:, None])
        boxes, counts = usable(boxes, side)
        pooled, seen = pooled_in(maps, boxes, side, record)
        crops = jax.lax.stop_gradient(fold(teacher.image_projection, record.targets[CROPS].cls))
        regions = pooled, jnp.broadcast_to(crops, (len(maps), *crops.shape)), (counts & seen).astype(jnp.float32)
        return {made: x.reshape(-1, *x.shape[2:]) for made, x in zip(MADE, regions, strict=True)}

    return Head(MADE, run, per_image=True)


MADE = ("region_pooled", "region_crops", "region_counts")


def pooled_in(
    maps: Float[Array, "G B K D"], boxes: Float[Array, "G V B 4"], side: int, record: Forward
) -> tuple[Float[Array, "G V B D"], Bool[Array, "G V B"]]:
    """Pools maps of `side` x `side` patches in boxes, shares of their sides; returns also whether each sees a patch.

    Of a pass that drops patches, the visible ones are pooled by their own weights, whose sum is then below 1: for
    losses that read directions.
    """
    weights = box_weights(boxes, side)
    if maps.shape[-2] != side**2:
        weights = jnp.take_along_axis(weights, record.hidden.kept[:, None], -1)
    return jnp.einsum("gvbn,gbnd->gvbd", weights, maps, precision="highest"), weights.any(-1)


def region_term(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the loss of the regions, a mean over those of the whole batch; logs the share of boxes that count."""
    pooled, crops, counts = (record.heads[name] for name in MADE)
    return region_loss(pooled, crops, counts, whole_batch.axis), {"region_boxes": counts.mean()}
