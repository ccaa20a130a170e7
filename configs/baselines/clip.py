"""CLIP ViT-B/16 on YFCC15M as SLIP trains it (arXiv 2112.12750).  The paper's table 2: 37.6 ImageNet-1K zero-shot.

    python -m detailclip_jax.main --config=configs/baselines/clip.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "clip"
    c.views.crops = {"large": base.crop()}  # SLIP's code: one view, half to all of the image
    c.model.freeze_patch_embed = False  # SLIP's code
    c.losses.weights.update({"clip": 1.0})
    c.optimizer.learning_rate, c.optimizer.weight_decay = 5e-4, 0.5  # SLIP's values for CLIP
    return c
