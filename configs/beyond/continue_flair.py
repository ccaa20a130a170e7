"""Continues a trained CLIP, or any checkpoint, with FLAIR on your own long captions, on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_flair.py --config.init=runs/openai \
        --config.data.path=/data/mine

It needs about 6 GiB: 1.7 of parameters and moments, 4 for a chunk of 64 pairs, of which a batch of 512 has eight, and
.5 for keys, values and pooled features of the batch (arithmetic: XLA's CPU backend plans .97 GiB for 8 pairs and 1.38
for 16, with `remat=full`; no GPU has been used yet).  Chunks cost one more forward pass; with more memory set
--config.accumulation=1.

FLAIR pools an image by each text.  Crops, captions and losses are those of configs/beyond/flair.py, the optimizer is
that of configs/vitb16_continue.py; sizes, image style, normalisation and `context_length` are those of `init`, so
longer captions are cut (a CLIP's to 77 tokens).  The pool that `init` lacks is initialised.  No such run is published:
the numbers are ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=5)
    c = run_config.load(f"{CONTINUE}:method=flair,epochs={arg.epochs}")
    c.accumulation, c.model.remat = 8, "full"  # chunks of 64 pairs
    c.optimizer.part_rates = {"logit_bias": 30.0}  # a CLIP's scale of 100 needs a bias far from the start of -10
    return c
