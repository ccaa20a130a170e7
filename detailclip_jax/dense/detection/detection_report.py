"""The report of a detection run: its protocol, its scores, and its row in the paper's table."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.detection_fields import SCHEDULES, detection, schedule
from detailclip_jax.dense.segmentation.segmentation_report import departures, paper_rows

PROTOCOL = (  # fields, or groups of fields, on which a published number depends
    *("total_steps", "batch_size", "data.num_train", "data.num_val", "data.max_instances", "data.mask_size"),
    *("model.size", "model.drop_path", "model.freeze_patch_embed", "views.", "encoder.", "detector.", "optimizer."),
    *("inference.short", "inference.long"),
)


def report(config: ConfigDict, step: int, scores: Mapping[str, float], protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of report.md; the paper's numbers only for COCO."""
    yield f"# Cascade Mask R-CNN on {protocol['set']}, step {step:,}\n"
    yield f"{protocol['images']} images, {protocol['classes']} classes"
    yield f"Encoder: {protocol['init']}, {protocol['encoder']}\n"
    yield "| metric | boxes | masks |\n|---|---|---|"
    names = [name.removeprefix("bbox_") for name in scores if name.startswith("bbox_")]
    yield from (f"| {name} | {_number(scores[f'bbox_{name}'])} | {_number(scores[f'segm_{name}'])} |" for name in names)
    if "ceiling_AP" in scores:
        reached = _number(scores["ceiling_AP"])
        yield f"\nMasks drawn in the true boxes with the true classes: AP {reached}, the most the mask heads allow."
    if config.data.source == "coco":
        yield from with_paper(config, scores, protocol)


def with_paper(config: ConfigDict, scores: Mapping[str, float], protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yields the run as a row of the paper's table, and the fields that differ from the nearest schedule's recipe."""
    yield "\nThis run and the paper's AP with this detector on COCO (arXiv 2409.06809, table 1):\n"
    yield "| encoder | pretraining data | epochs | boxes | masks |\n|---|---|---:|---:|---:|"
    yield f"| this run: {protocol['init']} | | | {_number(scores['bbox_AP'])} | {_number(scores['segm_AP'])} |"
    for name, (data, epochs, boxes, masks) in paper_rows("coco_box_ap", "coco_mask_ap").items():
        yield f"| {name} | {data} | {epochs or ''} | {boxes} | {masks} |"
    found = {name: departures(config, schedule(detection(), name), PROTOCOL) for name in SCHEDULES}
    nearest = min(found, key=lambda name: len(found[name]))
    if found[nearest]:
        yield f"\nNot like the recipe (schedule {nearest}): " + "; ".join(found[nearest]) + "."
    else:
        yield f"\nThe settings are those of the recipe (schedule {nearest})."
    yield "What differs from mmdet's code in any case is listed in docs/detection.md."


def _number(value: float) -> str:
    return "no objects" if value < 0 else f"{value:.2f}"
