"""What the published training-free read-outs do on each set: class names, prompts, image sizes and thresholds.

    how = setup("voc21", "sclip", classes)
    how.pipeline.scale, how.threshold       # 65.0, 0.1
    how.names[0]                            # ("sky", "wall", ...), the words for background

Read from the public code of each method: wangf3014/SCLIP b56bd30, sinahmr/NACLIP 0cac3a6, mc-lan/ClearCLIP ad68a40,
WalBouss/GEM 5fa677c, google-deepmind/tips 0c65fb7; name lists from SCLIP 57fa9aa and ClearCLIP fd05ce4. plain, maskclip
and maskclip_bare use SCLIP's setups. NACLIP's published numbers include a refinement of the maps by PAMR, which is not
part of this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.evaluation.protocols import package
from detailclip_jax.inference.readout_maps import PIPELINES, PUBLISHED_SIZE, Pipeline, windows_of
from detailclip_jax.models.vit import Style

Names = tuple[tuple[str, ...], ...]  # per class, one or more names

SCLIP, NACLIP, CLEARCLIP, GEM, TIPS = "sclip", "naclip", "clearclip", "gem", "tips"
BACKGROUND_SETS = ("voc21", "context60", "coco_object")  # class 0 is background
GEM_TEMPLATES = ("a photo of a {}.",)
TIPS_TEMPLATES = (  # those of TCL, arXiv 2212.00785
    *("itap of a {}.", "a bad photo of a {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game."),
    *("art of the {}.", "a photo of the small {}.", "a photo of many {}.", "a photo of {}s."),
)

BACKGROUND = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed", "building"),
    *("cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail"),
    "fence",
)
CLOTHES = tuple(f"person in {wear}" for wear in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket"))
VOC_NAMES = {"boat": "ship", "diningtable": "table"}  # other words than the set's own, in all lists
SCLIP_VOC = {
    "background": BACKGROUND,
    "person": ("person", *CLOTHES),
    "tvmonitor": ("television monitor", "tv monitor", "monitor", "television", "screen"),
}
SCLIP_COCO_OBJECT = {"background": BACKGROUND, "person": ("person", *CLOTHES, "body")}
SEVERAL: dict[str, Mapping[str, tuple[str, ...]]] = {
    "voc20": SCLIP_VOC,
    "voc21": SCLIP_VOC,
    "coco_object": SCLIP_COCO_OBJECT,
}
JOINED = ("context59", "context60", "coco_stuff171", "ade150", "cityscapes")  # "traffic light" is "trafficlight"

# Changes of the pipeline in `inference.readout_maps.PIPELINES`, by method and set
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    SCLIP: {
        "cityscapes": {"short_side": 560},
        "coco_stuff171": {"short_side": 448},
        "voc21": {"scale": 65.0},
        "context60": {"scale": 50.0},
        "coco_object": {"scale": 50.0},
    },
    NACLIP: {"cityscapes": {"short_side": 560}, "voc20": {"window": None}, "voc21": {"window": None}},
    CLEARCLIP: {"cityscapes": {"window": 224, "stride": 224}},
    GEM: {},
    TIPS: {},
}
THRESHOLDS: dict[str, Mapping[str, float]] = {
    SCLIP: dict.fromkeys(BACKGROUND_SETS, 0.1),
    NACLIP: dict.fromkeys(BACKGROUND_SETS, 0.1),
    CLEARCLIP: {"voc21": 0.5, "context60": 0.15, "coco_object": 0.4},
    GEM: dict.fromkeys(BACKGROUND_SETS, 0.85),  # its README's example; the paper tunes it per set
}
SMALLEST_SHARES = {SCLIP: {"voc21": 0.1}}


class Setup(NamedTuple):
    """How one read-out is evaluated on one set.

    names: of each class, in the set's order; a class without names is predicted by the threshold alone.
    templates: prompts of a name, with "{}" for it; none for stickers, whose nouns have the wording of the captions.
    threshold: below this share of the softmax over names, class 0 is predicted; 0 for none.
    smallest_share: classes with at most this share of the pixels that are not class 0 are dropped; 0 for none.
    """

    pipeline: Pipeline
    names: Names
    templates: tuple[str, ...]
    threshold: float = 0.0
    smallest_share: float = 0.0

    def description(self, model: ConfigDict) -> str:
        """One line for the records, with lengths in pixels for the model of `config.model`."""
        cut, (window, stride) = self.pipeline, windows_of(self.pipeline, model)
        how = "squashed to" if cut.squash else "short side"
        parts = [
            f"{how} {round(cut.short_side * model.image_size / PUBLISHED_SIZE)}",
            f"windows {window}/{stride}" if window else "whole image",
            f"scale {cut.scale:g}",
            "softmax in each window" if cut.window_softmax else "",
            f"threshold {self.threshold:g}" if self.threshold else "",
            f"classes above {self.smallest_share:g} of the foreground" if self.smallest_share else "",
            f"{sum(map(len, self.names))} names",
            f"{len(self.templates)} prompt{'s' * (len(self.templates) > 1)} each" if self.templates else "",
            "each patch alone through the attention pool" if Style(**model.image_style).has_pool else "",
        ]
        return ", ".join(filter(None, parts))


def setup(dataset: str, readout: str, classes: Sequence[str]) -> Setup:
    """The setup of a read-out on a set with these class names; for a folder of the user's, the method's usual one."""
    method = readout if readout in CHANGES else SCLIP
    templates = [template.replace("{c}", "{}") for template in package("templates")["imagenet1k"]]  # CLIP's 80
    if dataset == "stickers":
        templates = ()
    elif method in (GEM, TIPS):
        templates = GEM_TEMPLATES if method == GEM else TIPS_TEMPLATES
    return Setup(
        PIPELINES[readout]._replace(**CHANGES[method].get(dataset, {})),
        names_of(dataset, method, classes),
        tuple(templates),
        THRESHOLDS.get(method, {}).get(dataset, 0.0),
        SMALLEST_SHARES.get(method, {}).get(dataset, 0.0),
    )


def names_of(dataset: str, method: str, classes: Sequence[str]) -> Names:
    """The names of each class in the method's list; "background" has none in gem's.

    sclip and naclip share one list: several names for background, person and television. clearclip has one name per
    class. gem's list is not published; it is clearclip's without the background. tips has one name per class, as the
    set writes it; only its list for ADE20K is published.
    """
    several = {} if method in (CLEARCLIP, GEM, TIPS) else SEVERAL.get(dataset, {})
    names: list[tuple[str, ...]] = []
    for name in classes:
        if name in several:
            names.append(several[name])
        elif method == GEM and name == "background" and dataset in BACKGROUND_SETS:
            names.append(())
        elif method == TIPS:
            names.append((name,))
        elif dataset in ("voc20", "voc21"):
            names.append((VOC_NAMES.get(name, name),))
        else:
            names.append((name.replace(" ", "") if dataset in JOINED else name,))
    return tuple(names)
