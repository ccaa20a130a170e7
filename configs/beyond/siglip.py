"""SigLIP ViT-B/16 on YFCC15M: configs/baselines/clip.py with the sigmoid loss (arXiv 2303.15343).

    python -m detailclip_jax.main --config=configs/beyond/siglip.py --config.data.path=/data/yfcc15m

The paper trains on WebLI: B/16 at 224 px reaches 76.2 ImageNet-1K zero-shot and 64.4 / 47.2 COCO recall at 1 (image /
text) [paper].  No number on YFCC15M is published; CLIP's with these settings is 37.6.  The paper's optimiser is
Adafactor (beta_2 .95) at batch 32k [paper 4.1, 4.7]; these are CLIP's settings, so that the two methods differ by the
loss alone [choice].
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{CLIP}:epochs={arg.epochs}")
    c.method = "siglip"  # start of bias and scale [paper 3.2]: methods/siglip.py
    return c
