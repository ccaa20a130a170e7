"""The default configuration: every field of a run, with its meaning, its default and the source of the default.

Config files under `configs/` start from `default()` and set the fields that differ.  `parse_arg` parses the part
after the colon of `--config=configs/vitb16_yfcc.py:epochs=50`.
"""

import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OPEN = ("evaluators", "stickers", "crops", "custom", "part_rates")  # groups that accept fields of any name


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for an unknown name, with the nearest and all known names.

    unknown("method", "detailclp", METHODS) == "unknown method 'detailclp'; did you mean 'detailclip'? Known: ..."
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"


class Fields(ConfigDict):
    """A group of fields that accepts no new ones, so that a typo raises an error where it is written.

        config.totl_steps = 5       # ValueError: unknown config field 'totl_steps'; did you mean 'total_steps'? ...

    Its subgroups are `Fields` too, except those in OPEN.  To add fields of your own: `with config.unlocked():`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise ValueError(unknown("config field", key, self))
        if isinstance(value, dict | ConfigDict) and isinstance(self.get(key), Fields):
            value = closed(ConfigDict(value))
        super().__setitem__(key, value)

    def lock(self) -> "Fields":
        """Makes the group refuse new fields, except in its subgroups in OPEN."""
        super().lock()
        for name in OPEN:
            if name in self:
                self[name].unlock()
        return self


def closed(group: ConfigDict) -> Fields:
    """Converts a group and its subgroups to `Fields`."""
    made = Fields()
    for name, value in group.iteritems(preserve_field_references=True):
        made[name] = closed(value) if isinstance(value, ConfigDict) and name not in OPEN else value
    return made.lock()


class Field(NamedTuple):
    """A field of the configuration: its default, its meaning and the source of the default.

    `kind` is the type of a field without a default value (`placeholder`).
    """

    default: Any
    meaning: str
    source: str
    kind: type | None = None

    @property
    def value(self) -> Any:
        """The default in the form that a config stores; a new object at each call, so that configs share nothing."""
        if self.kind:
            return placeholder(self.kind)
        return ConfigDict(self.default) if isinstance(self.default, dict) else self.default


OURS = "ours"  # specific to this implementation, or a number that neither the paper nor the code states
CODE = "reference"  # the authors' published code
SLIP = "SLIP's, as in the paper"
Group = dict[str, Field]

RUN: Group = {
    "method": Field("detailclip", "row of the comparison; methods/ has one file for each", "paper"),
    "seed": Field(0, "of parameters, order of examples, crops and captions", OURS),
    "init": Field("", "checkpoint to start from: its networks, sizes and preprocessing (init_from.py)", OURS),
    "batch_size": Field(4096, "image-text pairs of a step, over all devices", "paper 4.1; reference: 256 x 16 A100"),
    "accumulation": Field(1, "chunks that each device takes its rows in: less memory, the same numbers", OURS),
    "num_epochs": Field(25, "length of the run where the data have a size and total_steps is not given", "paper 4.1"),
    "total_steps": Field(None, "length of the run in steps; default: num_epochs * steps_per_epoch", OURS, int),
    "steps_per_epoch": Field(
        None, "optimiser steps that schedules count as an epoch; default: examples // batch_size", OURS, int
    ),
    "log_every": Field(50, "steps between two lines of metrics.jsonl", OURS),
    "checkpoint_every": Field(1000, "steps between two checkpoints", OURS),
    "max_to_keep": Field(2, "checkpoints that stay on disk", OURS),
    "best_metric": Field("", "as zero_shot/ema/top1: the checkpoint with its best value is kept as well", OURS),
    "evaluate_every": Field(0, "steps between two evaluations; 0: only at the end", OURS),
    "evaluate_at_end": Field(True, "whether a finished run is evaluated", OURS),
    "evaluators": Field({}, "what is evaluated, by name with options; {}: what fits the data", OURS),
    "profile_steps": Field(0, "steps that are traced for TensorBoard; 0: none", OURS),
}
MESH: Group = {"fsdp": Field(1, "devices that share one copy of the training state", OURS)}
DATA: Group = {
    "source": Field("records", "stickers, records (ArrayRecord shards) or tfds", OURS),
    "path": Field(
        "",
        "folder of the shards; tfds: name:version or a builder's directory; A@3,B@1: several sets, three examples of A "
        "for each of B; A,tfds:B: by size.  An epoch is as many examples as they have together",
        OURS,
    ),
    "split": Field("train", "the split that is trained on", OURS),
    "held_out": Field(
        0,
        "examples kept out of training for the evaluation at the end, at most 2 % (or 8, if that is more), never more "
        "than a tenth; none where the data have a split val, validation, test or dev",
        "the paper trains on all",
    ),
    "caption": Field(
        "random",
        "which text of an example: random, first, concat (title + description, the reference's), field:title, or "
        "field:description,title, the first that is not blank",
        "paper: a random valid one",
    ),
    "keep_eot": Field(True, "whether a caption that is cut keeps its EOT", "ours; False is the reference's truncation"),
    "text_buckets": Field(
        (32, 48), "lengths that a batch's captions are cut to, the first that holds the longest; exact; (): off", OURS
    ),
    "num_workers": Field(0, "processes that decode and crop; 0: threads", OURS),
    "prefetch": Field(2, "batches that are kept ready", OURS),
    "reducing_gap": Field(
        2.0, "JPEGs are decoded at 1/2, 1/4, 1/8 where crops stay that many times as large as their views; 0: off", OURS
    ),
    "max_bad_ratio": Field(0.01, "share of unreadable records beyond which the run stops", OURS),
}
STICKERS: Group = {
    "num_scenes": Field(2**24, "scenes of the source stickers", OURS),
    "seed": Field(0, "of what the scenes show", OURS),
    "scenes": Field("mixed", "mixed: plain grounds and objects of any size too; textured: neither", OURS),
}
VIEWS: Group = {
    "mixup": Field(0.0, "alpha of mixup over the global batch (supervised); 0: off", "off in the paper"),
    "cutmix": Field(0.0, "the same for CutMix", "off in the paper"),
    "teacher": Field("same", "same: the teacher sees the student's views; enclosing: a crop around them", CODE),
}
PREPROCESS: Group = {  # of images in evaluation; mean and std also in training; saved in every checkpoint
    "filter": Field("bilinear", "of resizing in evaluation: bilinear or bicubic (CLIP, MAE, DINO, iBOT, timm)", SLIP),
    "resize": Field("shorter_side", "shorter_side, or squash: both sides, whatever the picture's shape", SLIP),
    "crop_ratio": Field(1.0, "side of the center crop over the resized side; .875: 224 of 256", SLIP),
    "mean": Field(IMAGENET_MEAN, "subtracted from pixels of 0 to 1, by channel", CODE),
    "std": Field(IMAGENET_STD, "that pixels are divided by, by channel", CODE),
}
CROP: Group = {  # fields of one entry of views.crops; the defaults have no photometric augmentation
    "count": Field(1, "views of this kind", "CLIP"),
    "size": Field(224, "pixels along a side", "paper 4.1"),
    "kind": Field("random", "random, or enclosing: around all global crops", "paper 4.1.1"),
    "scale": Field((0.5, 1.0), "share of the picture's area, from and to", "paper 4.1; reference: (.14, 1)"),
    "ratio": Field((3 / 4, 4 / 3), "width over height, from and to", CODE),
    "filter": Field("bilinear", "of resizing", "SLIP and A-CLIP"),
    "flip": Field(0.0, "probability of a horizontal flip", CODE),
    "jitter": Field((0.0, 0.0, 0.0, 0.0), "strength for brightness, contrast, saturation, hue", "CLIP: none"),
    "jitter_p": Field(0.0, "probability of the jitter", "CLIP: none"),
    "gray_p": Field(0.0, "probability of a grey view", "CLIP: none"),
    "blur_p": Field((0.0,), "probability of a blur, for each view", "CLIP: none"),
    "blur_sigma": Field((0.1, 2.0), "width of the blur in pixels, from and to", CODE),
    "solarize_p": Field((0.0,), "probability of solarisation, for each view", "CLIP: none"),
    "mask_grid": Field(0, "patches along a side where blocks are drawn; 0: none", "iBOT"),
    "mask_p": Field(0.5, "probability that a view has blocks", "iBOT"),
    "mask_ratio": Field((0.1, 0.5), "share of the patches in blocks, from and to", "iBOT"),
}
GLOBAL: Group = {  # fields of the two global views whose defaults differ from CROP
    "count": Field(2, "views of this kind: u and v", "paper 3.2"),
    "filter": Field("bicubic", "of resizing", CODE),
    "jitter": Field((0.4, 0.4, 0.2, 0.1), "strength for brightness, contrast, saturation, hue", CODE),
    "jitter_p": Field(0.8, "probability of the jitter", CODE),
    "gray_p": Field(0.2, "probability of a grey view", CODE),
    "blur_p": Field((0.1, 0.1), "probability of a blur, for each view", CODE),
    "solarize_p": Field((0.2, 0.2), "probability of solarisation, for each view", CODE),
}
NOT_GLOBAL = ("kind", "mask_grid", "mask_p", "mask_ratio")
MODEL: Group = {
    "size": Field("B/16", "models/sizes.py has the names; custom: the fields of a Size in model.custom", "paper 4.1"),
    "custom": Field({}, "width, depth, heads, ... of the size custom", OURS),
    "image_size": Field(224, "pixels along a side", "paper 4.1"),
    "context_length": Field(77, "tokens of a caption", "CLIP"),
    "vocab_size": Field(49408, "tokens that there are", "CLIP"),
    "prototypes": Field(
        None, "outputs of the heads of CLS and patch terms; default: the size's (8192 from S/16 up)", CODE, int
    ),
    "num_classes": Field(None, "labels of the supervised row", OURS, int),
    "decoder_width": Field(None, "default: the encoder's", CODE, int),
    "decoder_depth": Field(None, "blocks of the decoder; default: 1", CODE, int),
    "drop_path": Field(0.0, "rate of the last block, rising from 0; the student's alone", CODE),
    "freeze_gain": Field(True, "of the prototypes' weight norm; iBOT trains it", CODE),
    "freeze_patch_embed": Field(True, "whether the patch embedding keeps its first values", "reference, after MoCo v3"),
    "text_activation": Field("quick_gelu", "of the text encoder", "CLIP"),
    "dtype": Field(
        "float32", "of products and tokens; parameters, norms, softmax, sums and losses stay float32", "ours"
    ),
    "matmul_precision": Field(
        None,
        "of products on GPUs and TPUs: default, high (TensorFloat-32) or highest; without a value float32 products are "
        "exact in float32, bfloat16 ones as the device does them.  Losses, centers and attention maps are exact",
        OURS,
        str,
    ),
    "remat": Field("none", "what the backward pass computes again: none, dots (all but big products) or full", OURS),
    "scan": Field(False, "one block's program in a loop over stacked parameters: compiles sooner, same numbers", OURS),
    "attention": Field("auto", "xla, or cudnn (NVIDIA, half precision); auto: cudnn where it can run", OURS),
}
IMAGE_STYLE: Group = {  # see models/vit.py; imported checkpoints can have other values
    "norm_eps": Field(1e-6, "epsilon of the LayerNorms of the image encoder", CODE),
    "activation": Field("gelu", "of the image encoder: gelu or quick_gelu", CODE),
    "pre_norm": Field(False, "LayerNorm before the first block (OpenAI's CLIP)", CODE),
    "patch_bias": Field(True, "whether the patch embedding has a bias", CODE),
    "pooling": Field("cls", "what becomes the image's embedding", CODE),
    "positions": Field("learnt", "learnt; sincos: fixed (MAE)", CODE),
    "init": Field("normal", "of weights; xavier: MAE's, in the decoder as well", CODE),
}
MASKING: Group = {
    "strategy": Field("attention_low", "which patches are removed; masking.STRATEGIES has the names", "paper 3.2.3"),
    "ratio": Field(0.5, "share of the patches that is removed", "paper 3.2.3"),
    "drawn_ratio": Field((0.1, 0.5), "attmask: hidden share of a step, drawn between these", "AttMask"),
    "probability": Field(0.5, "attmask: of a view to be masked at all", "AttMask"),
    "granularity": Field("patch", "patch: 98 of 196 kept; cell2x2: 100 of 196", "paper; reference: cell2x2"),
}
LOSSES: Group = {
    "label_smoothing": Field(0.0, "supervised: mass that is spread over all classes", OURS),
    "simclr_temperature": Field(0.1, "of SLIP's and A-CLIP's contrast between views", "SLIP, A-CLIP"),
    "divergence": Field(
        "cross_entropy",
        "of CLS and patch terms: cross_entropy, kl_teacher_student or kl_student_teacher (as eq. 6 and 7 are printed)",
        CODE,
    ),
    "student_temperature": Field(0.1, "of the student's prototype logits", CODE),
    "teacher_temperature": Field((0.04, 0.04), "of the teacher's, CLS: at first, after the warm-up", CODE),
    "patch_temperature": Field((0.04, 0.07), "the same for patches", CODE),
    "temperature_epochs": Field(1, "epochs of that warm-up; with 1 the second number counts from epoch 1 on", CODE),
    "center_momentum": Field(0.9, "of the running mean of the teacher's logits", CODE),
    "chunk_logits": Field(3 * 2**20, "prototype logits (tokens x C) made at a time; 0: all", OURS),
    "normalise_pixels": Field(True, "whether the pixel target is normalised per patch", "reference, as in MAE"),
    "pixel_eps": Field(1e-6, "added to the variance of a patch", "reference, as in MAE"),
    "clip_block": Field(0, "columns of the contrastive logits made at a time; 0: as many as stay small", OURS),
}
WEIGHTS: Group = {
    "clip": Field(1.0, "weight of the contrast of image and text in the sum (eq. 10)", "paper, best row of table 4"),
    "cls": Field(1.0, "weight of the CLS distillation", "paper, best row of table 4"),
    "patch": Field(1.0, "weight of the patch distillation", "paper, best row of table 4"),
    "reconstruction": Field(1.0, "weight of the pixel reconstruction", "paper, best row of table 4"),
    "simclr": Field(1.0, "weight of the contrast between views", "SLIP, A-CLIP"),
    "byol": Field(2.0, "weight of the online-to-EMA term", "A-CLIP"),
    "labels": Field(1.0, "weight of the supervised term", OURS),
}
OPTIMIZER: Group = {
    "learning_rate": Field(5e-4, "at the end of the warm-up", CODE),
    "warmup_start": Field(1e-6, "learning rate of the first step", CODE),
    "learning_rate_end": Field(1e-5, "learning rate that the cosine ends at", CODE),
    "warmup_epochs": Field(1.0, "length of the linear warm-up", CODE),
    "warmup_steps": Field(None, "instead of warmup_epochs", OURS, int),
    "betas": Field((0.9, 0.98), "of AdamW", CODE),
    "eps": Field(1e-8, "of AdamW", CODE),
    "weight_decay": Field(0.5, "of AdamW, on weights and not on biases and norms", CODE),
    "weight_decay_end": Field(
        None, "decay that a cosine over all steps ends at (DINO: .04 to .4); default: constant", CODE, float
    ),
    "clip_norm": Field(0.0, "largest norm of the gradient; 0: not clipped", CODE),
    "clip_per_tensor": Field(False, "True: each parameter's own norm is clipped (DINO), not that of all", CODE),
    "frozen_prototype_epochs": Field(0.0, "epochs in which the heads' last layer stands still (DINO: 1)", CODE),
    "loaded_rate": Field(1.0, "factor on the learning rate of the parts that init brings", OURS),
    "part_rates": Field({}, "part: factor on its learning rate; 1 for those without an entry", OURS),
    "layer_decay": Field(1.0, "in the towers of part_rates: one more factor per block below the last", OURS),
}
EMA: Group = {
    "start": Field(0.996, "momentum of the teacher at step 0; a cosine over all steps", "paper 3.2.1; reference"),
    "end": Field(1.0, "momentum of the teacher at the last step", "paper 3.2.1; reference"),
}
GLOBAL_CROP = {name: GLOBAL.get(name, field) for name, field in CROP.items() if name not in NOT_GLOBAL}
# The only declaration of the fields; `default` and `main --help-config` use it, in this order.
GROUPS: dict[str, Group] = {
    "": RUN,
    "mesh": MESH,
    "data": DATA,
    "data.stickers": STICKERS,
    "preprocess": PREPROCESS,
    "views": VIEWS,
    "views.crops.global": GLOBAL_CROP,
    "model": MODEL,
    "model.image_style": IMAGE_STYLE,
    "masking": MASKING,
    "losses": LOSSES,
    "losses.weights": WEIGHTS,
    "optimizer": OPTIMIZER,
    "ema": EMA,
}


def fields() -> dict[str, Field]:
    """Returns dotted name -> field, for all fields."""
    return {f"{group}.{name}".lstrip("."): field for group, table in GROUPS.items() for name, field in table.items()}


def field_of(name: str) -> Field | None:
    """Returns the declaration of a dotted name, None if unknown; a crop of any name has the fields of `CROP`."""
    of_crop = re.fullmatch(r"views\.crops\.[^.]+\.([^.]+)", name)
    return fields().get(name) or (CROP.get(of_crop.group(1)) if of_crop else None)


def default() -> ConfigDict:
    """Returns the default config: DetailCLIP ViT-B/16 on YFCC15M (paper section 4.1, and the reference).

    It accepts no new fields, see `Fields`.
    """
    made = ConfigDict()
    for name, table in GROUPS.items():
        group = made
        for part in filter(None, name.split(".")):
            group[part] = group.get(part, ConfigDict())
            group = group[part]
        group.update({field: declared.value for field, declared in table.items()})
    return closed(made)


def crop(**changes: Any) -> ConfigDict:
    """Returns the fields of one crop: CLIP's (half to all of the image, no photometric augmentation), with `changes`.

    crop(count=2, flip=0.5).filter == "bilinear"
    """
    plain = {name: field.value for name, field in CROP.items()}
    per_view = {name: (0.0,) * changes.get("count", 1) for name in ("blur_p", "solarize_p")}
    return ConfigDict({**plain, **per_view, **changes})


def help_text(config: ConfigDict) -> str:
    """Formats every field of a config: value, meaning and source; also the default, if the value differs from it."""
    return "\n".join(line for name, value in _leaves(config, "") for line in _help(name, value)) + "\n"


def _leaves(config: ConfigDict, above: str) -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values.  An empty group, or one with the user's own fields, is yielded as one value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value) and field_of(above + name) is None:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _help(name: str, value: Any) -> list[str]:
    declared = field_of(name)
    if declared is None:
        return [f"{name} = {value!r}", "    a field of this config file alone", ""]
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    other = "" if value == declared.default else f" (default: {declared.default!r})"
    about = textwrap.wrap(f"{declared.meaning} [{declared.source}]", 112)
    return [f"{name} = {value!r}{other}", *(f"    {line}" for line in about), ""]


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses "name=value,name=value" with typed defaults; a value without a name sets the first name.

        parse_arg("epochs=50", epochs=25, preset="paper").epochs == 50

    Raises ValueError that lists the known names for an unknown one, and names the type for an invalid value.
    """
    parsed = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.rpartition("=")
        name = name or next(iter(defaults))
        if name not in defaults:
            raise ValueError(f"unknown config argument {name!r}; known: {', '.join(defaults)}")
        parsed[name] = _cast(name, value, type(defaults[name]))
    return parsed


def _cast(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"config argument {name}={value}: expected True or False")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"config argument {name}={value}: expected {kind.__name__}") from None


def reference_preset(config: ConfigDict) -> ConfigDict:
    """Sets the fields in which the authors' published code differs from the paper; returns the changed config."""
    config.masking.granularity = "cell2x2"
    config.views.crops["global"].scale = (0.14, 1.0)
    config.data.caption = "concat"
    config.data.keep_eot = False
    return config
