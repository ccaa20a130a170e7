"""What a mistake in the settings of data is answered with: the field, its value and the way out."""

import re

import numpy as np
import pytest

from detailclip_jax.config import default, run_config
from detailclip_jax.data import (
    caption_selection,
    false_texts,
    image_operations,
    mixture,
    pipeline,
    preprocessing,
    regions,
)
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop, crops_from_config
from detailclip_jax.pretraining import validate

EXAMPLES = [{"image": b"", "captions": ("a",), "label": -1, "key": "k"}]


def config(**fields):
    changed = default()
    changed.batch_size, changed.data.source, changed.data.held_out = 6, "stickers", 0
    changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return changed


def stated(check, fields):
    changed = run_config.load("configs/stickers.py:method=clip,states=True")
    changed.update_from_flattened_dict(fields)
    check(changed)


def captions(rule, number):
    caption_selection.num_captions(config(data__caption=rule, data__num_captions=number).data)


def stream(examples=EXAMPLES, **options):
    pipeline.Stream(examples, {"large": Crop(size=8)}, Tokenizer(8), **options)


def large(**fields):
    crops_from_config({"large": fields})


def preprocess(**fields):
    preprocessing.changed(default(), fields)


def paths(path):
    mixture.components(config(data__source="records", data__path=path).data)


RULES = ("frist", "field", "field:", "field:a,,b", "", "sources", "sources:", "sources:a,/b", "crops:", "random:a")
STATED = [  # what would not stay true, or contradicts other settings; words of the message
    ({"views.crops.large.flip": 0.5}, "--config.views.crops.large.flip=0"),
    ({"views.crops.large.kind": "random"}, "--config.views.crops.large.kind=whole"),
    ({"data.stickers.scenes": "mixed"}, "--config.data.stickers.scenes=stated"),
    ({"data.source": "records", "data.path": "x"}, "is for stickers"),
    ({"data.negatives": 3}, "at most 2 false texts; set it to 2 or less"),
    ({"data.shuffled": "negatives"}, "set --config.data.negatives to"),
    ({"data.shuffled": "images", "data.negatives": 2, "data.regions": 4}, "set --config.data.regions=0"),
    ({"data.relations": (0.2, 0.8), "data.caption": "first"}, "set --config.data.caption=states"),
    ({"data.ordinary_ratio": 0.5, "data.caption": "first"}, "whose captions are all ordinary: set it to 0"),
]
REGIONS = [  # what a model does not read; words of the message
    ({"data.phrase_length": 2}, "must be 0 or from 3 to model.context_length, 48"),
    ({"data.phrase_length": 49}, "must be 0 or from 3"),
    ({"data.phrase_length": 8, "model.text_style.pooling": "last"}, "set data.phrase_length to 0"),
    ({"data.regions": 4, "views.native": (16,)}, "needs square views"),
]
MISTAKES = {  # the mistake: call, words of the message
    "context without room": (lambda: Tokenizer(context_length=2), "context_length 2"),
    "crop of a small image": (
        lambda: image_operations.center_crop(np.zeros((20, 30, 3), np.uint8), 21),
        "crop of 21 pixels does not fit into 20 x 30",
    ),
    "no examples": (lambda: stream([]), "has no examples"),
    "batch of several processes": (
        lambda: pipeline.options_of(config(), process_count=4),
        "batch_size 6 does not divide over 4 processes",
    ),
    "negative number of held-out examples": (lambda: validate(config(data__held_out=-1)), r"data\.held_out"),
    **{
        f"reducing gap {gap}": (lambda gap=gap: stream(reducing_gap=gap), rf"reducing_gap {gap} .* 0 .*at least 1")
        for gap in (0.5, 0.99, -1, float("nan"))
    },
    # crops
    "enclosing crop alone": (
        lambda: crops_from_config({"teacher": {"kind": "enclosing"}}),
        r"needs crops named 'large' to enclose, .* are teacher \(enclosing\)",
    ),
    "inside crop alone": (
        lambda: crops_from_config({"local": {"kind": "inside"}}),
        "a crop of kind inside needs crops named 'large'",
    ),
    "large crop inside itself": (lambda: large(kind="inside"), "a crop of kind inside needs crops named 'large'"),
    "unknown field of a crop": (lambda: large(sizes=8), "crop 'large': unknown field 'sizes'; did you mean 'size'"),
    "unknown kind of a crop": (
        lambda: large(kind="round"),
        "views.crops.large.kind 'round' is unknown; known: random, whole, enclosing, inside",
    ),
    "unknown filter of a crop": (
        lambda: large(filter="nearest"),
        "views.crops.large.filter 'nearest' is unknown; known: bicubic, bilinear",
    ),
    "a number too many for two crops": (
        lambda: large(count=2, blur_p=(1.0, 0.1, 0.5)),
        r"large.blur_p has 3 numbers for count 2; give .* \(1.0, 0.1\)$",
    ),
    "a number too many for one crop": (
        lambda: large(blur_p=(0.1, 0.2)),
        r"views.crops.large.blur_p has 2 numbers for count 1; give .*, for example \(0.1,\)",
    ),
    "no crop": (lambda: large(count=0), "views.crops.large.count 0 must be at least 1"),
    # captions
    "unknown caption rule": (lambda: stream(caption="longest"), r"'longest'.*random, first, concat.*field:NAME"),
    **{
        f"caption rule {rule!r}": (
            lambda rule=rule: caption_selection.parse(rule),
            r"caption rule .*random, first, concat.*field:NAME.*crops, diverse.*sources:",
        )
        for rule in RULES
    },
    **{
        f"{number} captions of {rule}": (
            lambda rule=rule, number=number: captions(rule, number),
            f"num_captions {number} is too small for data.caption '{rule}': at least {least}",
        )
        for rule, number, least in (("crops", 1, 2), ("diverse", 0, 1))
    },
    **{
        f"8 captions of {rule}": (
            lambda rule=rule: captions(rule, 8),
            f"data.num_captions 8 .*{rule}.* gives {own}; set --config.data.num_captions={own},.* crops or diverse",
        )
        for rule, own in (("random", 1), ("field:a,b", 1), ("sources:a,b", 2), ("debias", 2))
    },
    "one of several captions": (lambda: stream(caption="crops", num_captions=1), "data.num_captions 1"),
    "several of one caption": (lambda: stream(caption="random", num_captions=2), "data.num_captions 2"),
    # preprocessing
    "unknown filter": (lambda: preprocess(filter="lanczos"), r"'lanczos'.* Known: bicubic, bilinear"),
    "unknown resize": (lambda: preprocess(resize="longest"), r"'longest'.* Known: shorter_side, squash"),
    "crop above the image": (lambda: preprocess(crop_ratio=1.2), "crop_ratio 1.2 must be greater than 0 and at most 1"),
    "crop of nothing": (lambda: preprocess(crop_ratio=0.0), "crop_ratio 0.0 must be greater than 0"),
    "mean of one channel": (lambda: preprocess(mean=(0.5,)), r"preprocess.mean \(0.5,\) must have 3 numbers"),
    "std 0": (lambda: preprocess(std=(0.5, 0.0, 0.5)), r"preprocess.std \(0.5, 0.0, 0.5\) must be from 1e-06 to 1000"),
    "std beyond int64": (
        lambda: preprocess(std=(9 * 10**18,) * 3),
        r"preprocess.std \(9000000000000000000, .* must be from 1e-06 to 1000",
    ),
    "mean NaN": (
        lambda: preprocess(mean=(0.5, float("nan"), 0.5)),
        r"preprocess.mean \(0.5, nan, 0.5\) must be from -1000 to 1000",
    ),
    "unknown field of preprocess": (lambda: preprocess(fliter="bicubic"), "'fliter'; did you mean 'filter'"),
    "unknown decoding": (lambda: preprocess(decoding="pil"), r"preprocess.decoding 'pil'.* Known: upright, pillow"),
    **{
        f"preprocess.{name} of a run": (
            lambda name=name, value=value: validate(config(**{f"preprocess.{name}": value})),
            f"preprocess.{name}",
        )
        for name, value in (("filter", "cubic"), ("resize", "longest"), ("crop_ratio", 1.5), ("std", (0.0, 1.0, 1.0)))
    },
    # sets of a mixture
    "empty path": (lambda: paths("/a@3,,/b@1"), "has an empty path between commas; expected PATH@WEIGHT"),
    "weight without path": (lambda: paths("/a@3,@1"), "has an empty path"),
    "path without weight": (lambda: paths("/a@3,/b"), "has no weight for records:/b; give all sets a weight, or none"),
    "weight 0": (lambda: paths("/a@3,/b@0"), "has a weight of 0; remove that set"),
    "infinite set": (lambda: paths("/a,stickers:"), "stickers is infinite, so every set needs a weight"),
    # stickers
    "unknown split": (
        lambda: Stickers("test"),
        "unknown split 'test' of stickers; known: train, held_out_scenes, held_out_pairs",
    ),
    "small scenes": (lambda: Stickers(size=16), "at least 32 pixels, not size=16"),
    "one object of a pair": (lambda: Stickers("held_out_pairs", single_object=True), "has two objects per scene"),
    "two objects on white": (
        lambda: Stickers(scenes="on_white"),
        "have one object each: use them with single_object=True",
    ),
    "unknown scenes": (
        lambda: Stickers(scenes="mixd"),
        r"unknown scenes of stickers 'mixd'; did you mean 'mixed'\? Known: textured, mixed, stated, on_white",
    ),
    "unknown kind of facts": (
        lambda: Stickers(scenes="stated", kinds="sides"),
        "unknown kind of stated facts 'sides'; did you mean 'side'",
    ),
    "facts of other scenes": (
        lambda: Stickers(kinds="side"),
        "kinds 'side' are of the facts of scenes 'stated', not of 'textured'",
    ),
    # false texts and regions
    **{
        f"{fields} with stated facts": (lambda fields=fields: stated(false_texts.check, fields), re.escape(words))
        for fields, words in STATED
    },
    **{
        f"{fields} with regions": (lambda fields=fields: stated(regions.check, fields), words)
        for fields, words in REGIONS
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        call()
