"""Losses and detections of Cascade Mask R-CNN in PyTorch and torchvision: one image and one RoI at a time.

It begins at the maps of the pyramid and at the RPN's output; samples hold every candidate.
"""

import itertools

import numpy as np
import torch
from torchvision import ops

F = torch.nn.functional


def as_torch(tree):
    if isinstance(tree, dict):
        return {name: as_torch(value) for name, value in tree.items()}
    return torch.from_numpy(np.array(tree))


def stage(tree, number):
    return {name: stage(value, number) if isinstance(value, dict) else value[number] for name, value in tree.items()}


def conv(x, p):
    kernel = p["kernel"].permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, p.get("bias"), padding=kernel.shape[-1] // 2)


def anchors_of(level, options):
    made = []
    for y in range(level.height):
        for x in range(level.width):
            for ratio in options.anchor_ratios:
                w = options.anchor_scale * level.stride / np.sqrt(ratio)
                h = w * ratio
                cx, cy = x * level.stride, y * level.stride
                made.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(made, dtype=torch.float32)


def decoded(boxes, offsets, stds):
    offsets = offsets * torch.tensor(stds)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    limit = np.log(1000 / 16)
    x = (boxes[:, 0] + boxes[:, 2]) / 2 + offsets[:, 0] * w
    y = (boxes[:, 1] + boxes[:, 3]) / 2 + offsets[:, 1] * h
    w, h = w * offsets[:, 2].clamp(-limit, limit).exp(), h * offsets[:, 3].clamp(-limit, limit).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def encoded(boxes, targets):
    size, other = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = ((targets[:, 2:] + targets[:, :2]) - (boxes[:, 2:] + boxes[:, :2])) / 2 / size
    return torch.cat([shift, (other / size).log()], 1)


def placed(level, extent, options):
    """Which anchors stand at a place of the image's extent."""
    rows, columns = (int(-(-side // level.stride)) for side in extent)
    y, x = np.mgrid[: level.height, : level.width]
    return torch.from_numpy(np.repeat(((y < rows) & (x < columns)).ravel(), len(options.anchor_ratios)))


def proposals(logits, offsets, levels, size, extent, options, candidates, number):
    """The proposals of one image."""
    boxes, scores, of = [], [], []
    for i, level in enumerate(levels):
        ours = placed(level, extent, options)
        at = torch.where(ours)[0][logits[i][ours].argsort(descending=True, stable=True)[:candidates]]
        found = decoded(anchors_of(level, options)[at], offsets[i][at], (1.0, 1.0, 1.0, 1.0))
        found = ops.clip_boxes_to_image(found, tuple(size))
        filled = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        boxes.append(found[filled])
        scores.append(logits[i][at][filled])
        of.append(torch.full((int(filled.sum()),), i))
    boxes, scores, of = torch.cat(boxes), torch.cat(scores), torch.cat(of)
    return boxes[ops.batched_nms(boxes, scores, of, options.rpn_nms)[:number]]


def assigned(candidates, boxes, positive, negative, low=None):
    """Index of the object, -1 for background, -2 for neither."""
    if not len(boxes):
        return torch.full((len(candidates),), -1)
    overlaps = ops.box_iou(candidates, boxes)
    best, index = overlaps.max(1)
    made = torch.where(best >= positive, index, torch.where(best < negative, -1, -2))
    if low is not None:
        for g in range(len(boxes)):
            if overlaps[:, g].max() >= low:
                made[overlaps[:, g] == overlaps[:, g].max()] = g
    return made


def pooled(maps, levels, number, rois, size, options):
    made = []
    for roi in rois:
        scale = (roi[2:] - roi[:2]).clamp(min=0).prod().sqrt()
        level = int(torch.floor(torch.log2(scale / (options.finest_scale * levels[0].stride) + 1e-6)).clamp(0, 3))
        image = torch.from_numpy(np.moveaxis(np.asarray(maps.maps[level][number]), -1, 0)[None].copy())
        extent = [int(-(-int(side) // levels[level].stride)) for side in np.asarray(maps.extent)[number]]
        image = image[:, :, : extent[0], : extent[1]]
        made.append(ops.roi_align(image, [roi[None]], size, 1 / levels[level].stride, -1, True))
    channels = maps.maps[0].shape[-1]
    return torch.cat(made) if made else torch.zeros(0, channels, size, size)


def box_head(x, p, stats, options):
    """`stats` None: the statistics of x."""
    for number in range(options.num_convs):
        x = conv(x, p[f"conv_{number}"]["conv"])
        norm = p[f"conv_{number}"]["norm"]
        own = None if stats is None else stats[f"conv_{number}"]["norm"]
        mean, variance = (None, None) if own is None else (own["mean"].clone(), own["variance"].clone())
        x = torch.relu(F.batch_norm(x, mean, variance, norm["scale"], norm["bias"], own is None))
    x = torch.relu(x.permute(0, 2, 3, 1).flatten(1) @ p["fc"]["kernel"] + p["fc"]["bias"])
    logits, moves = (x @ p[name]["kernel"] + p[name]["bias"] for name in ("classifier", "regressor"))
    return logits, moves.reshape(len(x), -1, 4)


def mask_head(x, p, options):
    for number in range(options.mask_convs):
        x = torch.relu(conv(x, p[f"conv_{number}"]))
    x = torch.relu(F.conv_transpose2d(x, p["up"]["kernel"].permute(2, 3, 0, 1), p["up"]["bias"], stride=2))
    return conv(x, p["classifier"])


def mask_target(mask, box, roi, size):
    """At least half of a bin's area, by exact overlaps of intervals."""

    def shares(low, high, start, end):
        edges = (low + np.arange(size + 1) / size * (high - low) - start) / (end - start) * len(mask)
        common = [[max(min(b, m + 1) - max(a, m), 0) for m in range(len(mask))] for a, b in itertools.pairwise(edges)]
        return np.array(common) / np.diff(edges)[:, None]

    rows, columns = (shares(roi[a], roi[a + 2], box[a], box[a + 2]) for a in (1, 0))
    return torch.from_numpy(rows @ mask @ columns.T >= 0.5 - 1e-6).float()


def losses(variables, batch, maps, levels, logits, offsets, options, num_classes):
    params = as_torch(variables["params"])["cascade"]["stages"]
    batch = {name: np.asarray(x) for name, x in batch.items()}
    logits, offsets = ([torch.from_numpy(np.array(x)) for x in each] for each in (logits, offsets))
    sizes, extents = np.asarray(maps.size), np.asarray(maps.extent)
    number = len(sizes)
    use = (batch["labels"] >= 0) & ~batch["crowd"]
    boxes = [torch.from_numpy(batch["boxes"][b][use[b]]) for b in range(number)]
    labels = [torch.from_numpy(batch["labels"][b][use[b]]).long() for b in range(number)]
    masks = [batch["masks"][b][use[b]].astype(float) for b in range(number)]
    found = {"rpn_class": 0.0, "rpn_box": 0.0}
    samples = 0
    for b in range(number):
        anchors = torch.cat([anchors_of(level, options) for level in levels])
        ours = torch.cat([placed(level, extents[b], options) for level in levels])
        h, w = sizes[b]
        ours &= (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < w) & (anchors[:, 3] < h)
        scores, moves = torch.cat([x[b] for x in logits])[ours], torch.cat([x[b] for x in offsets])[ours]
        anchors = anchors[ours]
        of = assigned(
            anchors, boxes[b], options.rpn_positive_iou, options.rpn_negative_iou, options.rpn_min_positive_iou
        )
        used, positive = of > -2, of >= 0
        found["rpn_class"] += F.binary_cross_entropy_with_logits(scores[used], positive[used].float(), reduction="sum")
        if positive.any():
            targets = encoded(anchors[positive], boxes[b][of[positive]])
            found["rpn_box"] += F.smooth_l1_loss(moves[positive], targets, reduction="sum", beta=options.rpn_beta)
        samples += int(used.sum())
    found = {name: float(value) / samples for name, value in found.items()}
    rois = [
        proposals(
            [x[b] for x in logits],
            [x[b] for x in offsets],
            levels,
            sizes[b],
            extents[b],
            options,
            options.candidates_train,
            options.proposals_train,
        )
        for b in range(number)
    ]
    for i, (iou, weight, stds) in enumerate(zip(options.stage_ious, options.stage_weights, options.stage_stds)):
        p = stage(params, i)
        rois = [torch.cat([boxes[b], rois[b]]) for b in range(number)]
        of = [assigned(rois[b], boxes[b], iou, iou) for b in range(number)]
        of = [torch.where(x == -2, -1, x) for x in of]
        label = torch.cat(
            [
                torch.where(x >= 0, torch.cat([labels[b], torch.tensor([0])])[x.clamp(min=0)], num_classes)
                for b, x in enumerate(of)
            ]
        )
        target = torch.cat([torch.cat([boxes[b], torch.zeros(1, 4)])[x.clamp(min=0)] for b, x in enumerate(of)])
        x = torch.cat([pooled(maps, levels, b, rois[b], options.roi_size, options) for b in range(number)])
        scores, moves = box_head(x, p["boxes"], None, options)
        flat, positive = torch.cat(rois), label < num_classes
        found[f"class_{i + 1}"] = weight * float(F.cross_entropy(scores, label))
        moved = decoded(flat[positive], moves[positive, label[positive]], stds)
        giou = ops.generalized_box_iou_loss(moved, target[positive], reduction="sum")
        found[f"box_{i + 1}"] = weight * options.box_weight * float(giou) / len(flat)
        x = torch.cat(
            [pooled(maps, levels, b, rois[b][of[b] >= 0], options.mask_roi_size, options) for b in range(number)]
        )
        made = mask_head(x, p["masks"], options)
        made = made[torch.arange(len(made)), label[positive]]
        goal = torch.stack(
            [
                mask_target(masks[b][of[b][n]], boxes[b][of[b][n]].numpy(), rois[b][n].numpy(), made.shape[-1])
                for b in range(number)
                for n in torch.where(of[b] >= 0)[0]
            ]
        )
        found[f"mask_{i + 1}"] = weight * float(F.binary_cross_entropy_with_logits(made, goal))
        chosen = torch.where(positive, label, scores[:, :-1].argmax(1))
        moved = decoded(flat, moves[torch.arange(len(flat)), chosen], stds)
        counts = [len(x) for x in rois]
        rois = [ops.clip_boxes_to_image(x, tuple(sizes[b]))[len(boxes[b]) :] for b, x in enumerate(moved.split(counts))]
    return found


def detections(variables, number, maps, levels, logits, offsets, options, num_classes):
    """Boxes, scores, labels and masks of one image."""
    params, stats = (as_torch(variables[name])["cascade"]["stages"] for name in ("params", "batch_stats"))
    logits, offsets = ([torch.from_numpy(np.array(x[number])) for x in each] for each in (logits, offsets))
    size, extent = tuple(np.asarray(maps.size)[number]), np.asarray(maps.extent)[number]
    counts = options.candidates_test, options.proposals_test
    rois = proposals(logits, offsets, levels, size, extent, options, *counts)
    total = 0
    for i, stds in enumerate(options.stage_stds):
        p = stage(params, i)
        x = pooled(maps, levels, number, rois, options.roi_size, options)
        scores, moves = box_head(x, p["boxes"], stage(stats, i)["boxes"], options)
        total = total + scores / 3
        last, rois = rois, decoded(rois, moves[torch.arange(len(rois)), scores[:, :-1].argmax(1)], stds)
        rois = ops.clip_boxes_to_image(rois, size)
    boxes = torch.stack(
        [ops.clip_boxes_to_image(decoded(last, moves[:, k], stds), size) for k in range(num_classes)], 1
    )
    total = total.softmax(1)  # mmdet averages logits, detectron2 probabilities
    at, label = torch.where(total[:, :-1] > options.score_threshold)
    scores, boxes = total[at, label], boxes[at, label]
    kept = ops.batched_nms(boxes, scores, label, options.nms)[: options.max_per_image]
    boxes, scores, label = boxes[kept], scores[kept], label[kept]
    x = pooled(maps, levels, number, boxes, options.mask_roi_size, options)
    heads = [mask_head(x, stage(params, i)["masks"], options).sigmoid() for i in range(3)]
    masks = sum(each[torch.arange(len(label)), label] for each in heads) / 3
    return boxes.numpy(), scores.numpy(), label.numpy(), masks.numpy()
