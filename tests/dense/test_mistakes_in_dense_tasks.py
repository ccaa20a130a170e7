"""What a mistake in the data, the options or the config of a dense task is answered with: the thing and the way out."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_detection_heads import encoder, maps_of
from test_segmentation_heads import encoder as plain_encoder
from test_segmentation_heads import tapped
from test_segmentation_step import tiny
from test_semantic_data import RNG, encoded, make_image, mask, put

from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.dense import runs
from detailclip_jax.dense.detection import buckets
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.segmentation import segmentation_heads
from detailclip_jax.dense.segmentation.index_masks import stored_values, table
from detailclip_jax.dense.segmentation.label_augment import scaled_size
from detailclip_jax.dense.segmentation.segmentation_sets import open_set
from detailclip_jax.dense.segmentation.sticker_labels import open_stickers

SHAPES = ((64, 96), (96, 64), (96, 96))
COMMON = {"num_classes": 5, "blocks": (0,), "norm": True, "axis": None, "dtype": jnp.float32}


def images(height=16, width=16):
    return jnp.zeros((1, height, width, 3))


def head(name, options=(), **common):
    return segmentation_heads.build(name, dict(options), **COMMON | common)


def run_of(**changes):
    return runs.build(tiny(**{name.replace("__", "."): value for name, value in changes.items()}))


def folders(root, classes):
    """A set of one image in two folders."""
    put(root / "images/train/b.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    put(root / "masks/train/b.png", mask(0, 1, 255))
    put(root / "classes.txt", classes)
    return open_set("folders", str(root), "train")


def without_masks(root):
    put(root / "images/training/a.jpg", make_image())
    return open_set("ade20k", str(root), "train")


TWO_BLOCKS = "encoder.blocks has 2 blocks; the head fcn reads number 3"
MISTAKES = [  # the mistake; a call with a folder; the error; words of its message
    # networks
    ("a side that is no whole extent", lambda _: maps_of(encoder(), images(20), [(20, 16)]), ValueError, "20", "= 8"),
    (
        "a block that does not exist",
        lambda _: maps_of(encoder(), images(), [(16, 16)], (3,)),
        ValueError,
        "blocks [3]: the encoder has 3 blocks, 0 to 2",
    ),
    (
        "stacked blocks",
        lambda _: maps_of(encoder(scan=True), images(), [(16, 16)], params={}),
        ValueError,
        "scan=False",
    ),
    (
        "a tap that does not exist",
        lambda _: tapped(plain_encoder(), images(), (0, 3)),
        ValueError,
        "taps [3]: the encoder has 3 blocks, 0 to 2",
    ),
    (
        "an image without a patch",
        lambda _: tapped(plain_encoder(), images(3), (0,)),
        ValueError,
        "3 x 16 pixels has no complete patch of 4 x 4",
    ),
    (
        "taps of stacked blocks",
        lambda _: tapped(plain_encoder(scan=True), images(), (0,)),
        ValueError,
        "scan=False",
    ),
    ("an unknown head", lambda _: head("uper_net"), ValueError, "did you mean 'upernet'"),
    ("an unknown option of a head", lambda _: head("upernet", {"widht": 3}), ValueError, "did you mean 'width'"),
    ("too few blocks for a pyramid", lambda _: head("upernet"), ValueError, "encoder.blocks has 1 blocks", "reads 4"),
    ("too many blocks", lambda _: head("upernet", blocks=(0, 1, 2, 3, 4)), ValueError, "encoder.blocks has 5 blocks"),
    ("too few blocks for a tap", lambda _: head("fcn", blocks=(0, 1)), ValueError, TWO_BLOCKS),
    (
        "one stage",
        lambda _: Options(stage_ious=(0.5,)),
        ValueError,
        "stage_ious (0.5,): the cascade has three stages",
    ),
    ("no positive RoIs", lambda _: Options(roi_positive_ratio=0.0), ValueError, "roi_positive_ratio", "than 0"),
    ("two taps for a pyramid", lambda _: Options(blocks=(0, 1)), ValueError, "needs four encoder blocks"),
    # configs
    (
        "a crop of no whole patches",
        lambda _: run_of(views__crop=30),
        ValueError,
        "views.crop 30 is not a multiple of the patch size 8",
        "32",
    ),
    (
        "a window below a patch",
        lambda _: run_of(inference__window=4, inference__stride=4),
        ValueError,
        "inference.window 4 is not a multiple of the patch size 8",
        "set it to 8",
    ),
    (
        "an unknown interpolation",
        lambda _: run_of(encoder__positions="cubic"),
        ValueError,
        "unknown encoder.positions 'cubic'",
        "Known: bicubic",
    ),
    (
        "a block that the encoder lacks",
        lambda _: run_of(encoder__blocks=(0, 9, 1, 1)),
        ValueError,
        "taps [9]: the encoder has 2 blocks",
    ),
    (
        "TFDS as the source of a run",
        lambda _: run_of(data__source="tfds", data__path="scene_parse150"),
        ValueError,
        "instance maps, not the 150 class labels",
    ),
    # detection sets
    (
        "an image that no bucket holds",
        lambda _: buckets.assign(np.array([[64, 96], [100, 20]]), SHAPES),
        ValueError,
        "100 x 20 pixels fits in no bucket of 64 x 96",
    ),
    (
        "a bucket of no whole extent",
        lambda _: buckets.check(SHAPES, ((64, 64),), 48),
        ValueError,
        "64 x 96 has a side that is not a multiple of 48",
    ),
    # segmentation sets
    (
        "colours in place of class numbers",
        lambda _: stored_values(encoded(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)), "m"),
        BadRecord,
        "m: a mask of mode RGB holds colours",
    ),
    (
        "colours with transparency",
        lambda _: stored_values(encoded(np.zeros((4, 4, 4), np.uint8)), "m"),
        BadRecord,
        "mode RGBA holds colours",
    ),
    (
        "a lossy mask",
        lambda _: stored_values(encoded(np.zeros((4, 4), np.uint8), kind="JPEG"), "m"),
        BadRecord,
        "m: the mask is neither a PNG nor a TIFF",
    ),
    ("an empty mask", lambda _: stored_values(b"", "m"), BadRecord, "neither a PNG nor a TIFF"),
    ("a page in place of a mask", lambda _: stored_values(b"<html>", "m"), BadRecord, "neither a PNG nor a TIFF"),
    (
        "half a mask",
        lambda _: stored_values(encoded(RNG.integers(0, 255, (64, 64)).astype(np.uint8))[:2000], "m"),
        BadRecord,
        "m: the mask is truncated or damaged",
    ),
    (
        "a value that the set does not list",
        *(lambda _: table({k + 1: k for k in range(150)}, (0,))(np.array([[0, 1, 150, 151]]), "m"), BadRecord),
        "m: 25.0% of the mask have the values 151",
        "unknown_labels=ignore",
    ),
    (
        "an unknown rule",
        lambda _: table({}, (0,), "drop"),
        ValueError,
        "data.unknown_labels 'drop' is unknown; known: refuse, ignore",
    ),
    ("a value that no mask holds", lambda _: table({70000: 0}), ValueError, "70000"),
    ("an image without a pixel", lambda _: scaled_size((0, 5), (2048, 512)), ValueError, "0 x 5 pixels is empty"),
    *(
        (f"a class list with an empty line {line}", lambda root, text=text: folders(root, text), ValueError, names)
        for line, text in ((2, b"sea\n\nland\n"), (1, b"\nsea\nland\n"), (1, b""))
        for names in (f"classes.txt has no name in line {line}: line k names",)
    ),
    (
        "a class list with a name in two lines",
        lambda root: folders(root, b"sea\nland\nsea\n"),
        ValueError,
        "classes.txt has the name 'sea' in several lines",
    ),
    (
        "a class list that is too long",
        lambda root: folders(root, "\n".join(map(str, range(32_769))).encode()),
        ValueError,
        "classes.txt has 32,769 lines; a set can have 32,768 classes",
    ),
    (
        "a class list in another encoding",
        lambda root: folders(root, "l\u00e4nd".encode("latin-1")),
        ValueError,
        "classes.txt cannot be read: 'utf-8' codec can't decode byte 0xe4",
    ),
    (
        "a class list of 16 MiB",
        lambda root: folders(root, b"a" * (2**24 + 1)),
        ValueError,
        "classes.txt cannot be read: too large",
        "the limit is 16,777,216 bytes",
    ),
    ("TFDS", lambda _: open_set("tfds", "scene_parse150", "train"), ValueError, "not the 150 class labels"),
    ("an unknown set", lambda root: open_set("ade20", str(root), "train"), ValueError, "did you mean 'ade20k'"),
    ("no folder", lambda _: open_set("voc", "", "train"), MissingData, "'', the path of voc, is not a folder"),
    ("no image", lambda root: open_set("ade20k", str(root), "val"), MissingData, "no image of split val"),
    ("no mask", without_masks, MissingData, "1 of 1 images", "have no mask; the first is", "a.jpg"),
    ("a split of stickers", lambda _: open_stickers("groups", "test", 48), ValueError, "unknown split 'test'"),
    ("an unknown split", lambda root: open_set("ade20k", str(root), "test"), ValueError, "unknown split 'test'"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [(c, e, w) for _, c, e, *w in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_answered_with_the_thing_and_the_way_out(tmp_path, call, error, words):
    with pytest.raises(error) as caught:
        call(tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value
