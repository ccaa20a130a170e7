"""The numbers printed in the paper, for comparison with ours (arXiv 2409.06809, tables 1-4; per cent, ViT-B)."""

import functools
import json
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent / "assets" / "paper_tables.json"
PRINTED_NAMES = {"clip": "CLIP", "slip": "SLIP", "maskclip": "MaskCLIP", "aclip": "A-CLIP", "detailclip": "DetailCLIP"}
TITLES = {"retrieval": "Table 2: retrieval, and ImageNet", "zero_shot": "Table 3: zero-shot classification"}
MEAN_PER_CLASS = ("aircraft", "pets", "flowers")
RETRIEVAL = {
    "flickr30k_i2t_r1": ("retrieval", "flickr30k", "image_to_text_r1"),
    "flickr30k_t2i_r1": ("retrieval", "flickr30k", "text_to_image_r1"),
    "coco_i2t_r1": ("retrieval", "coco", "image_to_text_r1"),
    "coco_t2i_r1": ("retrieval", "coco", "text_to_image_r1"),
    "imagenet_zero_shot": ("zero_shot", "imagenet", "top1"),
}
NOT_MEASURED = ("epochs", "mean_as_printed")

Measurement = tuple[str, str, str]  # task, data set, metric


@functools.cache
def tables() -> dict[str, Any]:
    """The tables as printed; null where the paper gives no number."""
    return json.loads(TABLES.read_text())


def columns(table: str) -> dict[str, Measurement]:
    """The columns of table "retrieval" (2) or "zero_shot" (3), in order, with our (task, data set, metric) for each."""
    names = [name for name in tables()[table]["columns"] if name not in NOT_MEASURED]
    return {name: RETRIEVAL.get(name, ("zero_shot", name, _metric(name))) for name in names}


def _metric(dataset: str) -> str:
    return "mean_per_class" if dataset in MEAN_PER_CLASS else "top1"


def measurements() -> list[Measurement]:
    """All (task, data set, metric) of both tables, in the paper's order."""
    return [measurement for table in TITLES for measurement in columns(table).values()]


def zero_shot_sets() -> list[str]:
    """The 14 zero-shot sets: ImageNet of table 2, then those of table 3."""
    return [dataset for task, dataset, _ in measurements() if task == "zero_shot"]


def retrieval_sets() -> list[str]:
    """The two retrieval sets of table 2."""
    return list(dict.fromkeys(dataset for task, dataset, _ in measurements() if task == "retrieval"))


def results_of(method: str) -> dict[str, dict[Measurement, float]]:
    """The paper's results of a method, by label ("DetailCLIP, 25 epochs"): `Measurement` -> fraction of 1.

    Empty for methods that the paper does not list.
    """
    found: dict[str, dict[Measurement, float]] = {}
    for table in TITLES:
        head = tables()[table]["columns"]
        for name, values in tables()[table]["rows"].items():
            if name.removesuffix(" 50") == PRINTED_NAMES.get(method):
                row = dict(zip(head, values))
                label = f"{PRINTED_NAMES[method]}, {row['epochs']} epochs"
                known = {ours: row[column] / 100 for column, ours in columns(table).items() if row[column] is not None}
                found.setdefault(label, {}).update(known)
    return found
