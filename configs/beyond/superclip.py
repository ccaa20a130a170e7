"""SuperCLIP ViT-B/16 (arXiv 2512.14480): CLIP, and the image predicts the tokens of its caption.

    python -m detailclip_jax.main --config=configs/beyond/superclip.py --config.data.path=/data/datacomp

The published run sees 512M images of DataComp: 31,250 steps of 16,384 [code].  --config.batch_size and
--config.total_steps set others.  Published for B/16 [paper]:

                ImageNet-1K zero-shot    COCO, text to image / image to text    PASCAL, ADE20K (fine-tuned, linear head)
    CLIP        60.5                     29.0 / 46.7                            57.8, 28.0
    SuperCLIP   63.5                     31.3 / 47.8                            65.5, 32.1

Weights of the term of .4, .6, 1 and 1.6 give 44.1, 45.0, 47.1 and 47.2 after 256M images; equal weights of all tokens
44.8 [paper].  Any method with captions can have the term: --config.losses.weights.token_set=1.

Sources: [code] the published training code, [paper], [recalled] from memory.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP, COSMOS = Path(__file__).parents[1] / "baselines/clip.py", Path(__file__).parent / "cosmos.py"


def get_config():
    c = run_config.load(str(CLIP))
    c.method = "superclip"
    c.batch_size, c.total_steps = 16384, 31250  # [code]
    c.views.crops = {"large": base.crop(scale=(0.9, 1.0), filter="bicubic")}  # open_clip's defaults [recalled]
    cosmos = run_config.module(str(COSMOS))
    cosmos.open_clip_networks(c)
    cosmos.open_clip_training(c)
    c.losses.weights.update({"clip": 1.0, "token_set": 1.0})  # [code]
    c.optimizer.learning_rate, c.optimizer.weight_decay, c.optimizer.eps = 1e-3, 0.2, 1e-6  # [code]
    c.optimizer.warmup_steps = 500  # [code]
    c.optimizer.warmup_start = c.optimizer.learning_rate / 500  # from 0, as in cosmos.py [code]
    return c
