"""Continues training with SigLIP, from any CLIP or a checkpoint of your own, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_siglip.py --config.init=runs/openai \
        --config.data.path=...

Memory of a step with B/16 at 224 px, bfloat16: 10.6 GiB, of which 8.9 are temporaries with the gradient.  XLA's CPU
compiler counted this; it is not measured on a GPU.
Sizes and preprocessing are those of `init`, see configs/vitb16_continue.py.
From a checkpoint that has a bias, such as a SigLIP, add --config.optimizer.part_rates.logit_bias=0.1: the rate of the
other loaded networks.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=siglip,epochs={arg.epochs}")  # rates, warm-up, batch 512 [choice]
    c.accumulation = 2  # chunks of 256 pairs; the same numbers as the whole batch
    c.model.remat = "full"  # the least memory
    # A CLIP's scale of 100 needs a lower bias than the start of -10, which the usual rate reaches too slowly [choice,
    # not measured].
    c.optimizer.part_rates = {"logit_bias": 30.0}
    return c
