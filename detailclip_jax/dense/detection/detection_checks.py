"""Checks of a detection config before anything is built; each message names the field, its value and the way out."""

from importlib.util import find_spec

from ml_collections import ConfigDict

from detailclip_jax.config.detection_fields import detection
from detailclip_jax.dense.detection import coco_scores
from detailclip_jax.dense.detection.coco_scores import METRICS
from detailclip_jax.dense.detection.sticker_instances import LABELS
from detailclip_jax.dense.segmentation import segmentation_checks
from detailclip_jax.dense.segmentation.segmentation_checks import Rules
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.training.validation import BELOW_ONE, INFINITE

RULES = Rules(
    choices={
        **segmentation_checks.ENCODER_CHOICES,
        "best_metric": ("", *METRICS),
        "data.source": ("coco", "coco_format", "stickers"),
        "data.labels": LABELS,
    },
    ranges={
        **segmentation_checks.COMMON_RANGES,
        **dict.fromkeys(("data.max_instances", "data.mask_size", "views.short", "views.long"), (1, INFINITE)),
        **dict.fromkeys(("views.crop_short", "views.crop", "encoder.grid"), (1, INFINITE)),
        **dict.fromkeys(("inference.short", "inference.long"), (1, INFINITE)),
        **dict.fromkeys(("views.crop_share", "optimizer.decay_at"), (0, 1)),
    },
    positive=segmentation_checks.COMMON_POSITIVE,
    below_one=BELOW_ONE,
    any_length=("views.short", "views.crop_short", "views.buckets", "inference.buckets", "optimizer.decay_at"),
)


def check(config: ConfigDict) -> None:
    """Raises ValueError for the first field with an invalid value, and for scores that need a missing package."""
    check_values(config)
    if (config.evaluate_at_end or config.evaluate_every) and find_spec("pycocotools") is None:
        raise ValueError(f"{coco_scores.MISSING}, or train without scores: {WITHOUT_SCORES}")


def check_values(config: ConfigDict) -> None:
    """Raises ValueError for the first field with an invalid value."""
    segmentation_checks.check_fields(config, detection(), RULES)
    low, high = config.views.crop
    if low > high:
        raise ValueError(f"views.crop {config.views.crop} must be in ascending order")
    for name, shapes in (("views.buckets", config.views.buckets), ("inference.buckets", config.inference.buckets)):
        if not shapes or not all(len(shape) == 2 for shape in shapes):
            raise ValueError(f"{name} {shapes!r} must be pairs of height and width, such as ((800, 1344), (1344, 800))")
    wandb_writer.check(config.logging.wandb)


WITHOUT_SCORES = "--config.evaluate_at_end=False --config.evaluate_every=0"
