"""Labelled and captioned test sets by name, in whichever layout they lie on disk.

    pets = open_set("pets", "/data")
    pets.classes[pets.source[0]["label"]]      # "Abyssinian"

Read are data sets prepared by TensorFlow Datasets (array_record; no TensorFlow needed), prepared records,
webdataset tars as clip-benchmark publishes them, folders with one folder per class, and for captions the
Karpathy split files.  Known sets and their sizes stand in `KNOWN`; any other folder works by its path.
"""

from detailclip_jax.data.labelled.contents import LabelledSet
from detailclip_jax.data.labelled.known import KNOWN, Known
from detailclip_jax.data.labelled.opening import Readiness, open_set, ready

__all__ = ["KNOWN", "Known", "LabelledSet", "Readiness", "open_set", "ready"]
