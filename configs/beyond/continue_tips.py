"""Continues training with TIPS, from any CLIP or a checkpoint of your own, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_tips.py --config.init=runs/openai \
        --config.data.path=...

Memory of a step with B/16 at 224 px, bfloat16: 10.1 GiB, of which 7.8 are temporaries with the gradient.  XLA's CPU
compiler counted this; it is not measured on a GPU.
Sizes and preprocessing are those of `init`, see configs/vitb16_continue.py.  An image has one caption here.  For two,
set model.class_tokens=2 and a data.caption of two sources; `init` does not have the second class token, which is
initialised.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=tips,epochs={arg.epochs}")  # rates, warm-up, batch 512 [choice]
    c.accumulation = 4  # chunks of 128 pairs; the same numbers as the whole batch
    c.model.remat = "full"  # the least memory
    return c
