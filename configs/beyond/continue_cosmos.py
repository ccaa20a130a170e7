"""Continues a trained CLIP, or any checkpoint, with COSMOS on your own long captions, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_cosmos.py --config.init=runs/openai \
        --config.data.path=/data/mine

Memory of a step with B/16 at 224 px, bfloat16: 10.8 GiB, of which 8.3 are temporaries with the gradient.  XLA's CPU
compiler counted this; it is not measured on a GPU.  A batch of 512 is computed in chunks of 64 pairs.
Chunks cost one more forward pass; with more memory set --config.accumulation=1.

An evaluation reports COSMOS's teacher, which is the one to use, as `ema`.  Crops, captions and losses are those of
configs/beyond/cosmos.py, the optimizer is that of configs/vitb16_continue.py; sizes, image style, normalisation
and `context_length` are those of `init`, so longer captions are cut (a CLIP's to 77 tokens).  Pools and projections
that `init` lacks are initialised.  No such run is published: the numbers are ours [choice].
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=cosmos,epochs={arg.epochs}")
    c.accumulation, c.model.remat = 8, "full"  # chunks of 64 pairs
    return c
