"""Continues training with SigLIP 2, from any CLIP or a checkpoint of your own, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_siglip2.py --config.init=runs/openai \
        --config.data.path=...

Memory of a step with B/16 at 224 px, bfloat16: 10.7 GiB, of which 8.4 are temporaries with the gradient.  XLA's CPU
compiler counted this; it is not measured on a GPU.
Sizes and preprocessing are those of `init`, see configs/vitb16_continue.py.  From a `siglip` run this is the paper's
second stage, at the rates of fine-tuning; configs/beyond/siglip2.py has those of the paper.  Such a checkpoint has a
bias: add --config.optimizer.part_rates.logit_bias=0.1, the rate of the other loaded networks.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=siglip2,epochs={arg.epochs}")  # rates, warm-up, batch 512 [choice]
    c.accumulation = 4  # chunks of 128 pairs; the same numbers as the whole batch
    c.model.remat = "full"  # the least memory
    c.ema.start = c.ema.end = 0.999  # constant, as in siglip2.py
    c.optimizer.part_rates = {"logit_bias": 30.0}  # [choice, not measured], see continue_siglip.py
    return c
