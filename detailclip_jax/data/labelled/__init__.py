"""Opens labelled and captioned test sets by name, in any supported layout on disk.

    pets = open_set("pets", "/data")
    pets.classes[pets.source[0]["label"]]      # "Abyssinian"

Supported layouts: data sets prepared by TensorFlow Datasets (array_record; no TensorFlow needed), prepared records,
webdataset tars as clip-benchmark publishes them, folders with one subfolder per class, and for captions the Karpathy
split files.  `KNOWN` lists the known sets and their sizes; any other folder is opened by its path.
"""

from detailclip_jax.data.labelled.boxes import OBJECTS, BoxSet, boxes_of, open_boxes
from detailclip_jax.data.labelled.choices import CHOICES, Choice, ChoiceSet, open_choices, ready_choices
from detailclip_jax.data.labelled.contents import LabelledSet
from detailclip_jax.data.labelled.known_sets import KNOWN, Known
from detailclip_jax.data.labelled.opening import Readiness, captions_of_your_own, open_set, ready

__all__ = [
    "CHOICES",
    "KNOWN",
    "OBJECTS",
    "BoxSet",
    "Choice",
    "ChoiceSet",
    "Known",
    "LabelledSet",
    "Readiness",
    "boxes_of",
    "captions_of_your_own",
    "open_boxes",
    "open_choices",
    "open_set",
    "ready",
    "ready_choices",
]
