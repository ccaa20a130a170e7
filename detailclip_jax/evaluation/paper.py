"""Numbers printed in papers, for comparison with ours (per cent).  `LONG` and `WINOGROUND` name their sources.

Tables 2-4 of DetailCLIP (arXiv 2409.06809, ViT-B), and the training-free read-outs on CLIP ViT-B/16, from the READMEs
of their papers' repositories: mean IoU with OpenAI's weights; NACLIP's include PAMR, a refinement of the maps that is
not part of this package.
"""

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
READOUT_SETS = ("voc21", "voc20", "context59", "coco_object", "coco_stuff171", "ade150", "cityscapes")
READOUTS = {
    "sclip": ("SCLIP (arXiv 2312.01597), CLIP B/16", (59.6, 81.5, 34.5, 33.5, 22.8, 16.5, 32.3)),
    "naclip": ("NACLIP (arXiv 2404.08181), CLIP B/16, with PAMR", (64.1, 83.0, 38.4, 36.2, 25.7, 19.1, 38.3)),
}
LONG = {  # OpenAI's CLIP B/16, image to text and text to image R@1, captions cut to 77 tokens
    "urban1k": (68.1, 53.6),  # HiMo-CLIP, its table of long retrieval
    "docci": (58.5, 58.2),  # the same
    "dci": (45.5, 43.0),  # FG-CLIP (arXiv 2505.05071); LoTLIP's README has them with the directions swapped
    "sharegpt4v1k": (78.2, 79.6),  # Long-CLIP (2403.15378), table 1
}
WINOGROUND = {"text_score": 30.75, "image_score": 10.5, "group_score": 8.0}  # CLIP B/32, 2204.03162, table 3
NOT_MEASURED = ("epochs", "mean_as_printed")

Measurement = tuple[str, str, str]  # task, data set, metric


@functools.cache
def tables() -> dict[str, Any]:
    """The tables as printed; null where the paper gives no number."""
    return json.loads(TABLES.read_text())


def columns(table: str) -> dict[str, Measurement]:
    """The columns of table "retrieval" (2) or "zero_shot" (3), in order, with our (task, data set, metric) for each."""
    names = [name for name in tables()[table]["columns"] if name not in NOT_MEASURED]
    metrics = {name: "mean_per_class" if name in MEAN_PER_CLASS else "top1" for name in names}
    return {name: RETRIEVAL.get(name, ("zero_shot", name, metrics[name])) for name in names}


def measurements() -> list[Measurement]:
    """All (task, data set, metric) of both tables, in the paper's order."""
    return [measurement for table in TITLES for measurement in columns(table).values()]


def results_of(method: str) -> dict[str, dict[Measurement, float]]:
    """The paper's results of a method, by label ("DetailCLIP, 25 epochs"): `Measurement` -> fraction of 1.

    Empty for methods that the paper does not list.
    """
    results: dict[str, dict[Measurement, float]] = {}
    for table in TITLES:
        head = tables()[table]["columns"]
        for name, values in tables()[table]["rows"].items():
            if name.removesuffix(" 50") == PRINTED_NAMES.get(method):
                row = dict(zip(head, values))
                label = f"{PRINTED_NAMES[method]}, {row['epochs']} epochs"
                known = {ours: row[column] / 100 for column, ours in columns(table).items() if row[column] is not None}
                results.setdefault(label, {}).update(known)
    return results


def published_results() -> dict[str, dict[Measurement, float]]:
    """The published results of CLIP on sets of detail and by read-outs, by label: `Measurement` -> fraction of 1."""
    directions = "image_to_text_r1", "text_to_image_r1"
    long = {
        ("retrieval", name, metric): value / 100 for name, row in LONG.items() for metric, value in zip(directions, row)
    }
    pairs = {("choice", "winoground", metric): value / 100 for metric, value in WINOGROUND.items()}
    return {"CLIP B/16": long, "CLIP B/32": pairs} | {
        label: {("dense", f"{name}:{readout}", "mean_iou"): value / 100 for name, value in zip(READOUT_SETS, values)}
        for readout, (label, values) in READOUTS.items()
    }
