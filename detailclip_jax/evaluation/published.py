"""Published numbers of training-free dense read-outs on CLIP ViT-B/16, for comparison with ours (mean IoU, per cent).

From the READMEs of the papers' repositories. The numbers are of OpenAI's weights; those of NACLIP include PAMR, a
refinement of the maps that is not part of this package.
"""

from detailclip_jax.dense.paper import Measurement

SETS = ("voc21", "voc20", "context59", "coco_object", "coco_stuff171", "ade150", "cityscapes")
RESULTS = {
    "sclip": ("SCLIP (arXiv 2312.01597), CLIP B/16", (59.6, 81.5, 34.5, 33.5, 22.8, 16.5, 32.3)),
    "naclip": ("NACLIP (arXiv 2404.08181), CLIP B/16, with PAMR", (64.1, 83.0, 38.4, 36.2, 25.7, 19.1, 38.3)),
}


def results() -> dict[str, dict[Measurement, float]]:
    """The published results by label: `Measurement` -> fraction of 1."""
    return {
        label: {("dense", f"{name}:{readout}", "mean_iou"): value / 100 for name, value in zip(SETS, values)}
        for readout, (label, values) in RESULTS.items()
    }
