"""Supervised ViT-B/16 with a classification head, for DeiT-B in the paper's table 1 (arXiv 2012.12877).

    python -m detailclip_jax.main --config=configs/baselines/supervised.py --config.data.path=/data/imagenet1k

Sets the fields that differ from configs/vitb16_yfcc.py.  It needs labelled records; YFCC15M has no labels.  Left
out of DeiT's main.py: RandAugment (in its place the colour jitter that DeiT uses without it), random erasing, repeated
augmentation (three views of each image in a batch), and the average of the weights, which DeiT saves but does not
evaluate.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=300)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "supervised"
    c.batch_size = 1024  # this and the following: DeiT's main.py, 64 x 16 devices
    jitter = {"jitter": (0.3, 0.3, 0.3, 0.0), "jitter_p": 1.0}
    c.views.crops = {"large": base.crop(scale=(0.08, 1.0), filter="bicubic", flip=0.5, **jitter)}
    c.views.mixup, c.views.cutmix = 0.8, 1.0
    c.preprocess.filter, c.preprocess.crop_ratio = "bicubic", 224 / 256  # DeiT's evaluation
    c.model.freeze_patch_embed = False
    c.model.num_classes = 1000  # ImageNet-1K
    c.model.drop_path = 0.1
    c.losses.weights.update({"labels": 1.0})
    c.losses.label_smoothing = 0.1
    c.optimizer.learning_rate = 5e-4 * c.batch_size / 512  # 1e-3
    c.optimizer.warmup_start, c.optimizer.learning_rate_end = 1e-6, 1e-5
    c.optimizer.warmup_epochs = 5.0
    c.optimizer.betas = (0.9, 0.999)
    c.optimizer.weight_decay = 0.05
    c.optimizer.decay_1d = c.optimizer.decay_positions = False  # timm's no_weight_decay: class token and positions
    return c
