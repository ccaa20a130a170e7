"""The recipe for detail: CLIP on half of the patches, whose mean also predicts the tokens of the caption.

    python -m detailclip_jax.main --config=configs/detail.py
    python -m detailclip_jax.main --config=configs/detail.py:data=yfcc --config.data.path=/data/yfcc15m
    python -m detailclip_jax.compare --methods=detailclip,configs/detail.py --flop-of=detailclip --seeds=1 \
        --workdir=runs/beside

The second line trains a B/16 on YFCC15M with long captions (docs/records.md#captions): one text of one to three
sentences an image, which the context of 77 tokens cuts.  It was not run.  The last line trains the recipe beside the
demo's method, for the same FLOP.

CLIP compares a caption with the class token alone: no loss reads the patches that the last block computes.  The added
term (SuperCLIP's) reads them.  Patch dropout (FLIP's) nearly halves the cost of an image, so that a run of the same
FLOP sees more of them; the last tenth of the run sees all patches.  There is no second view, small crop, decoder or
teacher.  DetailCLIP's own parts are left out: at equal FLOP the term alone scores higher (two seeds).

On stickers an image costs .091 GFLOP, CLIP's .161, counted by XLA.  docs/experiments.md has the results at equal FLOP.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

HERE = Path(__file__).parent


def get_config(arg=None):
    arg = base.parse_arg(arg, data="stickers")
    if arg.data not in ("stickers", "yfcc"):
        raise ValueError(f"config argument data={arg.data}: known are stickers and yfcc")
    if arg.data == "stickers":
        c = run_config.load(f"{HERE}/stickers.py:method=superclip")
        c.total_steps = 1050  # at most the FLOP of CLIP's 600
    else:
        c = run_config.load(f"{HERE}/baselines/clip.py:epochs=41")  # the FLOP of CLIP's 25, with 77 text tokens
        c.losses.weights.token_set = 1.0
        c.data.caption, c.data.num_captions = "diverse", 1  # FLAIR's rule [choice]
    c.views.patch_dropout, c.views.patch_dropout_until = 0.5, 0.9
    return c
