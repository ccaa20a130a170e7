"""MAE ViT-B/16 (arXiv 2111.06377), on the images of YFCC15M.  The paper's table 1 uses 800 epochs of ImageNet-1K.

    python -m detailclip_jax.main --config=configs/baselines/mae.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=800)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "mae"
    c.views.crops = {"large": base.crop(scale=(0.2, 1.0), filter="bicubic", flip=0.5)}  # this and the following: MAE
    c.model.image_style.positions, c.model.image_style.init = "sincos", "xavier"
    c.model.decoder_width, c.model.decoder_depth = 512, 8  # 16 heads
    c.preprocess.filter, c.preprocess.crop_ratio = "bicubic", 224 / 256  # MAE's evaluation: resize 256, crop 224
    c.model.freeze_patch_embed = False
    c.masking.strategy, c.masking.ratio = "random", 0.75
    c.masking.rounded = "kept"
    c.losses.weights.update({"reconstruction": 1.0})
    c.optimizer.learning_rate = 1.5e-4 * c.batch_size / 256  # 2.4e-3 at 4096
    c.optimizer.warmup_start, c.optimizer.learning_rate_end = 0.0, 0.0
    c.optimizer.warmup_epochs = 40.0
    c.optimizer.peak_twice = False
    c.optimizer.betas = (0.9, 0.95)
    c.optimizer.weight_decay = 0.05
    return c
