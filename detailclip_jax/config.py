"""The resolved default configuration: every field a run can set, with the source of its number.

Config files under `configs/` start from `default()` and state what differs.  `parse_arg` reads the part
behind the colon of `--config=configs/vitb16_yfcc.py:epochs=50`.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OPEN = ("evaluators", "stickers", "crops", "custom", "part_rates")  # groups that take fields of any name


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest one, then all.

    unknown("method", "detailclp", METHODS) == "unknown method 'detailclp'; did you mean 'detailclip'? Known: ..."
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"


class Fields(ConfigDict):
    """A group of fields that takes no others, so that a typo is told where it is written.

        config.totl_steps = 5       # ValueError: unknown config field 'totl_steps'; did you mean 'total_steps'? ...

    The groups below it are of this kind too, except those of OPEN.  Fields of one's own: `with config.unlocked():`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise ValueError(unknown("config field", key, self))
        if isinstance(value, dict | ConfigDict) and isinstance(self.get(key), Fields):
            value = closed(ConfigDict(value))
        super().__setitem__(key, value)

    def lock(self) -> "Fields":
        """Refuses further fields from here on."""
        super().lock()
        for name in OPEN:
            if name in self:
                self[name].unlock()
        return self


def closed(group: ConfigDict) -> Fields:
    """The group, and those in it, as `Fields`."""
    made = Fields()
    for name, value in group.iteritems(preserve_field_references=True):
        made[name] = closed(value) if isinstance(value, ConfigDict) and name not in OPEN else value
    return made.lock()


def default() -> ConfigDict:
    """Every field, with DetailCLIP ViT-B/16 on YFCC15M as the value (paper section 4.1, and the reference).

    Further fields are refused, see `Fields`.
    """
    c = ConfigDict()
    c.method = "detailclip"
    c.seed = 0
    c.init = ""  # a checkpoint to start from: its networks, sizes and preprocessing; see init_from.py
    c.batch_size = 4096  # over all devices; the reference: 256 x 4 nodes x 4 A100
    c.accumulation = 1  # chunks that each device takes its rows in: less memory, the same numbers
    c.mesh = ConfigDict({"fsdp": 1})  # devices that share one copy of the training state
    c.num_epochs = 25  # used where the data set has a size and total_steps is not given
    c.total_steps = placeholder(int)
    c.steps_per_epoch = placeholder(int)  # gives "epoch 0" a meaning; default: examples // batch_size
    c.log_every = 50
    c.checkpoint_every = 1000
    c.max_to_keep = 2
    c.best_metric = ""  # e.g. "zero_shot/ema/top1": its best checkpoint is kept as well
    c.evaluate_every = 0  # steps; 0 = only at the end
    c.evaluate_at_end = True
    c.evaluators = ConfigDict()
    c.profile_steps = 0

    c.data = _data()
    c.preprocess = _preprocess()
    c.views = _views()
    c.model = _model()
    c.masking = _masking()
    c.losses = _losses()
    c.optimizer = _optimizer()
    c.ema = ConfigDict({"start": 0.996, "end": 1.0})  # cosine over all steps; reference main.py
    return closed(c)


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "source": "records",  # "stickers" | "records" (ArrayRecord shards) | "tfds"
            # records: folder of the shards; tfds: "name:version" or a builder directory; "A@3,B@1": several sets, three
            # examples of A for each of B; "A,tfds:B": by size; an epoch is as many examples as they have together
            "path": "",
            "split": "train",
            # paper: a random valid one; "concat" = title + " " + description (reference); "first"; "field:title",
            # "field:description,title": by name, the first that is not blank
            "caption": "random",
            "keep_eot": True,  # False reproduces the reference's truncation, which drops EOT
            "text_buckets": (32, 48),  # a batch's captions are cut to the first that holds the longest; exact; () = off
            "num_workers": 0,
            "prefetch": 2,  # batches kept ready
            # JPEG at 1/2, 1/4, 1/8 of its size where crops stay that many times their views; 0 = off
            "reducing_gap": 2.0,
            "max_bad_ratio": 0.01,  # share of unreadable records beyond which the run stops
            "stickers": {"num_scenes": 2**24, "seed": 0},
        }
    )


def _views() -> ConfigDict:
    student = {
        "count": 2,  # u and v
        "size": 224,
        "scale": (0.5, 1.0),  # paper 4.1; the reference's code has (.14, 1)
        "ratio": (3 / 4, 4 / 3),
        "filter": "bicubic",
        "flip": 0.0,
        "jitter": (0.4, 0.4, 0.2, 0.1),  # brightness, contrast, saturation, hue
        "jitter_p": 0.8,
        "gray_p": 0.2,
        "blur_p": (0.1, 0.1),  # one entry per view
        "blur_sigma": (0.1, 2.0),
        "solarize_p": (0.2, 0.2),
    }
    return ConfigDict(
        {
            "mixup": 0.0,  # alpha of mixup over the global batch (supervised); 0 = off
            "cutmix": 0.0,  # the same for CutMix
            "teacher": "same",  # "same" (reference) | "enclosing" (paper 4.1.1)
            "crops": {"global": student},
        }
    )


def _preprocess() -> ConfigDict:
    return ConfigDict(
        {  # of a picture in evaluation, mean and std in training too; SLIP's, as in the paper: resize 224, crop 224
            "filter": "bilinear",  # torchvision's default; "bicubic": CLIP's own, MAE, DINO, iBOT, timm
            "resize": "shorter_side",  # | "squash": both sides, whatever the picture's shape
            "crop_ratio": 1.0,  # side of the center crop / resized side; .875: 224 of 256
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
    )


def crop(**changes: Any) -> ConfigDict:
    """One crop of CLIP's kind, half to all of the picture without photometrics, with `changes`.

    crop(count=2, flip=0.5).filter == "bilinear"
    """
    plain = {
        "count": 1,
        "size": 224,
        "kind": "random",  # "enclosing": around all global crops
        "scale": (0.5, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "filter": "bilinear",
        "flip": 0.0,
        "jitter": (0.0, 0.0, 0.0, 0.0),
        "jitter_p": 0.0,
        "gray_p": 0.0,
        "blur_p": (0.0,) * changes.get("count", 1),
        "blur_sigma": (0.1, 2.0),
        "solarize_p": (0.0,) * changes.get("count", 1),
        "mask_grid": 0,  # patches along a side, where blocks are to be drawn (iBOT)
        "mask_p": 0.5,
        "mask_ratio": (0.1, 0.5),
    }
    return ConfigDict({**plain, **changes})


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "size": "B/16",  # models/sizes.py, or "custom": the fields of a Size in `custom`
            "custom": {},
            "image_size": 224,
            "context_length": 77,
            "vocab_size": 49408,
            "prototypes": placeholder(int),  # default: the size's own (8192 from S/16 up)
            "num_classes": placeholder(int),  # supervised
            "decoder_width": placeholder(int),  # default: the encoder's
            "decoder_depth": placeholder(int),  # default: 1, as in the reference
            "drop_path": 0.0,  # the last block's rate, rising from 0; the student's alone
            "freeze_gain": True,  # of the prototypes' weight norm; iBOT trains it
            "freeze_patch_embed": True,  # the reference, after MoCo v3
            "image_style": {  # models/vit.py; other checkpoints of the field have other values
                "norm_eps": 1e-6,
                "activation": "gelu",
                "pre_norm": False,
                "patch_bias": True,
                "pooling": "cls",
                "positions": "learnt",  # "sincos": fixed, as MAE's
                "init": "normal",  # "xavier": MAE's initial values, in the decoder as well
            },
            "text_activation": "quick_gelu",  # CLIP's
            "dtype": "float32",  # of products and tokens; parameters, norms, softmax, sums and losses stay float32
            # of products on GPUs and TPUs: "default" | "high" (TensorFloat-32) | "highest"; default: float32 products
            # are exact in float32, bfloat16 ones as the device does them.  Losses, centers, attention maps are exact
            "matmul_precision": placeholder(str),
            "remat": "none",  # "none" | "dots" (keeps the results of big products) | "full"
            "scan": False,  # one block's program in a loop over stacked parameters: compiles sooner, the same numbers
            "attention": "auto",  # "xla" | "cudnn" (NVIDIA, half precision); "auto": cudnn where it can run
        }
    )


def _masking() -> ConfigDict:
    return ConfigDict(
        {
            "strategy": "attention_low",  # paper 3.2.3; see masking.STRATEGIES
            "ratio": 0.5,  # share of patches removed
            "drawn_ratio": (0.1, 0.5),  # attmask: hidden share of a step, drawn between these
            "probability": 0.5,  # attmask: of a view to be masked at all
            "granularity": "patch",  # "patch": 98 of 196 kept (paper); "cell2x2": 100 of 196 (reference)
        }
    )


def _losses() -> ConfigDict:
    return ConfigDict(
        {
            "weights": {
                "clip": 1.0,
                "cls": 1.0,
                "patch": 1.0,
                "reconstruction": 1.0,
                "simclr": 1.0,  # SLIP, A-CLIP
                "byol": 2.0,  # A-CLIP
                "labels": 1.0,  # supervised
            },  # eq. 10, best row of table 4
            "label_smoothing": 0.0,  # supervised
            "simclr_temperature": 0.1,  # SLIP, A-CLIP
            "divergence": "cross_entropy",  # | "kl_teacher_student" | "kl_student_teacher" (as printed)
            "student_temperature": 0.1,
            "teacher_temperature": (0.04, 0.04),  # CLS: at first, after the warm-up
            "patch_temperature": (0.04, 0.07),  # the same for patches
            "temperature_epochs": 1,  # of that warm-up: with 1, the second number counts from epoch 1 on
            "center_momentum": 0.9,
            "chunk_logits": 3 * 2**20,  # prototype logits (tokens x C) made at a time; more where memory is; 0 = all
            "normalise_pixels": True,
            "pixel_eps": 1e-6,
            "clip_block": 0,  # columns of the contrastive logits made at a time; 0 = as many as stay small
        }
    )


def _optimizer() -> ConfigDict:
    return ConfigDict(
        {
            "learning_rate": 5e-4,
            "warmup_start": 1e-6,
            "learning_rate_end": 1e-5,
            "warmup_epochs": 1.0,
            "warmup_steps": placeholder(int),  # instead of warmup_epochs
            "betas": (0.9, 0.98),
            "eps": 1e-8,
            "weight_decay": 0.5,
            "weight_decay_end": placeholder(float),  # by a cosine over all steps (DINO: .04 -> .4); default: constant
            "clip_norm": 0.0,  # 0 = no clipping, as in the reference
            "clip_per_tensor": False,  # True: each parameter's own norm is clipped (DINO), not that of all
            "frozen_prototype_epochs": 0.0,  # the head's last layer waits so long (DINO: 1)
            "loaded_rate": 1.0,  # factor on the rate of the parts that `init` brings: their entries in part_rates
            "part_rates": {},  # part -> factor on its learning rate; 1 for those without an entry
            "layer_decay": 1.0,  # in the towers of part_rates: one more factor per block below the last
        }
    )


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Reads "name=value,name=value" against typed defaults; a bare value sets the first name.

        parse_arg("epochs=50", epochs=25, preset="paper").epochs == 50

    Raises ValueError that lists the known names for an unknown one, and names the type for a bad value.
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
    """Sets the choices of the authors' published code where it differs from the paper."""
    config.masking.granularity = "cell2x2"
    config.views.crops["global"].scale = (0.14, 1.0)
    config.data.caption = "concat"
    config.data.keep_eot = False
    return config
