"""COSMOS ViT-B/16 (arXiv 2412.01814): cross-attention between crops and captions, and a teacher of both.

    python -m detailclip_jax.main --config=configs/beyond/cosmos.py --config.data.path=/data/cc3m
    python -m detailclip_jax.main --config=configs/beyond/cosmos.py:data=yfcc15m --config.data.path=/data/yfcc15m

It needs data with long captions, such as DreamLIP's of CC3M and YFCC15M: with a title alone, all captions of an image
would be the same.
Published for B/16, with the TEACHER's encoders and without the pools (an evaluation reports them as `ema`):

               COCO, image to text / text to image    Flickr30K      ImageNet-1K zero-shot
    CC3M       53.1 / 40.1                            84.1 / 68.6    37.1
    YFCC15M    67.5 / 50.9                            92.6 / 79.6    52.4

On CC3M, CLIP has 15.0 / 10.7 on COCO; image to text becomes 20.6 with crops of images, and 51.0 with those of captions
too [sec].
Sources: [code] the published training code, [sec] others' notes on the paper, [choice] ours where the code is silent or
another number is better.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"
SETS = {"cc3m": (1024, 0.999), "yfcc15m": (4096, 0.99)}  # batch size and momentum of the teacher [code]


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=32, data="cc3m")  # 32 epochs [code]
    if arg.data not in SETS:
        raise ValueError(f"config argument data={arg.data}: known are {', '.join(SETS)}")
    c = run_config.load(f"{CLIP}:epochs={arg.epochs}")
    c.method = "cosmos"
    c.batch_size, momentum = SETS[arg.data]
    c.data.caption = "crops"  # 2 captions of 1 to 5 sentences, 6 of one sentence [code]
    c.data.num_captions = 8
    # Words after the end of a caption are masked [choice]: captions of a batch are cut to the same length here, while
    # the published code attends to its padding.
    jitter = {"filter": "bicubic", "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2}
    c.views.crops = {  # [code]
        "large": base.crop(count=2, scale=(0.4, 1.0), blur_p=(1.0, 0.1), solarize_p=(0.0, 0.2), **jitter),
        "local": base.crop(count=6, size=96, scale=(0.05, 0.4), blur_p=(0.5,) * 6, **jitter),
    }
    open_clip_networks(c)
    c.model.interpolation = "ibot"  # of positions for local crops, as in DINO's code [code]
    # The contrast of images and texts, and the four contrasts with the teacher [code].
    c.losses.weights.update({"clip": 1.0, "cls": 1.0})
    open_clip_training(c)
    c.ema.start = c.ema.end = momentum  # constant [code]
    return c


def open_clip_networks(c):
    """Networks and normalisation as in open_clip, in which COSMOS and FLAIR are written [code]."""
    style = c.model.image_style
    style.patch_bias, style.pre_norm, style.norm_eps = False, True, 1e-5
    c.model.text_activation = "gelu"
    c.preprocess.mean, c.preprocess.std = base.CLIP_MEAN, base.CLIP_STD
    c.preprocess.filter = "bicubic"


def open_clip_training(c):
    """The optimizer of COSMOS and FLAIR [code]."""
    c.optimizer.learning_rate, c.optimizer.learning_rate_end = 5e-4, 0.0
    c.optimizer.warmup_steps = 2000
    c.optimizer.warmup_start = c.optimizer.learning_rate / 2000  # a linear warm-up from 0 that begins at its first step
    c.optimizer.betas, c.optimizer.eps, c.optimizer.weight_decay = (0.9, 0.98), 1e-8, 0.5
    c.optimizer.decay_1d = False  # no decay of 1-D tensors, biases, norms and scales: the class token has none
