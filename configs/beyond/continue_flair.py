"""Continues a trained CLIP, or any checkpoint, with FLAIR on your own long captions, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_flair.py --config.init=runs/openai \
        --config.data.path=/data/mine

Memory of a step with B/16 at 224 px, bfloat16: 6.5 GiB, of which 4.8 are temporaries with the gradient.  XLA's CPU
compiler counted this; it is not measured on a GPU.  A batch of 512 is computed in chunks of 64 pairs.
Chunks cost one more forward pass; with more memory set --config.accumulation=1.

FLAIR pools an image by each text.  Crops, captions and losses are those of configs/beyond/flair.py, the optimizer is
that of configs/vitb16_continue.py; sizes, image style, normalisation and `context_length` are those of `init`, so
longer captions are cut (a CLIP's to 77 tokens).  The pool that `init` lacks is initialised.  No such run is published:
the numbers are ours [choice].
From a checkpoint that has a bias, such as a FLAIR, add --config.optimizer.part_rates.logit_bias=0.1: the rate of the
other loaded networks.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=flair,epochs={arg.epochs}")
    c.accumulation, c.model.remat = 8, "full"  # chunks of 64 pairs
    c.optimizer.part_rates = {"logit_bias": 30.0}  # [choice, not measured], see continue_siglip.py
    return c
