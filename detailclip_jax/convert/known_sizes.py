"""Sizes of known data sets, compared with the result at the end of a run.

An example is an image with all its captions.  Sources: YFCC15M: OpenAI's list of the subset
(data/yfcc100m.md of its CLIP repository), SLIP's make_dataset.py (those of the list that have an image), DeCLIP's
labels (arXiv 2110.05208).  CC3M: Sharma et al. 2018.  CC12M: arXiv 2102.08981.  COCO: arXiv 1504.00325 and the 2017
release; Karpathy's splits: arXiv 1412.2306.  ImageNet: arXiv 1409.0575.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Known(NamedTuple):
    """Number of examples of a set, and its variant if several sets share the name."""

    num_examples: int
    variant: str = ""


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "yfcc15m-openai": Known(14_829_396, "the OpenAI subset of YFCC100M, as listed"),
        "yfcc15m-slip": Known(14_689_580, "the OpenAI subset of YFCC100M, those with an image in SLIP"),
        "yfcc15m-declip": Known(15_388_848, "the DeCLIP subset of YFCC100M (V2)"),
        "cc3m": Known(3_318_333),
        "cc3m-validation": Known(15_840),
        "cc12m": Known(12_423_374),
        "coco-train2014": Known(82_783),
        "coco-val2014": Known(40_504),
        "coco-train2017": Known(118_287),
        "coco-val2017": Known(5_000),
        "coco-karpathy-train": Known(113_287, "Karpathy's split, train and restval"),
        "coco-karpathy-val": Known(5_000, "Karpathy's split"),
        "coco-karpathy-test": Known(5_000, "Karpathy's split"),
        "flickr30k-train": Known(29_000, "Karpathy's split"),
        "flickr30k-val": Known(1_014, "Karpathy's split"),
        "flickr30k-test": Known(1_000, "Karpathy's split"),
        "imagenet-train": Known(1_281_167),
        "imagenet-val": Known(50_000),
    }
)


def comparison(dataset: str, num_examples: int, num_rejected: int) -> str:
    """Returns one line that compares the result with the known set; "" for an unknown set."""
    if dataset not in KNOWN:
        return ""
    known = KNOWN[dataset]
    share = num_examples / known.num_examples
    line = f"{dataset} has {known.num_examples:,} examples: this set has {share:.1%} of them"
    missing = known.num_examples - num_examples - num_rejected
    if missing > 0:
        line += f", {missing:,} are not in the source"
    return line + (f" ({known.variant})" if known.variant else "")
