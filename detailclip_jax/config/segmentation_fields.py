"""The fields of a segmentation run, with their meaning and source; `configs/transfer/` starts from `segmentation()`."""

import functools

from ml_collections import ConfigDict

from detailclip_jax.config.declarations import (
    BELOW_1,
    FROM_0,
    FROM_1,
    OURS,
    POSITIVE,
    POSITIVE_SHARE,
    PREFETCH,
    SHARE,
    Field,
    Fields,
    Group,
    built,
    field_in,
)
from detailclip_jax.config.fields import IMAGE_STYLE, LOGGING, MESH, MODEL, POSITION_RECIPES, PREPROCESS

METHOD = "segmentation"  # the value of `method` in the config of a segmentation run
IBOT = "iBOT's recipe"
MMSEG = "mmseg"
# Names of tables of other rooms; tests/config/test_fields.py compares them.
HEADS = ("linear", "upernet", "fcn")
STICKER_LABELS = ("objects", "groups", "nouns")
SCORES = ("mIoU", "mAcc", "aAcc", "boundary_mIoU", "mIoU_small", "mIoU_medium", "mIoU_large")


RUN: Group = {
    "method": Field(METHOD, "kind of the run", OURS),
    "init": Field("", "workdir of a trained or imported encoder; '': untrained, with the sizes of `model`", OURS),
    "weights": Field(
        "", "student or ema; '': the default of the encoder's method", OURS, choices=("", "student", "ema")
    ),
    "seed": Field(0, "seed of the heads, the order of examples and the augmentation", OURS),
    "batch_size": Field(
        16, "images per step, over all devices; the learning rate is for optimizer.batch_size", IBOT, range=FROM_1
    ),
    "total_steps": Field(160_000, "length of the run in steps", IBOT, range=FROM_1, may_change=True),
    "log_every": Field(50, "steps between two lines of metrics.jsonl", MMSEG, range=FROM_1, may_change=True),
    "checkpoint_every": Field(2000, "steps between two checkpoints", OURS, range=FROM_1, may_change=True),
    "max_to_keep": Field(2, "checkpoints that stay on disk", OURS, range=FROM_1, may_change=True),
    "best_metric": Field(
        "",
        "metric such as mIoU; the checkpoint with its best value is also kept",
        OURS,
        choices=("", *SCORES),
        may_change=True,
    ),
    "evaluate_every": Field(16_000, "steps between two evaluations; 0: only at the end", MMSEG, may_change=True),
    "evaluate_at_end": Field(True, "whether a finished run is evaluated", OURS, may_change=True),
    "profile_steps": Field(0, "number of steps in the profile for TensorBoard; 0: no profile", OURS, may_change=True),
}
LOADING: Group = {  # of both dense tasks
    "num_train": Field(0, "images to train on: the first ones; 0: all (stickers: scenes without end)", OURS),
    "num_val": Field(0, "images to evaluate on: the first ones; 0: all (stickers: 500)", OURS),
    "num_workers": Field(4, "processes that decode and augment; 0: threads", "mmseg, mmdet", may_change=True),
    "prefetch": Field(2, "batches that are prepared in advance", OURS, range=PREFETCH, may_change=True),
    "max_bad_ratio": Field(
        0.01, "share of unreadable records above which the run stops", OURS, range=SHARE, may_change=True
    ),
}
DATA: Group = {
    "source": Field(
        "ade20k",
        "a set of dense/segmentation/segmentation_sets.py, pairs (any two folders), or stickers",
        OURS,
    ),
    "path": Field("", "folder of the set, in its published layout", OURS, may_change=True),
    "train_images": Field("", "pairs: folder of the images to train on", OURS, may_change=True),
    "train_masks": Field("", "pairs: folder of their masks, NAME.png for the image NAME.jpg", OURS, may_change=True),
    "val_images": Field("", "pairs: folder of the images to evaluate on", OURS, may_change=True),
    "val_masks": Field("", "pairs: folder of their masks", OURS, may_change=True),
    "classes": Field(
        "", "pairs: text with one class name per line, the first one for the stored value 0", OURS, may_change=True
    ),
    "follow_links": Field(False, "has no effect any more: links are followed", OURS, may_change=True),
    "labels": Field(
        "groups",
        "stickers: objects (1 class), groups (24) or nouns (96), besides the background",
        OURS,
        choices=STICKER_LABELS,
    ),
    "unknown_labels": Field(
        "refuse", "label values that the set does not list: refuse, or ignore", OURS, choices=("refuse", "ignore")
    ),
    "train_split": Field("train", "split to train on", MMSEG),
    "val_split": Field("val", "split to evaluate on", MMSEG),
    "canvas": Field(80, "stickers: pixels along a side of a scene", OURS, range=FROM_1),
    **LOADING,
}
VIEWS: Group = {
    "crop": Field(512, "pixels along a side of a training crop", IBOT, range=FROM_1),
    "scale": Field(
        (2048, 512), "(long, short) side that an image is resized into before the jitter", IBOT, range=FROM_1
    ),
    "jitter": Field((0.5, 2.0), "range of the factor on both", IBOT, range=POSITIVE, ascending=True),
    "max_share": Field(0.75, "largest share of one class in a crop", IBOT, range=POSITIVE_SHARE),
    "flip": Field(0.5, "probability of a horizontal flip", IBOT, range=SHARE),
    "photometric": Field(True, "brightness, contrast, saturation and hue", IBOT),
}
ENCODER: Group = {
    "blocks": Field(
        (), "blocks whose output the heads see, from 0; (): a third, a half, two thirds and the end", IBOT, min_length=0
    ),
    "norm": Field(True, "whether the encoder's final norm is applied to every tap", "a flag of iBOT's README"),
    "frozen": Field(
        False, "frozen: evaluation mode and no gradient; otherwise trained end to end", "paper: end to end"
    ),
    "positions": Field(
        "bicubic",
        "recipe that resizes the positions once, to the crop's grid",
        IBOT,
        choices=POSITION_RECIPES,
    ),
    "other_sizes": Field(
        "ibot",
        "recipe for windows of another size than the crop",
        IBOT,
        choices=POSITION_RECIPES,
    ),
}
HEAD: Group = {
    "name": Field("upernet", "head; see dense/segmentation/segmentation_heads.py", IBOT, choices=HEADS),
    "options": Field({}, "the head's own fields", OURS),
}
AUXILIARY: Group = {
    "name": Field("fcn", "head that is only trained, for its gradient; '': none", IBOT, choices=("", *HEADS)),
    "weight": Field(0.4, "weight of its loss", IBOT, range=FROM_0),
    "options": Field({}, "the head's own fields", OURS),
}
INFERENCE: Group = {
    "mode": Field(
        "slide", "slide: windows; whole: the whole image at once", IBOT, choices=("slide", "whole"), may_change=True
    ),
    "scale": Field(
        (2048, 512), "(long, short) side that an image is resized into", IBOT, range=FROM_1, may_change=True
    ),
    "window": Field(512, "pixels along a side of a window", IBOT, range=FROM_1, may_change=True),
    "stride": Field(341, "pixels between two windows", IBOT, range=FROM_1, may_change=True),
    "batch_size": Field(
        8, "windows that are computed at a time, over all devices of a process", OURS, range=FROM_1, may_change=True
    ),
}
OPTIMIZER: Group = {
    "learning_rate": Field(
        8e-5, "learning rate after the warm-up, for batches of optimizer.batch_size", IBOT, range=POSITIVE
    ),
    "batch_size": Field(
        16, "batch size of the recipe; another one multiplies the learning rate by their ratio", IBOT, range=FROM_1
    ),
    "warmup_steps": Field(1500, "length of the linear warm-up in steps", IBOT),
    "warmup_ratio": Field(1e-6, "first learning rate of the warm-up divided by the last one", IBOT, range=SHARE),
    "power": Field(1.0, "power of the polynomial decay to 0", IBOT, range=FROM_0),
    "betas": Field((0.9, 0.999), "beta_1 and beta_2 of AdamW", IBOT, range=BELOW_1),
    "eps": Field(1e-8, "epsilon of AdamW", "PyTorch", range=POSITIVE),
    "weight_decay": Field(0.05, "weight decay of AdamW", IBOT, range=FROM_0),
    "decay_all": Field(False, "decay biases and norms too (iBOT's linear recipe)", IBOT),
    "layer_decay": Field(0.65, "factor on the learning rate per block below the last", IBOT, range=POSITIVE_SHARE),
    "clip_norm": Field(0.0, "maximum norm of the gradient; 0: no clipping", IBOT, range=FROM_0),
    "clip_per_tensor": Field(False, "whether clip_norm is per tensor", OURS),
}
OURS_IN_MODEL = {"dtype": "bfloat16", "drop_path": 0.1, "size": "B/16", "image_size": 224, "freeze_patch_embed": False}
OURS_IN_MODEL |= {"remat": "none", "scan": False}
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
    "head": HEAD,
    "auxiliary": AUXILIARY,
    "inference": INFERENCE,
    "optimizer": OPTIMIZER,
}


field_of = functools.partial(field_in, GROUPS)  # the declaration of a dotted name; None if unknown


def segmentation() -> Fields:
    """Returns the config of UPerNet on ADE20K, ViT-B/16, as in the paper's table 1 (iBOT's recipe).

    It accepts no new fields; `head.options` and `auxiliary.options` take those of the heads.
    """
    return built(GROUPS, {"model": OURS_IN_MODEL})


def linear(config: ConfigDict) -> ConfigDict:
    """Sets the fields in which the linear recipe differs: frozen encoder, 1 x 1 convolution, learning rate 8e-4."""
    config.encoder.frozen = True
    config.head.name, config.auxiliary.name = "linear", ""
    config.optimizer.learning_rate, config.optimizer.decay_all, config.optimizer.layer_decay = 8e-4, True, 1.0
    return config


def stickers(config: ConfigDict) -> ConfigDict:
    """Sets the fields of a run on sticker scenes that takes minutes on a CPU."""
    config.data.source, config.data.num_workers, config.data.num_val = "stickers", 0, 200
    config.batch_size, config.total_steps, config.evaluate_every = 16, 600, 0
    config.checkpoint_every, config.log_every = 200, 20
    config.model.size, config.model.image_size, config.model.dtype = "tiny", 64, "float32"
    config.views.crop, config.views.scale, config.views.jitter = 64, (80, 80), (0.8, 1.6)
    config.inference.scale, config.inference.window, config.inference.stride = (64, 64), 64, 43
    config.optimizer.warmup_steps = 30
    return config


def objects(config: ConfigDict) -> ConfigDict:
    """Sets what objects against background need of `stickers`: few scenes at twice the image size, minutes on a CPU.

    At the encoder's own 64 pixels a linear head has 8 x 8 places for an image, and 7 points of mIoU less.
    """
    config.data.labels, config.total_steps = "objects", 200
    config.views.crop, config.views.scale = 128, (160, 160)
    config.inference.scale, config.inference.window, config.inference.stride = (128, 128), 128, 85
    return config


def many_classes(config: ConfigDict, labels: str) -> ConfigDict:
    """Sets what groups or nouns need of `stickers`: 192,000 scenes, from which the encoder learns too, hours on a CPU.

    After a tenth of them a prediction is background nearly everywhere, see tools/measured.md.
    """
    config.data.labels, config.encoder.frozen, config.total_steps = labels, False, 3000
    config.batch_size, config.optimizer.batch_size, config.optimizer.learning_rate = 64, 64, 1e-3
    return config
