"""DINO ViT-B/16 (arXiv 2104.14294), on the images of YFCC15M.  The paper's table 1 uses 800 epochs of ImageNet-1K.

    python -m detailclip_jax.main --config=configs/baselines/dino.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.  400 epochs are those of DINO's own ViT-B/16 (recalled);
dino.py:epochs=800 is the paper's length.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=400)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "dino"
    c.batch_size = 1024  # DINO's code, as all following fields
    jitter = {"filter": "bicubic", "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2}
    one_of_each = {"blur_p": (1.0, 0.1), "solarize_p": (0.0, 0.2)}
    c.views.crops = {
        "large": base.crop(count=2, scale=(0.4, 1.0), **jitter, **one_of_each),
        "local": base.crop(count=8, size=96, scale=(0.05, 0.4), blur_p=(0.5,) * 8, **jitter),
    }
    c.preprocess.filter, c.preprocess.crop_ratio = "bicubic", 224 / 256  # eval_knn.py: resize 256, crop 224
    c.model.freeze_patch_embed = False
    c.model.drop_path = 0.1
    c.model.interpolation = "ibot"
    c.model.prototypes = 65536
    c.losses.weights.update({"cls": 1.0})
    c.model.freeze_gain = True
    c.losses.teacher_temperature = (0.04, 0.07)  # longer ViT-S run of DINO's README; (recalled) for ViT-B
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
