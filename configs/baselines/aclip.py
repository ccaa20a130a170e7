"""A-CLIP ViT-B/16 on YFCC15M (arXiv 2212.08653).  The paper's table 2: 43.9 ImageNet-1K zero-shot.

    python -m detailclip_jax.main --config=configs/baselines/aclip.py --config.data.path=/data/yfcc15m

Sets the fields that differ from configs/vitb16_yfcc.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

PAPER = Path(__file__).parents[1] / "vitb16_yfcc.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{PAPER}:epochs={arg.epochs}")
    c.method = "aclip"
    student = {**c.views.crops.large.to_dict(), "filter": "bilinear"}  # A-CLIP's code
    c.views.crops = {"large": base.crop(**student), "enclosing": base.crop(kind="enclosing")}
    c.views.teacher = "enclosing"
    c.masking.granularity = "cell2x2"  # A-CLIP's code: 25 of 49 cells kept
    c.losses.weights.update({"clip": 1.0, "simclr": 1.0, "byol": 2.0})  # A-CLIP's code
    c.losses.simclr_temperature = 0.1
    return c
