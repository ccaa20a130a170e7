"""MaskCLIP ViT-B/16 on YFCC15M (arXiv 2208.12262).  The paper's table 2: 42.7 ImageNet-1K zero-shot.

    python -m detailclip_jax.main --config=configs/baselines/maskclip.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.  Numbers marked (recalled) could not be checked, because the
authors' code is not published.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "maskclip"
    c.views.crops = {"large": base.crop()}  # one view, as in CLIP; the teacher's input is unmasked
    c.model.freeze_patch_embed = False
    c.masking.strategy, c.masking.ratio = "random", 0.75  # (recalled) 49 of 196 patches visible
    c.losses.weights.update({"clip": 1.0, "patch": 0.05})  # (recalled)
    c.ema.start, c.ema.end = 0.999, 0.9999  # (recalled)
    return c
