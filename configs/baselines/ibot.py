"""iBOT ViT-B/16 (arXiv 2111.07832), on the images of YFCC15M.

    python -m detailclip_jax.main --config=configs/baselines/ibot.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.  "ViT-S" marks the values of iBOT's command for ViT-S/16 in
its README, which has none for ViT-B/16; the arguments of the published ViT-B run were not read.  The other ones are the
defaults of its main_ibot.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=400)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "ibot"
    c.batch_size = 1024  # ViT-S: 16 GPUs x 64
    jitter = {"filter": "bicubic", "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2}
    one_of_each = {"blur_p": (1.0, 0.1), "solarize_p": (0.0, 0.2)}
    c.views.crops = {  # counts, scales and mask ratios: ViT-S
        "large": base.crop(
            count=2, scale=(0.25, 1.0), **jitter, **one_of_each, mask_grid=14, mask_p=0.5, mask_ratio=(0.1, 0.5)
        ),
        "local": base.crop(count=10, size=96, scale=(0.05, 0.25), blur_p=(0.5,) * 10, **jitter),
    }
    c.preprocess.filter, c.preprocess.crop_ratio = "bicubic", 224 / 256  # iBOT's evaluation: resize 256, crop 224
    c.model.freeze_patch_embed = False
    c.model.drop_path = 0.1
    c.model.interpolation = "ibot"
    c.model.prototypes = 8192  # ViT-S: shared by CLS and patches
    c.losses.weights.update({"cls": 1.0, "patch": 1.0})
    c.model.freeze_gain = False  # ViT-S (norm_last_layer); the help text of main_ibot.py advises True for ViT-B
    c.losses.teacher_temperature = c.losses.patch_temperature = (0.04, 0.07)  # CLS: ViT-S
    c.losses.temperature_epochs = 30
    c.optimizer.learning_rate = 5e-4 * c.batch_size / 256  # 2e-3
    c.optimizer.warmup_start, c.optimizer.learning_rate_end = 0.0, 1e-6
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.betas = (0.9, 0.999)
    c.optimizer.weight_decay, c.optimizer.weight_decay_end = 0.04, 0.4
    c.optimizer.clip_norm, c.optimizer.clip_per_tensor = 3.0, True
    c.optimizer.frozen_prototype_epochs = 1.0
    c.ema.start, c.ema.end = 0.996, 1.0
    return c
