"""Numbers printed in papers, for comparison with ours (per cent).

Tables 2-4 of DetailCLIP (arXiv 2409.06809, ViT-B), and in PRINTED those of public models on sets of detail, each with
its source.  Those of training-free read-outs on CLIP ViT-B/16 are from the READMEs of their papers' repositories: mean
IoU with OpenAI's weights; NACLIP's include PAMR, a refinement of the maps that is not part of this package.
"""

import functools
import json
from collections.abc import Mapping
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
CLIP_16, CLIP_32, FG_CLIP_16, FG_CLIP_14 = "CLIP B/16", "CLIP B/32", "FG-CLIP B/16", "FG-CLIP L/14"
REPOSITORIES = {  # of the hub -> model; open_clip's and timm's names are repositories too
    "openai/clip-vit-base-patch16": CLIP_16,
    "timm/vit_base_patch16_clip_224.openai": CLIP_16,
    "openai/clip-vit-base-patch32": CLIP_32,
    "timm/vit_base_patch32_clip_224.openai": CLIP_32,
    "qihoo360/fg-clip-base": FG_CLIP_16,
    "qihoo360/fg-clip-large": FG_CLIP_14,
    "google/tipsv2-b14": "TIPSv2 B/14",
    "google/tipsv2-l14": "TIPSv2 L/14",
    "google/tipsv2-g14": "TIPSv2 g/14",
}
READOUT_SETS = ("voc21", "voc20", "context59", "coco_object", "coco_stuff171", "ade150", "cityscapes")
READOUTS = {
    "sclip": ("SCLIP (arXiv 2312.01597), CLIP B/16", (59.6, 81.5, 34.5, 33.5, 22.8, 16.5, 32.3)),
    "naclip": ("NACLIP (arXiv 2404.08181), CLIP B/16, with PAMR", (64.1, 83.0, 38.4, 36.2, 25.7, 19.1, 38.3)),
}
DIRECTIONS = ("image_to_text_r1", "text_to_image_r1")  # a model with 77 tokens reads that much of a long caption
LEVELS = ("hard", "medium", "easy", "trivial")
HIMO_CLIP = "HiMo-CLIP (arXiv 2511.06653), long retrieval"
FG_CLIP = "FG-CLIP (arXiv 2505.05071), table of"
CROPS = "; whether cut or pooled is not stated"  # how the boxes of another model were encoded
PRINTED = (  # model, task, set, its metrics, per cent, source
    (CLIP_16, "retrieval", "urban1k", DIRECTIONS, (68.1, 53.6), HIMO_CLIP),
    (CLIP_16, "retrieval", "docci", DIRECTIONS, (58.5, 58.2), HIMO_CLIP),
    # LoTLIP's README has the same two numbers with the directions swapped
    (CLIP_16, "retrieval", "dci", DIRECTIONS, (45.5, 43.0), f"{FG_CLIP} retrieval"),
    (CLIP_16, "retrieval", "sharegpt4v1k", DIRECTIONS, (78.2, 79.6), "Long-CLIP (arXiv 2403.15378), table 1"),
    (
        *(CLIP_32, "choice", "winoground", ("text_score", "image_score", "group_score"), (30.75, 10.5, 8.0)),
        "Winoground (arXiv 2204.03162), table 3",
    ),
    (CLIP_16, "choice", "fg_ovd:roi", LEVELS, (12.0, 23.1, 22.2, 58.5), f"{FG_CLIP} FG-OVD{CROPS}"),
    (CLIP_16, "box_class", "coco", ("top1",), (44.2,), f"{FG_CLIP} boxes{CROPS}"),
    (FG_CLIP_16, "choice", "fg_ovd:roi", LEVELS, (46.1, 66.6, 68.7, 83.4), f"{FG_CLIP} FG-OVD"),
    (FG_CLIP_14, "choice", "fg_ovd:roi", LEVELS, (48.4, 69.5, 71.2, 89.7), f"{FG_CLIP} FG-OVD"),
    (FG_CLIP_16, "box_class", "coco", ("top1",), (52.3,), f"{FG_CLIP} boxes"),
    (FG_CLIP_16, "box_class", "lvis", ("top1",), (28.6,), f"{FG_CLIP} boxes"),
    (FG_CLIP_14, "box_class", "coco", ("top1",), (63.2,), f"{FG_CLIP} boxes"),
    (FG_CLIP_14, "box_class", "lvis", ("top1",), (38.3,), f"{FG_CLIP} boxes"),
    (FG_CLIP_16, "retrieval", "dci", DIRECTIONS, (61.8, 60.6), f"{FG_CLIP} ablations, long text side"),
    *(
        (f"TIPSv2 {size}", "dense", "ade150:tips", ("mean_iou",), (value,), "README of google-deepmind/tips, ADE150-ZS")
        for size, value in {"B/14": 17.4, "L/14": 24.7, "g/14": 17.8}.items()
    ),
    *(
        (CLIP_16, "dense", f"{name}:{readout}", ("mean_iou",), (value,), label.replace(f", {CLIP_16}", ""))
        for readout, (label, values) in READOUTS.items()
        for name, value in zip(READOUT_SETS, values)
    ),
)
NOT_MEASURED = ("epochs", "mean_as_printed")

Measurement = tuple[str, str, str]  # task, data set, metric
Numbers = Mapping[Measurement, tuple[float, str]]  # per cent, and the source


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
    results: dict[str, dict[Measurement, float]] = {CLIP_16: {}, CLIP_32: {}}
    for model, task, dataset, metrics, values, _ in PRINTED:
        if model in results:
            label = model if task != "dense" else READOUTS[dataset.partition(":")[2]][0]
            results.setdefault(label, {}).update(
                {(task, dataset, metric): value / 100 for metric, value in zip(metrics, values)}
            )
    return results


def printed_of(repository: str) -> Numbers:
    """The published numbers of the model in a repository of the hub, each with its source; empty if none is known."""
    model = REPOSITORIES.get(repository)
    return {
        (task, dataset, metric): (value, source)
        for named, task, dataset, metrics, values, source in PRINTED
        if named == model
        for metric, value in zip(metrics, values)
    }
