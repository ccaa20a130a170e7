"""The dense tasks, whose runs are those of the command transfer: the values of `method` in their configs."""

from ml_collections import ConfigDict

from detailclip_jax.config import detection_fields, segmentation_fields

FIELDS = {
    segmentation_fields.METHOD: segmentation_fields.field_of,
    detection_fields.METHOD: detection_fields.field_of,
}  # how a task finds a declaration
METHODS = tuple(FIELDS)


def is_dense(config: ConfigDict) -> bool:
    """Whether a config is one of a dense task, which the command transfer runs; `main` runs all others."""
    return config.get("method") in FIELDS
