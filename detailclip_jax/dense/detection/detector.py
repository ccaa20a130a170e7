"""The detector: plain ViT, pyramid, FPN, region proposals, cascade of box and mask heads.

    model = build(encoder, Options(), num_classes=80, axis=None)
    losses, changed = model.apply(variables, batch, train=True, keys=keys, mutable=["batch_stats"])
    detections = model.apply(variables, images, size, method="detect")

A batch holds arrays of fixed shapes; H and W are multiples of 2 x patch size:

    image   uint8 [B, H, W, 3]    content at the top left, padded with 0
    size    int32 [B, 2]          height and width of the content in pixels
    boxes   float32 [B, G, 4]     xyxy in pixels
    labels  int32 [B, G]          0 to K - 1; -1: no object
    crowd   bool [B, G]
    masks   uint8 [B, G, M, M]    0 or 1: each object's mask, resampled into its box

`keys` [B] are one random key per image (as in segmentation), for drop path and samples; so the numbers do not depend on
how images are divided over devices. With a mesh axis the losses are those of the batch of all devices, equal on each.

The detections of an image depend neither on the shape of the arrays nor on the other images of a batch, see `backbone`:
attention, convolutions and RoIAlign see the image's extent only. In training BatchNorm takes the statistics of all
images' extents and of all sampled RoIs, over all devices. mmdet differs in training: its statistics include padding,
and its losses are means per device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.dense.detection import detection_losses
from detailclip_jax.dense.detection.anchors import Level, places
from detailclip_jax.dense.detection.assignment import Objects
from detailclip_jax.dense.detection.backbone import backbone, extents, widen
from detailclip_jax.dense.detection.cascade import Cascade, Maps, Truth
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.detection.fpn import Fpn
from detailclip_jax.dense.detection.nms import class_wise_nms
from detailclip_jax.dense.detection.rpn import Proposals, RpnHead, proposals, rpn_loss
from detailclip_jax.dense.segmentation.segmentation_network import normalise_content
from detailclip_jax.dense.segmentation.upernet import Pyramid
from detailclip_jax.models.taps import usual_blocks
from detailclip_jax.models.vit import VisionTransformer, fold_in
from detailclip_jax.types import Array, Axis, Batch, Float, Int, Scalar, UInt8

RPN, CASCADE = 2_000_000, 2_000_001  # folded into an image's key; drop path folds in the numbers of the blocks


class Losses(NamedTuple):
    """Weighted losses of the batch, float32, and counts of the batch that are not part of the loss."""

    rpn_class: Scalar
    rpn_box: Scalar
    class_1: Scalar
    class_2: Scalar
    class_3: Scalar
    box_1: Scalar
    box_2: Scalar
    box_3: Scalar
    mask_1: Scalar
    mask_2: Scalar
    mask_3: Scalar
    objects: Scalar  # that can be detected: neither empty entries nor crowds
    missed_objects: Scalar  # that no proposal overlaps with an IoU of the first stage's threshold
    proposals: Scalar
    moved_rois: Scalar  # pooled from a coarser level than their size asks for, see `roi_align`

    @property
    def total(self) -> Scalar:
        """The sum of all losses."""
        return sum(getattr(self, name) for name in TERMS)  # type: ignore[return-value]


COUNTS = ("objects", "missed_objects", "proposals", "moved_rois")
TERMS = tuple(name for name in Losses._fields if name not in COUNTS)


class Detections(NamedTuple):
    """Detections in descending order of scores; label -1 and score 0 where there is none.

    Boxes are xyxy in pixels of the image; masks are probabilities in the box (see `masks.paste`).
    """

    boxes: Float[Array, "B D 4"]
    scores: Float[Array, "B D"]
    labels: Int[Array, "B D"]
    masks: Float[Array, "B D m m"]


class DetectionModel(nn.Module):
    """Cascade Mask R-CNN; its parameters are `image`, `pyramid`, `fpn`, `rpn` and `cascade`."""

    image: VisionTransformer
    options: Options
    num_classes: int
    axis: Axis | None = None

    def setup(self) -> None:
        """Creates pyramid, FPN and heads."""
        options, dtype = self.options, self.image.dtype
        self.pyramid = Pyramid(self.axis, dtype)
        self.fpn = Fpn(options.width, dtype)
        self.rpn = RpnHead(options.width, len(options.anchor_ratios), dtype)
        self.cascade = Cascade(self.num_classes, options, self.axis, dtype)

    def __call__(self, batch: Batch, train: bool = True, keys: Array | None = None) -> Losses:
        """Computes the losses of a batch, see the module's docstring.

        With `train` BatchNorm uses the batch's statistics, and the collection "batch_stats" must be mutable. Without
        `keys` there is no drop path, and samples are drawn with fixed keys.
        """
        options, axis = self.options, self.axis
        features, levels = self.features(batch["image"], batch["size"], train, keys)
        keys = jax.random.split(jax.random.key(0), len(batch["size"])) if keys is None else keys
        objects = Objects(batch["boxes"].astype(jnp.float32), batch["labels"], batch["crowd"])
        logits, offsets = self.rpn(features.maps)
        size, extent = features.size, features.extent
        first = rpn_loss(logits, offsets, levels, size, extent, objects, fold_in(keys, RPN), options, axis)
        rois = self._proposals(logits, offsets, levels, features, True)
        pooled = features._replace(maps=features.maps[:4])
        truth = Truth(objects, batch["masks"])
        stages = self.cascade.train_losses(pooled, levels[:4], rois, truth, fold_in(keys, CASCADE), train)
        weights = jnp.asarray(options.stage_weights)
        terms = stages.classes * weights, stages.boxes * weights * options.box_weight, stages.masks * weights
        overlaps = jnp.where(rois.valid[..., None], jax.vmap(box.iou)(rois.boxes, objects.boxes), 0)
        missed = objects.valid & (overlaps.max(1, initial=0.0) < options.stage_ious[0])
        devices = jax.lax.axis_size(axis) if axis else 1
        counts = objects.valid, missed, rois.valid, stages.moved_rois.sum() / devices
        return Losses(*first, *jnp.concatenate(terms), *(detection_losses.total(count, axis) for count in counts))

    def detect(self, images: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"]) -> Detections:
        """Detects objects in images whose content has the `size` (height, width); uses the running statistics."""
        options = self.options
        features, levels = self.features(images, size)
        rois = self._proposals(*self.rpn(features.maps), levels, features, False)
        features, levels = features._replace(maps=features.maps[:4]), levels[:4]
        boxes, scores = self.cascade.test(features, levels, rois)
        limits = options.score_threshold, options.nms, options.max_per_image
        chosen = jax.vmap(lambda boxes, scores: select(boxes, scores, *limits))(boxes, scores)
        return Detections(*chosen, self.cascade.masks(features, levels, chosen.boxes, chosen.labels))

    def draw(
        self,
        images: UInt8[Array, "B H W 3"],
        size: Int[Array, "B 2"],
        boxes: Float[Array, "B G 4"],
        labels: Int[Array, "B G"],
    ) -> Detections:
        """Draws masks in boxes, xyxy in pixels of the images, label -1 where there is none; scores are 1 and 0.

        With the true boxes and classes the AP of these masks is the most that the mask heads allow.
        """
        features, levels = self.features(images, size)
        pooled = features._replace(maps=features.maps[:4])
        masks = self.cascade.masks(pooled, levels[:4], boxes, labels)
        return Detections(boxes, (labels >= 0).astype(jnp.float32), labels, masks)

    def features(
        self, images: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], train: bool = False, keys: Array | None = None
    ) -> tuple[Maps, list[Level]]:
        """Computes the five levels of the FPN, 0 outside the images' extents, and describes their grids."""
        vit, options = self.image, self.options
        extent = extents(size, vit.patch_size)
        blocks = options.blocks or usual_blocks(vit.depth)
        maps, valid = backbone(
            vit, normalise_content(images, size, options.mean, options.std), extent, blocks, options.norm, keys
        )
        maps = self.pyramid(maps, train, valid)
        levels = grids(images.shape[1], images.shape[2], vit.patch_size)
        return Maps(self.fpn(maps, [places(level, extent) for level in levels]), size, extent), levels

    def _proposals(self, logits: Any, offsets: Any, levels: Sequence[Level], features: Maps, train: bool) -> Proposals:
        def image(logits: Any, offsets: Any, size: Array, extent: Array) -> Proposals:
            return proposals(logits, offsets, levels, size, extent, self.options, train)

        return jax.vmap(image)(logits, offsets, features.size, features.extent)


def build(encoder: VisionTransformer, options: Options, num_classes: int, axis: Axis | None = None) -> DetectionModel:
    """Builds a detector on an encoder with separate blocks (scan=False); `axis` is the mesh axis of the batch."""
    vit = encoder if options.positions is None else widen(encoder, options.positions)
    return DetectionModel(vit, options, num_classes, axis)


def grids(height: int, width: int, patch_size: int) -> list[Level]:
    """Returns the five levels of the pyramid for arrays of height x width pixels, from the finest to the coarsest.

    Their strides are p / 4, p / 2, p, 2 p and 4 p for the patch size p: 3.5 to 56 pixels for 14.
    """
    factors = 1, 2, 4, 8, 16  # of a quarter of a patch
    sides = [[-(-4 * side // (patch_size * factor)) for side in (height, width)] for factor in factors]
    return [Level(patch_size * factor / 4, *side) for factor, side in zip(factors, sides)]


class Selected(NamedTuple):
    """Detections of one image in descending order of scores; label -1, score 0 and box 0 where there is none."""

    boxes: Float[Array, "D 4"]
    scores: Float[Array, "D"]
    labels: Int[Array, "D"]


def select(
    boxes: Float[Array, "P K 4"],
    scores: Float[Array, "P K"],
    score_threshold: float,
    nms_threshold: float,
    number: int,
) -> Selected:
    """Keeps scores above `score_threshold`, applies NMS to every class, and returns the `number` best of all."""
    kept = class_wise_nms(boxes, scores, scores > score_threshold, nms_threshold)
    ranked = jnp.where(kept, scores, -1).reshape(-1)
    top, index = jax.lax.top_k(ranked, min(number, len(ranked)))
    valid = top >= 0
    labels = jnp.where(valid, index % scores.shape[1], -1).astype(jnp.int32)
    chosen = jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0)
    free = (0, number - len(index))
    return Selected(
        jnp.pad(chosen, (free, (0, 0))),
        jnp.pad(jnp.where(valid, top, 0), free),
        jnp.pad(labels, free, constant_values=-1),
    )
