"""Region proposal network (arXiv 1506.01497): its head, its loss, and proposals in fixed shapes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection import anchors as anchoring
from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.dense.detection import detection_losses
from detailclip_jax.dense.detection.anchors import Level
from detailclip_jax.dense.detection.assignment import Objects, assign
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.detection.fpn import Conv1, Conv3
from detailclip_jax.dense.detection.nms import nms
from detailclip_jax.dense.detection.sampling import sample
from detailclip_jax.models.initial_values import normal
from detailclip_jax.types import Array, Axis, Bool, Float, Int, Scalar

NORMAL = normal(0.01)


class RpnHead(nn.Module):
    """3 x 3 convolution with ReLU, then objectness and offsets of A anchors per place; shared by all levels."""

    width: int
    num_anchors: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, levels: Sequence[Float[Array, "B _ _ C"]]
    ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
        """Returns float32 logits and offsets per level, in the order of `anchors.level_anchors`."""
        hidden = Conv3(self.width, NORMAL, self.dtype, name="conv")
        objectness = Conv1(self.num_anchors, NORMAL, self.dtype, jnp.float32, name="objectness")
        regressor = Conv1(4 * self.num_anchors, NORMAL, self.dtype, jnp.float32, name="regressor")
        logits, offsets = [], []
        for level in levels:
            x = nn.relu(hidden(level))
            logits.append(objectness(x).reshape(len(x), -1))
            offsets.append(regressor(x).reshape(len(x), -1, 4))
        return logits, offsets


class Proposals(NamedTuple):
    """Boxes in pixels, in descending order of objectness; entries that are not `valid` hold nothing."""

    boxes: Float[Array, "*batch P 4"]
    valid: Bool[Array, "*batch P"]


def proposals(
    logits: Sequence[Float[Array, "..."]],
    offsets: Sequence[Float[Array, "_ 4"]],
    levels: Sequence[Level],
    size: Int[Array, "2"],
    extent: Int[Array, "2"],
    options: Options,
    train: bool,
) -> Proposals:
    """Selects the proposals of one image: the best anchors per level, NMS per level, the best of all levels.

    Boxes are clipped to the content of `size` (height, width); those without area are removed. They receive no
    gradient.
    """
    candidates = options.candidates_train if train else options.candidates_test
    number = options.proposals_train if train else options.proposals_test
    most = min(candidates, max(len(each) for each in logits))
    ratios, best = options.anchor_ratios, []
    for of_level, moves, level in zip(logits, offsets, levels):
        used = anchoring.within_extent([level], extent, len(ratios))
        top, index = jax.lax.top_k(jnp.where(used, of_level, -jnp.inf), min(most, len(of_level)))
        anchors = jnp.asarray(anchoring.level_anchors(level, options.anchor_scale, ratios))
        boxes = box.clip(box.decode(anchors[index], moves[index]), size)
        valid, free = (top > -jnp.inf) & (box.area(boxes) > 0), (0, most - len(index))
        best.append((jnp.pad(boxes, (free, (0, 0))), jnp.pad(top, free), jnp.pad(valid, free)))
    boxes, scores, valid = (jnp.stack(each) for each in zip(*best))
    kept = jax.vmap(nms, (0, 0, 0, None))(boxes, scores, valid, options.rpn_nms)
    ranked = jnp.where(kept, scores, -jnp.inf).reshape(-1)
    top, index = jax.lax.top_k(ranked, min(number, len(ranked)))
    free = number - len(index)
    chosen, valid = boxes.reshape(-1, 4)[index], top > -jnp.inf
    chosen = jnp.where(valid[:, None], chosen, 0)
    return jax.lax.stop_gradient(Proposals(jnp.pad(chosen, ((0, free), (0, 0))), jnp.pad(valid, (0, free))))


class RpnLoss(NamedTuple):
    """Loss of objectness and of boxes, over all images and devices."""

    objectness: Scalar
    boxes: Scalar


def rpn_loss(
    logits: Sequence[Float[Array, "B _"]],
    offsets: Sequence[Float[Array, "B _ 4"]],
    levels: Sequence[Level],
    size: Int[Array, "B 2"],
    extent: Int[Array, "B 2"],
    objects: Objects,
    keys: Array,
    options: Options,
    axis: Axis | None,
) -> RpnLoss:
    """Cross-entropy and smooth L1 of sampled anchors, both divided by the number of all samples of the batch.

    Only anchors within an image's content are assigned. `objects` has a leading axis of images, `keys` [B] draw the
    samples.
    """
    ratios = options.anchor_ratios
    anchors = jnp.concatenate([anchoring.level_anchors(level, options.anchor_scale, ratios) for level in levels])

    def image(logits: Array, offsets: Array, size: Array, extent: Array, objects: Objects, key: Array) -> Any:
        inside = anchoring.inside(anchors, size) & anchoring.within_extent(levels, extent, len(ratios))
        assigned = assign(
            anchors,
            inside,
            objects,
            options.rpn_positive_iou,
            options.rpn_negative_iou,
            options.rpn_min_positive_iou,
            options.ignore_iof,
        )
        most = max(int(options.rpn_samples * options.rpn_positive_ratio), 1)
        drawn = sample(assigned, options.rpn_samples, most, key)
        boxes = objects.boxes[jnp.maximum(assigned[drawn.index], 0)]  # any box for a negative
        targets = box.encode(anchors[drawn.index], boxes)
        classes = detection_losses.binary_cross_entropy(logits[drawn.index], drawn.positive)
        regression = detection_losses.smooth_l1(offsets[drawn.index] - targets, options.rpn_beta).sum(-1)
        return jnp.where(drawn.valid, classes, 0), jnp.where(drawn.positive, regression, 0), drawn.valid

    classes, regression, valid = jax.vmap(image)(
        jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1), size, extent, objects, keys
    )
    number = jnp.maximum(detection_losses.total(valid, axis), 1)
    return RpnLoss(detection_losses.total(classes, axis) / number, detection_losses.total(regression, axis) / number)
