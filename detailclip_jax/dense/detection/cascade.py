"""The cascade (arXiv 1712.00726): stages that classify and move RoIs, each trained at a higher IoU than the one before.

The stages run in a loop over stacked parameters (leading axis 3), which compiles one stage instead of three; on CPUs
the loop is unrolled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.dense.detection import detection_losses
from detailclip_jax.dense.detection.anchors import Level
from detailclip_jax.dense.detection.assignment import Objects, assign
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.detection.masks import mask_targets
from detailclip_jax.dense.detection.roi_align import roi_align
from detailclip_jax.dense.detection.roi_heads import BoxHead, MaskHead
from detailclip_jax.dense.detection.rpn import Proposals
from detailclip_jax.dense.detection.sampling import Sample, sample
from detailclip_jax.types import Array, Axis, Bool, Float, Int, Scalar, UInt8

LIFTED = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}


class Maps(NamedTuple):
    """The levels of a batch from which RoIs are pooled, its images' content and extent (height, width in pixels)."""

    maps: Sequence[Float[Array, "B h w C"]]
    size: Int[Array, "B 2"]
    extent: Int[Array, "B 2"]


class Truth(NamedTuple):
    """Ground truth of a batch: objects with a leading axis of images, and their masks in their boxes."""

    objects: Objects
    masks: UInt8[Array, "B G M M"]


class Numbers(NamedTuple):
    """What differs between stages."""

    stage: Int[Array, ""]
    iou: Float[Array, ""]
    stds: Float[Array, "4"]


class StageLoss(NamedTuple):
    """Unweighted losses of one stage over all images and devices, and the RoIs pooled from a coarser level."""

    classes: Scalar
    boxes: Scalar
    masks: Scalar
    moved_rois: Scalar


class Chosen(NamedTuple):
    """Sampled RoIs with their targets; `label` is K (background) for negatives and empty slots."""

    rois: Float[Array, "*batch S 4"]
    drawn: Sample
    label: Int[Array, "*batch S"]
    target: Float[Array, "*batch S 4"]
    object: Int[Array, "*batch S"]


class Scored(NamedTuple):
    """Output of one stage at test: class logits with the background last, the RoIs, and offsets per class."""

    logits: Float[Array, "B P K1"]
    rois: Float[Array, "B P 4"]
    offsets: Float[Array, "B P K 4"]


class Stage(nn.Module):
    """One stage: a box head and a mask head."""

    num_classes: int
    options: Options
    axis: Axis | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the heads."""
        options = self.options
        widths = options.width, options.fc_width, options.num_convs
        self.boxes = BoxHead(self.num_classes, *widths, self.axis, self.dtype)
        self.masks = MaskHead(self.num_classes, options.width, options.mask_convs, self.dtype)


class Cascade(nn.Module):
    """Three stages; see `train_losses`, `test` and `masks`. `levels` describe the four finest levels of the pyramid."""

    num_classes: int
    options: Options
    axis: Axis | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the stages."""
        self.stages = Stage(self.num_classes, self.options, self.axis, self.dtype)

    def train_losses(
        self, features: Maps, levels: Sequence[Level], proposals: Proposals, truth: Truth, keys: Array, train: bool
    ) -> StageLoss:
        """Computes the losses of all stages, each [3]. `keys` [B] draw the samples; `train` is passed to BatchNorm.

        Every stage draws its sample from its RoIs and the objects' boxes. The next stage's RoIs are the sampled
        ones, moved by this stage's box head; the objects' boxes are not passed on.
        """
        options, axis = self.options, self.axis
        slots = max(proposals.boxes.shape[1], options.roi_samples)

        def run(stage: Stage, carry: Proposals, numbers: Numbers) -> tuple[Proposals, StageLoss]:
            drawing = jax.vmap(lambda key: jax.random.fold_in(key, numbers.stage))(keys)
            chosen = jax.vmap(choose, (0, 0, 0, 0, None, None, None))(
                carry.boxes, carry.valid, truth.objects, drawing, numbers.iou, self.num_classes, options
            )
            logits, offsets, moved = _classify(stage, features, levels, chosen.rois, chosen.drawn.valid, train)
            boxes = box.decode(chosen.rois, _of_class(offsets, chosen.label % self.num_classes), numbers.stds)
            terms = _losses(stage, features, levels, chosen, truth, logits, boxes, axis)
            label = jnp.where(chosen.drawn.positive, chosen.label, logits[..., :-1].argmax(-1))
            refined = _move(chosen.rois, offsets, label, numbers.stds, features.size)
            is_roi = chosen.drawn.valid & (chosen.drawn.index >= truth.objects.labels.shape[1])
            return _pad(Proposals(refined, is_roi), slots), StageLoss(*terms, detection_losses.total(moved, axis))

        return self._loop(run)(self.stages, _pad(proposals, slots), self._numbers())[1]

    def test(self, features: Maps, levels: Sequence[Level], proposals: Proposals) -> tuple[Array, Array]:
        """Returns boxes per class [B, P, K, 4], clipped to the content, and scores per class [B, P, K].

        Scores are the softmax of the stages' mean logits, as in mmdet; boxes are those of the last stage.  Both are 0
        for proposals that hold nothing.
        """
        options = self.options

        def run(stage: Stage, rois: Array, numbers: Numbers) -> tuple[Array, Scored]:
            logits, offsets, _ = _classify(stage, features, levels, rois, proposals.valid, False)
            refined = _move(rois, offsets, logits[..., :-1].argmax(-1), numbers.stds, features.size)
            return refined, Scored(logits, rois, offsets)

        outputs = self._loop(run)(self.stages, proposals.boxes, self._numbers())[1]
        boxes = box.decode(outputs.rois[-1][:, :, None], outputs.offsets[-1], jnp.asarray(options.stage_stds[-1]))
        scores = jnp.where(proposals.valid[..., None], jax.nn.softmax(outputs.logits.mean(0))[..., :-1], 0)
        return jax.vmap(box.clip)(boxes, features.size), scores

    def masks(
        self, features: Maps, levels: Sequence[Level], boxes: Float[Array, "B D 4"], labels: Int[Array, "B D"]
    ) -> Float[Array, "B D m m"]:
        """Returns the masks of detections in their boxes: the mean of the stages' probabilities for the label."""
        pooled, _ = _pool(features, levels, boxes, self.options.mask_roi_size, self.options)
        flat = pooled.reshape(-1, *pooled.shape[2:])
        index = jnp.maximum(labels, 0).reshape(-1, 1, 1, 1)

        def run(stage: Stage, total: Array, _: Numbers) -> tuple[Array, None]:
            logits = jnp.take_along_axis(stage.masks(flat), index, axis=-1)[..., 0]
            return total + jax.nn.sigmoid(logits), None

        side = 2 * self.options.mask_roi_size
        total, _ = self._loop(run)(self.stages, jnp.zeros((len(flat), side, side)), self._numbers())
        return (total / len(self.options.stage_ious)).reshape(*boxes.shape[:2], side, side)

    def _loop(self, run: Callable[..., Any]) -> Callable[..., Any]:
        stages = len(self.options.stage_ious)
        return nn.scan(run, length=stages, unroll=stages if self.options.unroll else 1, **LIFTED)

    def _numbers(self) -> Numbers:
        ious, stds = self.options.stage_ious, self.options.stage_stds
        return Numbers(jnp.arange(len(ious)), jnp.asarray(ious), jnp.asarray(stds))


def unrolled(platform: str) -> bool:
    """Whether stages are compiled one after the other: on CPUs, whose convolutions in loops are five times slower."""
    return platform == "cpu"


def choose(
    rois: Float[Array, "P 4"],
    valid: Bool[Array, "P"],
    objects: Objects,
    key: Array,
    iou: float | Array,
    num_classes: int,
    options: Options,
) -> Chosen:
    """Samples the RoIs of one image from its objects' boxes (first) and `rois`; positive from an IoU of `iou` on."""
    candidates = jnp.concatenate([objects.boxes, rois])
    usable = jnp.concatenate([objects.valid, valid])
    assigned = assign(candidates, usable, objects, iou, iou, ignore_iof=options.ignore_iof)
    drawn = sample(assigned, options.roi_samples, options.positives, key)
    index = jnp.maximum(assigned[drawn.index], 0)
    label = jnp.where(drawn.positive, objects.labels[index], num_classes)
    chosen = jnp.where(drawn.valid[:, None], candidates[drawn.index], 0)
    return Chosen(chosen, drawn, label, objects.boxes[index], index)


def _pool(features: Maps, levels: Sequence[Level], rois: Float[Array, "B R 4"], size: int, options: Options) -> Any:
    """RoIAlign of a batch: bins [B, R, size, size, C], and which RoIs were moved to a coarser level."""

    def image(maps: Any, extent: Array, rois: Array) -> Any:
        finest = options.finest_scale * levels[0].stride
        return roi_align(maps, levels, extent, rois, size, finest, options.roi_cells, options.roi_chunk)

    return jax.vmap(image)(list(features.maps), features.extent, rois)


def _classify(
    stage: Stage, features: Maps, levels: Sequence[Level], rois: Array, valid: Array, train: bool
) -> tuple[Array, Array, Array]:
    """Logits [B, R, K + 1] and offsets [B, R, K, 4] of RoIs, and which valid ones were moved to a coarser level."""
    pooled, moved = _pool(features, levels, rois, stage.options.roi_size, stage.options)
    logits, offsets = stage.boxes(pooled.reshape(-1, *pooled.shape[2:]), valid.reshape(-1), train)
    shape = rois.shape[:2]
    return logits.reshape(*shape, -1), offsets.reshape(*shape, *offsets.shape[1:]), moved & valid


def _losses(
    stage: Stage,
    features: Maps,
    levels: Sequence[Level],
    chosen: Chosen,
    truth: Truth,
    logits: Array,
    boxes: Array,
    axis: Axis | None,
) -> tuple[Scalar, Scalar, Scalar]:
    """Losses of classes and boxes, per sampled RoI, and of masks, per entry of the label's mask of a positive RoI."""
    total = functools.partial(detection_losses.total, axis=axis)
    drawn, options = chosen.drawn, stage.options
    number = jnp.maximum(total(drawn.valid), 1)
    classes = jnp.where(drawn.valid, detection_losses.cross_entropy(logits, chosen.label), 0)
    moved = jnp.where(drawn.positive, detection_losses.giou_loss(boxes, chosen.target), 0)

    first = jax.tree.map(lambda x: x[:, : options.positives], chosen)  # positive RoIs are in the first slots
    pooled, _ = _pool(features, levels, first.rois, options.mask_roi_size, options)
    drawings = stage.masks(pooled.reshape(-1, *pooled.shape[2:]))
    size, positive = drawings.shape[1], first.drawn.positive
    index = jnp.where(positive, first.label, 0).reshape(-1, 1, 1, 1)
    drawings = jnp.take_along_axis(drawings, index, axis=-1)[..., 0].reshape(*positive.shape, size, size)
    crop = jax.vmap(lambda masks, target, rois, of: mask_targets(masks[of], target, rois, size))
    targets = crop(truth.masks, first.target, first.rois, first.object)
    entries = jnp.where(positive[..., None, None], detection_losses.binary_cross_entropy(drawings, targets), 0)
    return total(classes) / number, total(moved) / number, total(entries) / (jnp.maximum(total(positive), 1) * size**2)


def _of_class(offsets: Float[Array, "B R K 4"], label: Int[Array, "B R"]) -> Float[Array, "B R 4"]:
    return jnp.take_along_axis(offsets, label[..., None, None], axis=2)[:, :, 0]


def _move(rois: Array, offsets: Array, label: Array, stds: Array, size: Int[Array, "B 2"]) -> Float[Array, "B R 4"]:
    """RoIs moved by the offsets of a class and clipped to the content; without gradient."""
    moved = box.decode(rois, _of_class(offsets, label), stds)
    return jax.lax.stop_gradient(jax.vmap(box.clip)(moved, size))


def _pad(proposals: Proposals, slots: int) -> Proposals:
    free = slots - proposals.boxes.shape[1]
    return Proposals(
        jnp.pad(proposals.boxes, ((0, 0), (0, free), (0, 0))), jnp.pad(proposals.valid, ((0, 0), (0, free)))
    )
