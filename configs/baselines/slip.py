"""SLIP ViT-B/16 on YFCC15M (arXiv 2112.12750).  The paper's table 2: 42.8 ImageNet-1K zero-shot.

    python -m detailclip_jax.main --config=configs/baselines/slip.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "slip"
    augmented = {"count": 2, "scale": (0.08, 1.0), "flip": 0.5}  # this and the following: SLIP's code
    jitter = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8, "gray_p": 0.2, "blur_p": (0.5, 0.5)}
    c.views.crops = {"clean": base.crop(), "large": base.crop(**augmented, **jitter)}
    c.model.freeze_patch_embed = False
    c.losses.weights.update({"clip": 1.0, "simclr": 1.0})
    c.losses.simclr_temperature = 0.1
    c.optimizer.learning_rate, c.optimizer.weight_decay = 3e-3, 0.1
    return c
