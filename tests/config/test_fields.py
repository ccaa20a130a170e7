"""The allowed values of every field, and the error messages for other values."""

import pytest

from detailclip_jax.config import detection_fields, fields, run_config, segmentation_fields
from detailclip_jax.config.data_path import KINDS
from detailclip_jax.config.declarations import (
    BELOW_1,
    FROM_1,
    LARGEST,
    OURS,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Field,
    Range,
)
from detailclip_jax.data import decoding, resizing, views
from detailclip_jax.data.stickers import scenes
from detailclip_jax.data.stickers.scene_source import STATED
from detailclip_jax.dense.detection import coco_scores, sticker_instances
from detailclip_jax.dense.segmentation import (
    confusion,
    label_maps,
    segmentation_heads,
    sticker_labels,
)
from detailclip_jax.kernels import products
from detailclip_jax.losses import distillation
from detailclip_jax.methods import masking
from detailclip_jax.models import attention, block, layers, positions, vit

TABLES = {  # name of a field -> the table of another room whose names it takes
    "data.source": KINDS,
    "data.stickers.scenes": (*scenes.VARIETIES, STATED),
    "preprocess.filter": resizing.FILTERS,
    "preprocess.decoding": decoding.DECODINGS,
    "views.crops.large.filter": resizing.FILTERS,
    "views.crops.local.kind": views.KINDS,
    "model.text_activation": layers.ACTIVATIONS.keys() - {"swiglu"},
    "model.matmul_precision": products.PRECISIONS,
    "model.interpolation": positions.RECIPES,
    "model.remat": block.REMAT,
    "model.attention": attention.KERNELS,
    "model.image_style.activation": layers.ACTIVATIONS,
    "model.image_style.pooling": vit.POOLINGS,
    "model.image_style.positions": vit.POSITIONS,
    "model.image_style.init": vit.INITS,
    "masking.strategy": masking.STRATEGIES,
    "masking.granularity": masking.CELLS,
    "losses.divergence": distillation.DIVERGENCES,
}
SEGMENTATION = {
    "best_metric": ("", "mIoU", "mAcc", "aAcc", "boundary_mIoU", *(f"mIoU_{size}" for size in confusion.SIZES)),
    "data.labels": sticker_labels.LABELS,
    "encoder.positions": positions.RECIPES,
    "head.name": segmentation_heads.HEADS,
    "auxiliary.name": ("", *segmentation_heads.HEADS),
    "inference.mode": label_maps.MODES,
}
DETECTION = {
    "best_metric": ("", *coco_scores.METRICS),
    "data.source": ("coco", "coco_format", "stickers"),
    "data.labels": sticker_instances.LABELS,
    "encoder.other_sizes": positions.RECIPES,
}
CASES = [
    *((fields, name, table) for name, table in TABLES.items()),
    *((segmentation_fields, name, table) for name, table in SEGMENTATION.items()),
    *((detection_fields, name, table) for name, table in DETECTION.items()),
]


@pytest.mark.parametrize(("module", "name", "table"), CASES)
def test_a_field_takes_the_names_of_its_table(module, name, table):
    """The tables stand in later rooms, which config does not import."""
    assert set(module.field_of(name).choices) == {*table}


@pytest.mark.parametrize("module", [fields, segmentation_fields, detection_fields])
def test_every_default_is_allowed(module):
    groups = module.GROUPS | ({"views.crops.NAME": fields.CROP} if module is fields else {})
    for group, table in groups.items():
        for name, field in table.items():
            field.check(f"{group}.{name}", field.default)


@pytest.mark.parametrize(
    ("field", "good", "bad", "says"),
    [
        (Field(1, "", OURS), (0, 7), (-1, LARGEST + 1), "from 0 to 2147483647"),
        (Field(1, "", OURS), (), (1.5, "x", True), "a whole number"),
        (Field(1, "", OURS, range=FROM_1), (1,), (0,), "at least 1"),
        (Field(0.5, "", OURS, range=SHARE), (0, 0.5, 1.0), (-0.1, 1.1, float("nan")), "from 0 to 1"),
        (Field(0.5, "", OURS), (-2.0,), (float("nan"),), "must be a number"),
        (Field(0.5, "", OURS), (3.4e38, -3.4e38), (float("inf"), 1e308, -3.5e38), "finite number of float32"),
        (Field((0.5, 1.0), "", OURS), (), ((0.5, float("inf")),), "finite number of float32"),
        (Field(0.5, "", OURS, range=POSITIVE), (1e-9,), (0, -1.0), "greater than 0"),
        *((weight, (0, 2.5), (-1.0, float("nan")), "at least 0") for weight in fields.WEIGHTS.values()),
        (Field(0.5, "", OURS, range=POSITIVE_SHARE), (1,), (0, 1.5), "greater than 0 and at most 1"),
        (Field(0.5, "", OURS, range=BELOW_1), (0,), (1,), "at least 0 and less than 1"),
        (Field(None, "", OURS, kind=int, range=FROM_1), (None, 3), (0,), "at least 1"),
        (Field(True, "", OURS), (False,), (1, None), "true or false"),
        (
            Field((1.0, 2.0), "", OURS, ascending=True),
            ((0, 0.5),),
            ((2.0, 1.0),),
            r"ascending order: write \(1.0, 2.0\)",
        ),
        (Field((1.0, 2.0), "", OURS), ((3, 4),), ((1.0,), 1.0, ("a", "b")), "2 numbers, for example"),
        (Field((1, 2), "", OURS, min_length=0), ((), (1, 2, 3)), ((1.5,),), "whole numbers"),
        (Field((1, 2), "", OURS, min_length=1), ((5,),), ((),), "one or more whole numbers"),
        (
            Field(((1, 2),), "", OURS, min_length=1),
            (((1, 2), (3, 4)),),
            (((1,),), (3,)),
            "one or more pairs of numbers",
        ),
        (Field((0.1,), "", OURS, per_view=True, range=SHARE), (0.3, (0.1, 0.2)), (("a",),), "only numbers"),
        (
            Field("a", "", OURS, choices=("a", "bc")),
            ("bc",),
            ("b", 3, ("a",)),
            "unknown f .*Known: a, bc",
        ),
        (Field((1.0,), "", OURS, range=Range(1e-6, 1e3)), ((1,),), ((0.0,),), "from 1e-06 to 1000"),
    ],
)
def test_what_a_field_takes(field, good, bad, says):
    for value in good:
        field.check("f", value)
    for value in bad:
        with pytest.raises(ValueError, match=says):
            field.check("f", value)


def test_help_lists_the_allowed_values_of_a_field():
    text = run_config.help_text(segmentation_fields.segmentation())
    assert "    one of: linear, upernet, fcn\n" in text
    assert "    at least 1; may change on resume\n" in text
    assert "    greater than 0 and at most 1\n" in text


def test_a_number_of_steps_that_is_cleared_is_no_second_length():
    """`--config.total_steps=None --config.num_epochs=3` was refused as two lengths."""
    config = run_config.load("configs/stickers.py")
    config.total_steps, config.num_epochs = None, 3
    counted = run_config.without_overridden(config, ["total_steps", "num_epochs"])
    assert run_config.resolve(counted, 2**24).total_steps == 180
