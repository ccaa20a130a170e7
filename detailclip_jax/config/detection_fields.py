"""The fields of a detection run, with their meaning and source; `configs/transfer/` starts from `detection()`."""

import functools

from ml_collections import ConfigDict

from detailclip_jax.config import segmentation_fields
from detailclip_jax.config.declarations import (
    FROM_1,
    OURS,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Field,
    Fields,
    Group,
    built,
    field_in,
)
from detailclip_jax.config.fields import IMAGE_STYLE, LOGGING, MESH, MODEL, POSITION_RECIPES, PREPROCESS
from detailclip_jax.config.segmentation_fields import STICKER_LABELS

METHOD = "detection"  # the value of `method` in the config of a detection run
IBOT = segmentation_fields.IBOT
MMDET = "mmdet"
# The metrics of `dense.detection`, which config may not import; tests/config/test_fields.py compares the names.
SCORES = tuple(
    f"{kind}_{name}"
    for kind in ("bbox", "segm")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
)
EPOCH = 7330  # steps of 16 over the 117,266 images of COCO train2017 that have annotations

RUN: Group = {
    **segmentation_fields.RUN,
    "method": Field(METHOD, "kind of the run", OURS),
    "total_steps": Field(
        12 * EPOCH, "length of the run in steps; 12 epochs of COCO", IBOT, range=FROM_1, may_change=True
    ),
    "checkpoint_every": Field(EPOCH // 2, "steps between two checkpoints", OURS, range=FROM_1, may_change=True),
    "best_metric": Field(
        "",
        "metric such as bbox_AP; the checkpoint with its best value is also kept",
        OURS,
        choices=("", *SCORES),
        may_change=True,
    ),
    "evaluate_every": Field(EPOCH, "steps between two evaluations; 0: only at the end", MMDET, may_change=True),
}
DATA: Group = {
    "source": Field(
        "coco",
        "coco (2017, published layout), coco_format (any set in its format), or stickers",
        OURS,
        choices=("coco", "coco_format", "stickers"),
    ),
    "path": Field("", "coco: folder with annotations/, train2017/ and val2017/", OURS, may_change=True),
    "train_json": Field("", "coco_format: json of the training set", OURS, may_change=True),
    "train_images": Field("", "coco_format: folder of its images", OURS, may_change=True),
    "val_json": Field("", "coco_format: json of the evaluation set", OURS, may_change=True),
    "val_images": Field("", "coco_format: folder of its images", OURS, may_change=True),
    "follow_links": Field(False, "has no effect any more: links are followed", OURS, may_change=True),
    "labels": Field("groups", "stickers: objects (1 class), groups (24) or nouns (96)", OURS, choices=STICKER_LABELS),
    "canvas": Field(96, "stickers: pixels along a side of a scene", OURS, range=FROM_1),
    "max_instances": Field(
        100, "instances of an image that a batch holds; images with more are counted", OURS, range=FROM_1
    ),
    "mask_size": Field(112, "cells along a side of an instance's mask within its box", OURS, range=FROM_1),
    **segmentation_fields.LOADING,
}
SHAPES = ((640, 864), (864, 640), (800, 1088), (1088, 800), (800, 1344), (1344, 800))
VIEWS: Group = {
    "short": Field(
        tuple(range(480, 801, 32)),
        "sides of which one is drawn for the shorter side of an image",
        IBOT,
        range=FROM_1,
        min_length=1,
    ),
    "long": Field(1333, "most pixels of the longer side", IBOT, range=FROM_1),
    "crop_share": Field(0.5, "share of the images that are resized, cropped and resized again", IBOT, range=SHARE),
    "crop_short": Field((400, 500, 600), "shorter sides before that crop", IBOT, range=FROM_1, min_length=1),
    "crop": Field((384, 600), "least and most pixels of a side of that crop", IBOT, range=FROM_1, ascending=True),
    "flip": Field(0.5, "probability of a horizontal flip", IBOT, range=SHARE),
    "buckets": Field(
        SHAPES,
        "(height, width) of the batches; an image is padded to the smallest that holds it",
        OURS,
        range=FROM_1,
        min_length=1,
    ),
}
ENCODER: Group = {
    "grid": Field(
        (672, 1092), "(height, width) in pixels whose whole patches are the learnt positions' grid", IBOT, range=FROM_1
    ),
    "positions": Field(
        "bicubic",
        "recipe that resizes the positions once, to that grid",
        IBOT,
        choices=POSITION_RECIPES,
    ),
    "other_sizes": Field("ibot", "recipe for the grid of each image", IBOT, choices=POSITION_RECIPES),
    "frozen": Field(False, "frozen: no gradient of the encoder; otherwise trained end to end", IBOT),
}
DETECTOR: Group = {
    "options": Field({}, "numbers of the detector that differ from dense/detection/cascade_options.py", OURS),
}
INFERENCE: Group = {
    "short": Field(800, "most pixels of the shorter side of a test image", IBOT, range=FROM_1, may_change=True),
    "long": Field(1333, "most pixels of its longer side", IBOT, range=FROM_1, may_change=True),
    "buckets": Field(SHAPES[2:], "(height, width) of the batches", OURS, range=FROM_1, min_length=1, may_change=True),
    "batch_size": Field(
        8, "images that are computed at a time, over all devices of a process", OURS, range=FROM_1, may_change=True
    ),
    "ceiling": Field(
        False,
        "also score the masks drawn in the true boxes with the true classes: the most that the mask heads allow",
        OURS,
        may_change=True,
    ),
}
OPTIMIZER: Group = {
    **{name: field for name, field in segmentation_fields.OPTIMIZER.items() if name != "power"},
    "learning_rate": Field(
        1e-4, "learning rate after the warm-up, for batches of optimizer.batch_size", IBOT, range=POSITIVE
    ),
    "warmup_steps": Field(500, "length of the linear warm-up in steps", IBOT),
    "warmup_ratio": Field(0.001, "first learning rate of the warm-up divided by the last one", IBOT, range=SHARE),
    "decay_at": Field(
        (8 / 12, 11 / 12),
        "shares of the run after which the learning rate falls to a tenth",
        IBOT,
        range=SHARE,
        min_length=1,
    ),
    "decay_all": Field(False, "decay biases and norms too", IBOT),
    "layer_decay": Field(
        0.75, "factor on the learning rate per block below the last", "iBOT's README, ViT-B", range=POSITIVE_SHARE
    ),
}
OURS_IN_MODEL = {**segmentation_fields.OURS_IN_MODEL, "drop_path": 0.2, "remat": "dots"}
GROUPS: dict[str, Group] = {
    "": RUN,
    "logging": {"wandb": LOGGING["wandb"]},
    "mesh": MESH,
    "data": DATA,
    "views": VIEWS,
    "preprocess": PREPROCESS,
    "model": MODEL,
    "model.image_style": IMAGE_STYLE,
    "encoder": ENCODER,
    "detector": DETECTOR,
    "inference": INFERENCE,
    "optimizer": OPTIMIZER,
}


field_of = functools.partial(field_in, GROUPS)  # the declaration of a dotted name; None if unknown


def detection() -> Fields:
    """Returns the config of Cascade Mask R-CNN on COCO, ViT-B/16, 1x schedule (iBOT's recipe).

    It accepts no new fields; `detector.options` takes those of `dense.detection.cascade_options.Options`.
    """
    return built(GROUPS, {"model": OURS_IN_MODEL})


def schedule(config: ConfigDict, name: str) -> ConfigDict:
    """Sets length, decay and layer decay of a schedule: "1x" (iBOT's README) or "3x" (its config file).

    Raises ValueError for another name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    epochs, first, second, decay = SCHEDULES[name]
    config.total_steps = epochs * EPOCH
    config.optimizer.decay_at, config.optimizer.layer_decay = (first / epochs, second / epochs), decay
    return config


SCHEDULES = {
    "1x": (12, 8, 11, 0.75),
    "3x": (36, 27, 33, 0.65),
}  # epochs, the two at whose end the rate falls, layer decay


def stickers(config: ConfigDict) -> ConfigDict:
    """Sets the fields of a run on sticker scenes that takes minutes on a CPU."""
    config.data.source, config.data.num_workers, config.data.num_val = "stickers", 0, 200
    config.data.canvas, config.data.max_instances, config.data.mask_size = 64, 8, 56
    config.batch_size, config.total_steps, config.evaluate_every = 16, 200, 0
    config.checkpoint_every, config.log_every = 200, 20
    config.model.size, config.model.image_size, config.model.dtype = "tiny", 64, "float32"
    config.model.drop_path, config.model.remat = 0.1, "none"
    config.views.short, config.views.long, config.views.crop_share = (48, 56, 64), 64, 0.0
    config.views.buckets = config.inference.buckets = ((64, 64),)
    config.inference.short = config.inference.long = 64
    config.inference.batch_size, config.inference.ceiling, config.encoder.grid = 16, True, (64, 64)
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-3, 30
    config.detector.options = ConfigDict(SMALL)
    return config


SMALL = {  # a narrow detector for images of 64 pixels and patches of 8
    **{"width": 32, "fc_width": 128, "num_convs": 1, "mask_convs": 1},
    **{"rpn_samples": 64, "roi_samples": 24, "max_per_image": 20},
    **{"candidates_train": 64, "candidates_test": 64, "proposals_train": 64, "proposals_test": 32},
    **{"finest_scale": 7.0, "roi_cells": 256},  # the strides are 2 to 32 pixels
}
